"""Laws of adapters."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowact.lora import merge
from flowact.models.adapters import Adapter
from flowact.testing.laws import ensure, same, seeded


def check_adapter(adapter: Adapter, network: nn.Module, run: Callable[[nn.Module], Tensor], *, tolerance: float = 1e-5) -> None:
    """The laws of `Adapter`.

    Args:
        adapter: the adapter.
        network: a plain network that it fits; it is changed.
        run: the output of a network on fixed inputs, with gradients and without randomness in evaluation mode.
        tolerance: of comparisons.
    """
    plain, base = copy.deepcopy(network.eval()), {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():  # as kernels may depend on whether gradients are asked for
        before = run(network)
        adapter.attach(network)
        after = run(network)
    ensure(same(before, after), adapter, "a network gives when training starts what it gave without the adapter")
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    ensure(trained, adapter, "something is trained")
    ensure(adapter.keeps_base or not frozen, adapter, "without a base everything is trained")
    generator = seeded(0)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    names, live = adapter.stored_names(network), network.state_dict()
    ensure(len(set(names.values())) == len(names), adapter, "no two tensors have one name in a checkpoint")
    state = {stored: live[name] for name, stored in names.items()} | adapter.constants(network)
    plain.load_state_dict(merge(base, state) if adapter.keeps_base else state)
    ensure(
        same(run(plain), run(network), tolerance), adapter, "a plain network with the weights of a checkpoint gives what the trained network gives"
    )
    run(network).square().sum().backward()
    ensure(all(p.grad is not None for p in trained), adapter, "what is trained has an effect")
    ensure(all(p.grad is None for p in frozen), adapter, "what is frozen gets no gradient")
