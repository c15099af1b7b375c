"""What of a network is trained: the laws of adapters, mistakes in patterns, and peft's files read back by peft."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from flowact.errors import UserError
from flowact.lora import largest_difference, merge
from flowact.models import MMDiT
from flowact.models.adapters import (
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    FullFinetune,
    LoRA,
    adapted_layers,
    linear_names,
    load_peft,
    save_peft,
    stored_names,
)
from flowact.testing import check_adapter, check_constructor
from flowact.types import ConditionTokens, Segment, WindowLayout


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.out = nn.Linear(6, 6)

    def forward(self, x):
        return x + self.out(torch.tanh(self.norm(self.qkv(x))))


class Net(nn.Module):
    """Two blocks, an `out` that shares its name with theirs, and an attention layer of torch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(4, 6)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x + self.attention(x, x, x, need_weights=False)[0])


def run(network):
    return network(torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1)))


def denoiser():
    torch.manual_seed(0)
    model = MMDiT(latent_channels=3, text_width=5, audio_width=6, width=24, num_heads=2, num_double_blocks=1, num_single_blocks=1, mlp_ratio=2.0)
    with torch.no_grad():  # away from the zeros that modulation and output start with
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def velocity(model):
    layout = WindowLayout((Segment("reference", 1, -4), Segment("stream", 2, 0), Segment("stream", 2, 2)))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 5, 3, 4, 4, generator=generator)
    conditions = ConditionTokens(torch.randn(1, 3, 2, 5, generator=generator), torch.randn(1, 5, 4, 6, generator=generator))
    return model(latents, torch.tensor([[0.0, 0.3, 0.3, 0.8, 0.8]]), conditions, layout)


