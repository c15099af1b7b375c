"""LoRA as tensors: merging, extracting and other programs' names are each other's inverse, and nothing is dropped in silence."""

from __future__ import annotations

import pytest
import torch

from flowact.errors import UserError
from flowact.lora import extract, from_comfyui, largest_difference, merge, nearest, split, to_comfyui

LAYERS = ("blocks.0.qkv", "blocks.1.qkv", "out")


def tensor(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def base():
    weights = {f"{layer}.weight": tensor(7, 5, seed=i) for i, layer in enumerate(LAYERS)}
    return weights | {"out.bias": tensor(7, seed=9), "norm.weight": tensor(5, seed=8), "table": tensor(2, 5, seed=7)}


def lora(rank=2, alpha=3.0, layers=LAYERS):
    state = {}
    for i, layer in enumerate(layers):
        state |= {f"{layer}.lora_A.weight": tensor(rank, 5, seed=20 + i), f"{layer}.lora_B.weight": tensor(7, rank, seed=30 + i)}
        state[f"{layer}.alpha"] = torch.tensor(alpha)
    return state


WHOLE = {"out.bias": tensor(7, seed=40), "norm.weight": tensor(5, seed=41), "table": tensor(2, 5, seed=42)}


def test_a_layer_changes_by_alpha_over_rank_times_b_a_and_a_whole_tensor_replaces():
    merged = merge(base(), lora() | WHOLE)
    assert merged.keys() == base().keys()
    expected = base()["out.weight"] + 3.0 / 2 * tensor(7, 2, seed=32) @ tensor(2, 5, seed=22)
    torch.testing.assert_close(merged["out.weight"], expected)
    assert torch.equal(merged["table"], WHOLE["table"])
    only = merge(base(), lora(layers=LAYERS[:1]))
    assert all(torch.equal(only[name], value) for name, value in base().items() if name != "blocks.0.qkv.weight")


def test_what_changes_is_fp32_and_the_base_stays():
    """In bfloat16 a change of less than a 256th of a weight would be rounded away."""
    weights = {name: value.bfloat16() for name, value in base().items()}
    before = {name: value.clone() for name, value in weights.items()}
    state = lora(layers=LAYERS[:1])
    state["blocks.0.qkv.lora_B.weight"] *= 1e-4
    merged = merge(weights, state)
    delta = 3.0 / 2 * state["blocks.0.qkv.lora_B.weight"] @ state["blocks.0.qkv.lora_A.weight"]
    torch.testing.assert_close(merged["blocks.0.qkv.weight"] - weights["blocks.0.qkv.weight"].float(), delta, atol=1e-6, rtol=1e-3)
    assert {name for name, value in merged.items() if value.dtype == torch.float32} == {"blocks.0.qkv.weight"}
    assert all(torch.equal(value, before[name]) for name, value in weights.items())


def test_everything_that_does_not_fit_is_listed_at_once():
    state = lora() | lora(layers=("block.0.qkv",)) | {"nrm.weight": tensor(5), "table": tensor(3, 5)}
    state["out.lora_B.weight"] = tensor(6, 2)
    with pytest.raises(UserError, match="nothing was merged") as caught:
        merge(base(), state)
    text = str(caught.value)
    assert "not in the base: block.0.qkv.weight. Did you mean blocks.0.qkv.weight" in text
    assert "not in the base: nrm.weight. Did you mean norm.weight" in text
    assert "shape of table: (3, 5) in the LoRA, (2, 5) in the base" in text
    assert "shape of out.weight: (6, 5) in the LoRA, (7, 5) in the base" in text


def test_a_layer_with_a_part_missing_is_refused():
    state = lora()
    del state["out.alpha"], state["blocks.0.qkv.lora_B.weight"]
    with pytest.raises(UserError, match=r"incomplete:\n  missing: blocks.0.qkv.lora_B.weight\n  missing: out.alpha$"):
        split(state)
    with pytest.raises(UserError, match=r"shapes of out: B \(7, 3\) and A \(2, 5\)"):
        split(lora() | {"out.lora_B.weight": tensor(7, 3)})


# --- ComfyUI


def test_comfyui_names_are_read_back_as_what_was_written():
    state = lora() | WHOLE
    written = to_comfyui(state, base())
    assert {"diffusion_model.out.lora_A.weight", "diffusion_model.out.lora_B.weight", "diffusion_model.out.alpha"} <= written.keys()
    assert {"diffusion_model.out.diff_b", "diffusion_model.norm.diff", "diffusion_model.table.diff"} <= written.keys()
    torch.testing.assert_close(written["diffusion_model.table.diff"], WHOLE["table"] - base()["table"])
    again = from_comfyui(written, base())
    assert again.keys() == state.keys()
    assert largest_difference(state, again, base()) < 1e-6


def test_a_layer_without_alpha_has_its_rank_as_alpha():
    written = to_comfyui(lora(alpha=2.0), base())
    without = {name: value for name, value in written.items() if not name.endswith(".alpha")}
    assert largest_difference(lora(alpha=2.0), from_comfyui(without, base()), base()) == 0.0


def test_keys_of_another_network_are_all_listed():
    written = to_comfyui(lora() | WHOLE, base())
    written["transformer.x.lora_A.weight"] = written.pop("diffusion_model.norm.diff")
    written["diffusion_model.nrm.diff"] = tensor(5)
    written["diffusion_model.table.diff"] = tensor(4)
    other = {name.replace("blocks.", "layers."): value for name, value in written.items()}
    with pytest.raises(UserError, match="nothing was loaded") as caught:
        from_comfyui(other, base())
    for words in (
        "unmatched: transformer.x.lora_A.weight (keys begin with diffusion_model.)",
        "unmatched: diffusion_model.nrm.diff. Did you mean norm.diff",
        "unmatched: diffusion_model.table.diff",
        "not in the base: layers.0.qkv.weight",
        "not in the base: layers.1.qkv.weight",
    ):
        assert words in str(caught.value)


def test_two_loras_with_other_names_are_not_compared():
    with pytest.raises(UserError, match=r"only in one of the two: out.alpha"):
        largest_difference(lora(), lora(layers=LAYERS[:2]), base())
    other = lora()
    other["out.lora_A.weight"] = other["out.lora_A.weight"] * 2
    assert largest_difference(lora(), other, base()) > 0.1


# --- extraction


@pytest.mark.parametrize("rank", [2, 3])
def test_a_merged_lora_is_recovered(rank):
    tuned = merge(base(), lora(rank=2))
    done = extract(base(), tuned, LAYERS, rank)
    assert done.errors.keys() == set(LAYERS)
    assert all(error < 1e-5 for error in done.errors.values())
    again = merge(base(), done.state)
    assert all((again[name] - tuned[name]).norm() < 1e-4 * tuned[name].norm() for name in tuned)


def test_the_error_is_what_the_rank_cannot_hold_and_no_change_of_the_rank_is_nearer():
    delta = tensor(7, 5)
    pair, error = nearest(delta, 2)
    values = torch.linalg.svdvals(delta)
    assert error == pytest.approx(float(values[2:].norm() / values.norm()), rel=1e-5)
    assert float((delta - pair.delta()).norm() / delta.norm()) == pytest.approx(error, rel=1e-4)
    assert (pair.rank, pair.shape) == (2, (7, 5))
    assert nearest(delta, 99)[0].rank == 5


def test_layers_that_are_the_same_are_left_out():
    done = extract(base(), merge(base(), lora(layers=LAYERS[:1])), LAYERS, 2)
    assert set(done.errors) == {LAYERS[0]}
    assert set(split(done.state)[0]) == {LAYERS[0]}


def test_tensors_that_differ_in_their_number_type_only_are_the_same():
    weights = {name: value.bfloat16() for name, value in base().items()}
    tuned = {name: value.float() for name, value in weights.items()}
    tuned["out.weight"] = tuned["out.weight"] + 1e-4 * tensor(7, 5)
    done = extract(weights, tuned, LAYERS, 5)
    assert done.errors.keys() == {"out"}
    torch.testing.assert_close(merge(weights, done.state)["out.weight"], tuned["out.weight"], atol=1e-6, rtol=1e-6)


def test_other_tensors_that_differ_are_refused_kept_or_dropped():
    tuned = merge(base(), lora() | WHOLE)
    with pytest.raises(UserError, match=r"differs: out.bias\n  differs: norm.weight\n  differs: table\nSay whether"):
        extract(base(), tuned, LAYERS, 2)
    kept = extract(base(), tuned, LAYERS, 2, others="keep")
    assert all(torch.equal(merge(base(), kept.state)[name], value) for name, value in WHOLE.items())
    dropped = extract(base(), tuned, LAYERS, 2, others="drop")
    assert dropped.left_out == tuple(WHOLE)
    assert all(torch.equal(merge(base(), dropped.state)[name], base()[name]) for name in WHOLE)


def test_networks_that_are_not_alike_and_empty_differences_are_refused():
    other = base() | {"more": tensor(2), "table": tensor(3, 5)}
    with pytest.raises(UserError, match=r"only in the tuned network: more\n  shape of table: \(2, 5\) and \(3, 5\)"):
        extract(base(), other, LAYERS, 2)
    with pytest.raises(UserError, match="nothing to extract"):
        extract(base(), base(), LAYERS, 2)
    with pytest.raises(UserError, match="a rank of 0"):
        extract(base(), base(), LAYERS, 0)
