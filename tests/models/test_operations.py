"""Operations that keep less for the backward pass compute what the plain formulas compute."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as nnf

from flowact.models.operations import _plain_normed_rotation, activate, after_activation, gelu, modulated_norm, normed_rotation


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def table(length=5, width=8):
    angle = torch.linspace(-2, 3, length * width // 2, dtype=torch.float64).view(length, width // 2)
    return angle.cos(), angle.sin()


def test_modulated_norm_is_layer_norm_then_scale_and_shift_and_so_is_its_gradient():
    x, shift, scale = random(2, 3, 4, 6), random(2, 3, 6, seed=1), random(2, 3, 6, seed=2)
    expected = shift[:, :, None] + nnf.layer_norm(x, (6,), eps=1e-6) * (1 + scale[:, :, None])
    torch.testing.assert_close(modulated_norm(x, shift, scale), expected)
    assert torch.autograd.gradcheck(modulated_norm, (x, shift, scale))


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_normed_rotation_is_norm_weight_and_rotation_and_so_is_its_gradient(kind):
    x, weight = random(2, 5, 2, 3, 8), random(2, 1, 8, seed=1)
    torch.testing.assert_close(normed_rotation(x, weight, *table(), kind), _plain_normed_rotation(x, weight, *table(), kind))
    assert torch.autograd.gradcheck(lambda *tensors: normed_rotation(*tensors, *table(), kind), (x, weight))


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_normed_rotation_takes_slices_of_a_larger_tensor(kind):
    """As it gets them from the projection to queries, keys and values."""
    projected, weight = random(2, 5, 72), random(2, 1, 8, seed=1)

    def of_slice(projected, weight):
        return normed_rotation(projected.unflatten(-1, (3, 3, 8))[:, :, :2], weight, *table(), kind)

    assert torch.autograd.gradcheck(of_slice, (projected, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gelu_is_torchs_in_its_tanh_form(dtype):
    x = torch.linspace(-12, 12, 2001, dtype=dtype)
    torch.testing.assert_close(gelu(x), nnf.gelu(x, approximate="tanh"), atol=1e-6, rtol=1e-5)
    assert torch.autograd.gradcheck(gelu, random(3, 7))


@pytest.mark.parametrize("kind", ["gelu", "silu"])
def test_an_activation_in_place_is_the_same(kind):
    x = random(3, 1 << 17, dtype=torch.float32).detach()
    expected = activate(x, kind)
    assert activate(x, kind, in_place=True) is x
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("kind", ["gelu", "silu"])
@pytest.mark.parametrize("recompute", [False, True])
def test_recomputed_activations_have_the_same_gradient(kind, recompute):
    hidden, weight, bias = random(2, 5, 6), random(3, 6, seed=1), random(3, seed=2)

    def apply(hidden, weight, bias):
        return after_activation(hidden, kind, lambda activated: nnf.linear(activated, weight, bias), recompute)

    assert torch.autograd.gradcheck(apply, (hidden, weight, bias))


def test_recomputing_keeps_the_hidden_tensor_only():
    linear = torch.nn.Linear(64, 4)
    hidden = torch.randn(2, 5, 64, requires_grad=True)
    kept = {}
    for recompute in (False, True):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor):
            after_activation(hidden, "silu", linear, recompute)
        kept[recompute] = sum(size == hidden.numel() for size in sizes)
    assert kept == {False: 2, True: 1}


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_bfloat16_stays_near_float32(kind):
    x, weight, shift, scale = random(2, 5, 2, 3, 8), random(2, 1, 8, seed=1), random(2, 5, 8, seed=2), random(2, 5, 8, seed=3)
    half = [tensor.detach().bfloat16() for tensor in (x, weight, *table(), shift, scale)]
    near = {"atol": 6e-2, "rtol": 3e-2}
    rotated = normed_rotation(*half[:4], kind)
    assert rotated.dtype == torch.bfloat16
    torch.testing.assert_close(rotated.double(), normed_rotation(*(h.double() for h in half[:4]), kind), **near)
    tokens = x.detach()[:, :, 0].bfloat16()
    torch.testing.assert_close(modulated_norm(tokens, *half[4:]).double(), modulated_norm(tokens.double(), *(h.double() for h in half[4:])), **near)