def trained(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def state_of(adapter, network):
    live = network.state_dict()
    return {stored: live[name].clone() for name, stored in adapter.stored_names(network).items()} | adapter.constants(network)


def example(adapter, seed=0):
    """A trained LoRA and its base."""
    network = Net()
    base = {name: value.clone() for name, value in network.state_dict().items()}
    adapter.attach(network)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return state_of(adapter, network), base, network


# --- laws


@pytest.mark.parametrize(
    "adapter",
    [
        FullFinetune(),
        LoRA(),
        LoRA(rank=1, alpha=0.5, dropout=0.5, targets=["blocks.*.qkv", "out"]),
        LoRA(rank=3, targets=["blocks.*"], exclude=["blocks.0.*"], train_also=["embed.*", "blocks.*.norm.*", "blocks.1.qkv.bias"]),
    ],
    ids=["full", "everything", "some", "more"],
)
def test_adapters_keep_their_laws(adapter):
    check_adapter(adapter, Net(), run)


def test_every_linear_layer_of_the_denoiser_can_be_changed():
    model = denoiser()
    adapter = LoRA(rank=2)
    assert adapter.layers(model) == linear_names(model)
    assert len(linear_names(model)) > 20
    check_adapter(adapter, model, velocity, tolerance=1e-4)


@pytest.mark.parametrize("cls", [FullFinetune, LoRA])
def test_constructors_can_be_written_in_a_recipe(cls):
    check_constructor(cls)


def test_the_full_finetune_leaves_a_network_alone():
    network = Net()
    FullFinetune().attach(network)
    assert trained(network) == set(Net().state_dict())
    assert FullFinetune().stored_names(network) == {name: name for name in Net().state_dict()}
    assert FullFinetune().constants(network) == {}


def test_targets_are_taken_by_their_whole_name():
    network = Net()
    LoRA(targets=["out"]).attach(network)
    assert adapted_layers(network) == ["out"]
    assert trained(network) == {"out.lora_A.default.weight", "out.lora_B.default.weight"}


def test_names_in_a_checkpoint_are_those_of_the_plain_network():
    network = Net()
    adapter = LoRA(targets=["blocks.0.qkv"], train_also=["blocks.0.qkv.bias", "embed.weight"])
    adapter.attach(network)
    assert set(adapter.stored_names(network).values()) == {
        "embed.weight", "blocks.0.qkv.bias", "blocks.0.qkv.lora_A.weight", "blocks.0.qkv.lora_B.weight",
    }  # fmt: skip
    assert set(adapter.constants(network)) == {"blocks.0.qkv.alpha"}
    plain = {name for name in stored_names(network).values() if ".lora_" not in name}
    assert plain == set(Net().state_dict())


def test_the_scale_is_alpha_over_rank():
    deltas = []
    for alpha in (2.0, 6.0):
        state, base, _ = example(LoRA(rank=2, alpha=alpha, targets=["out"]))
        deltas.append(merge(base, state)["out.weight"] - base["out.weight"])
    torch.testing.assert_close(deltas[1], 3 * deltas[0])


def test_dropout_is_for_training_only():
    network = Net().train()
    LoRA(targets=["blocks.*"], dropout=0.5).attach(network)
    with torch.no_grad():
        network.blocks[0].qkv.lora_B["default"].weight.normal_()
    torch.manual_seed(0)
    assert not torch.equal(run(network), run(network))
    assert torch.equal(run(network.eval()), run(network))


def test_a_copy_made_before_stays_plain():
    network = Net()
    frozen = copy.deepcopy(network)
    LoRA().attach(network)
    assert frozen.state_dict().keys() == Net().state_dict().keys()
    assert torch.equal(run(frozen), run(Net()))


# --- mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"targets": ["block.*.qkv"]}, r"targets of LoRA: 'block.\*.qkv' matches no linear layer of the network. Did you mean blocks.\*.qkv"),
        ({"targets": ["block.*"]}, r"'block.\*' matches no linear layer of the network. Did you mean blocks.\*"),
        ({"targets": ["blocks.*.qkv", "blocks.*.norm"]}, r"'blocks.\*.norm' matches no linear layer.* Did you mean blocks.\*"),
        ({"exclude": ["heads"]}, "exclude of LoRA: 'heads' matches no linear layer of the network. Known: "),
        ({"train_also": ["embd.*"]}, r"train_also of LoRA: 'embd.\*' matches no parameter.* Did you mean embed"),
        ({"targets": ["out"], "exclude": ["*"]}, "leaves none of the layers"),
        ({"targets": ["blocks.*"], "train_also": ["blocks.1.*"]}, r"add these layers to exclude:\n  blocks.1.qkv.weight\n  blocks.1.out.weight"),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused_before_anything_changes(arguments, words):
    network = Net()
    with pytest.raises(UserError, match=words):
        LoRA(**arguments).attach(network)
    assert trained(network) == set(Net().state_dict())


def test_attaching_keeps_the_mode():
    network = Net().eval()
    LoRA(dropout=0.5).attach(network)
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("arguments", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"dropout": -0.1}, {"targets": []}])
def test_values_outside_their_range_are_refused(arguments):
    with pytest.raises(UserError, match=f"{next(iter(arguments))} of LoRA is"):
        LoRA(**arguments)


def test_a_second_lora_is_refused():
    network = Net()
    LoRA(targets=["out"]).attach(network)
    with pytest.raises(UserError, match="has a LoRA already"):
        LoRA().attach(network)


def test_a_layer_that_is_read_and_not_called_is_no_target():
    """`nn.MultiheadAttention` reads the weight of its output layer, so a change beside it would have no effect."""
    assert "attention.out_proj" not in linear_names(Net())


def test_without_peft_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'flowact\[lora\]'"):
        LoRA().attach(Net())


# --- peft's files


def mixed():
    """Layers of different ranks and scales, beside whole modules."""
    state, base, _ = example(LoRA(rank=2, alpha=3.0, targets=["blocks.*", "out"], exclude=["blocks.1.*"], train_also=["embed.*", "blocks.*.norm.*"]))
    state |= {"out.lora_A.weight": torch.randn(1, 6), "out.lora_B.weight": torch.randn(3, 1), "out.alpha": torch.tensor(0.25)}
    return state, base


def test_peft_reads_back_what_was_written(tmp_path):
    state, base = mixed()
    save_peft(state, Net(), tmp_path / "lora")
    assert {path.name for path in (tmp_path / "lora").iterdir()} == {PEFT_CONFIG, PEFT_WEIGHTS}
    keys = load_file(tmp_path / "lora" / PEFT_WEIGHTS).keys()
    assert "base_model.model.blocks.0.qkv.lora_A.weight" in keys
    assert "base_model.model.blocks.1.norm.bias" in keys
    again = load_peft(tmp_path / "lora", Net())
    assert again.keys() == state.keys()
    assert largest_difference(state, again, base) == 0.0


def test_a_network_that_peft_has_loaded_it_into_computes_the_same(tmp_path):
    peft = pytest.importorskip("peft")
    state, base = mixed()
    save_peft(state, Net(), tmp_path / "lora")
    merged = Net()
    merged.load_state_dict(merge(base, state))
    model = peft.PeftModel.from_pretrained(Net(), str(tmp_path / "lora"))
    torch.testing.assert_close(run(model), run(merged), atol=1e-5, rtol=1e-5)


def test_keys_that_are_missing_or_too_many_are_all_listed(tmp_path):
    state, _, _ = example(LoRA(rank=2, targets=["blocks.*"], train_also=["embed.*"]))
    save_peft(state, Net(), tmp_path / "lora")
    file = tmp_path / "lora" / PEFT_WEIGHTS
    tensors = load_file(file)
    for name in ("blocks.0.qkv.lora_A.weight", "blocks.1.out.lora_B.weight", "embed.bias"):
        tensors[f"base_model.model.{name}x"] = tensors.pop(f"base_model.model.{name}")
    save_file(tensors, file)
    with pytest.raises(UserError, match="nothing was loaded") as caught:
        load_peft(tmp_path / "lora", Net())
    for name in ("blocks.0.qkv.lora_A.weight", "blocks.1.out.lora_B.weight", "embed.bias"):
        assert f"missing: base_model.model.{name}\n" in f"{caught.value}\n"
        assert f"unmatched: base_model.model.{name}x\n" in f"{caught.value}\n"


def test_files_that_are_no_plain_lora_are_refused(tmp_path):
    folder = tmp_path / "lora"
    with pytest.raises(UserError, match=f"{PEFT_CONFIG} and {PEFT_WEIGHTS} are missing"):
        load_peft(folder, Net())
    state, _, _ = example(LoRA(rank=2, targets=["out"]))
    save_peft(state, Net(), folder)
    config = json.loads((folder / PEFT_CONFIG).read_text())
    (folder / PEFT_CONFIG).write_text(json.dumps(config | {"init_lora_weights": "pissa"}))
    with pytest.raises(UserError, match="another method than plain LoRA"):
        load_peft(folder, Net())
    (folder / PEFT_CONFIG).write_text(json.dumps(config | {"target_modules": "nothing"}))
    with pytest.raises(UserError, match=r"cannot be loaded by peft: .*nothing"):
        load_peft(folder, Net())


def test_a_lora_that_peft_scales_by_the_root_of_the_rank_is_read_with_that_scale(tmp_path):
    state, base, _ = example(LoRA(rank=4, alpha=4.0, targets=["out"]))
    save_peft(state, Net(), tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / PEFT_CONFIG).read_text())
    (tmp_path / "lora" / PEFT_CONFIG).write_text(json.dumps(config | {"use_rslora": True}))
    again = load_peft(tmp_path / "lora", Net())
    delta = [merge(base, one)["out.weight"] - base["out.weight"] for one in (state, again)]
    torch.testing.assert_close(delta[1], 2 * delta[0])


def test_whole_parameters_that_peft_cannot_name_are_refused(tmp_path):
    for patterns, words in (
        (["blocks.0.norm.bias"], "part of a module: blocks.0.norm.bias"),
        (["out.*"], "peft would take blocks.0.out for out"),
    ):
        state, _, _ = example(LoRA(targets=["blocks.*.qkv"], train_also=patterns))
        with pytest.raises(UserError, match=words):
            save_peft(state, Net(), tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
