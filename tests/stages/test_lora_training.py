"""A LoRA through the stages: what trains, what stays, what a checkpoint holds, and how it is read and resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lora_run import SPEC, STEPS, STOP, fit, lora, new_stage
from safetensors.torch import load_file
from stage_data import CHANNELS, denoiser, write_parent

from flowact.autoencoders import CausalVideoAutoencoder
from flowact.checkpoints import load_into, open_checkpoint
from flowact.errors import UserError
from flowact.models import FullFinetune
from flowact.models.adapters import linear_names
from flowact.registry import instantiate
from flowact.stages import AdamW, AutoencoderTraining, ChunkwiseDiffusionForcing, FlowMatchingPretraining, SelfForcing, StepDistillation
from flowact.strategies.deepspeed import DeepSpeed

STILL = AdamW(lr=0.0, weight_decay=0.0)


@pytest.fixture
def parent(tmp_path):
    model = denoiser(seed=1)
    ema = {name: value.detach() + 0.01 for name, value in model.named_parameters()}
    return write_parent(tmp_path / "parent", model, ema)


def parent_weights(parent):
    return open_checkpoint(parent).weights()


def plain_state(stage):
    """Weights of the trained network by the names of the plain one, low-rank parts left out."""
    return {name.replace(".base_layer.", "."): value.detach() for name, value in stage.denoiser.named_parameters() if ".lora_" not in name}


def assert_same(first: Path, second: Path) -> None:
    one, two = open_checkpoint(first), open_checkpoint(second)
    assert one.step == two.step
    for ema in (False, True):
        assert one.trained(ema).keys() == two.trained(ema).keys()
        assert all(torch.equal(value, two.trained(ema)[name]) for name, value in one.trained(ema).items())


STRATEGIES = {
    "plain": {},
    "plain, bf16-mixed": {"precision": "bf16-mixed"},
    "ZeRO": {"strategy": lambda: DeepSpeed(stage=2)},
    "ZeRO, bf16-mixed": {"strategy": lambda: DeepSpeed(stage=2), "precision": "bf16-mixed"},
    "ZeRO-3": {"strategy": lambda: DeepSpeed(stage=3)},
}


def options_of(name):
    return {key: value() if callable(value) else value for key, value in STRATEGIES[name].items()}


@pytest.mark.parametrize("name", STRATEGIES)
def test_only_what_is_named_trains_and_the_checkpoint_is_small(name, parent, tmp_path):
    stage = new_stage(parent)
    fit(stage, tmp_path / "run", **options_of(name))
    base, checkpoint = parent_weights(parent), open_checkpoint(tmp_path / "run")
    assert checkpoint.is_lora
    assert checkpoint.weights_name == "adapter.safetensors"
    layers = [layer for layer in linear_names(denoiser()) if layer != "out"]
    wanted = {layer + end for layer in layers for end in (".lora_A.weight", ".lora_B.weight", ".alpha")} | {"out.weight", "out.bias"}
    held = checkpoint.trained(ema=False)
    assert held.keys() == wanted
    assert checkpoint.ema().keys() == {name for name in wanted if not name.endswith(".alpha")}
    assert all(value.dtype == torch.float32 for value in (held | checkpoint.ema()).values())
    assert all(bool(held[layer + ".lora_B.weight"].any()) for layer in layers), "every layer that was named has learnt something"
    assert not torch.equal(held["out.weight"], base["out.weight"])
    assert any(not torch.equal(checkpoint.ema()[name], held[name]) for name in checkpoint.ema())
    if name != "ZeRO-3":
        live = plain_state(stage)
        assert all(torch.equal(live[name], value) for name, value in base.items() if not name.startswith("out."))
    merged = checkpoint.weights(ema=False)
    assert merged.keys() == base.keys()
    for key, value in base.items():
        changed = key.startswith("out.") or key.removesuffix(".weight") in layers
        assert torch.equal(merged[key], value) != changed, key


def test_master_weights_are_fp32_under_bf16_true(parent, tmp_path):
    stage = new_stage(parent)
    fit(stage, tmp_path / "run", precision="bf16-true", strategy=DeepSpeed(stage=2))
    assert next(stage.denoiser.parameters()).dtype == torch.bfloat16
    held = open_checkpoint(tmp_path / "run").trained(ema=False)
    ups = [value for name, value in held.items() if name.endswith("lora_B.weight")]
    assert all(value.dtype == torch.float32 and not torch.equal(value, value.bfloat16().float()) for value in ups)
    base, merged = parent_weights(parent), open_checkpoint(tmp_path / "run").weights()
    assert all(torch.equal(merged[name], value) for name, value in base.items() if name.endswith(".bias") and not name.startswith("out."))


def test_before_the_first_step_the_weights_are_those_of_the_base(parent, tmp_path):
    fit(new_stage(parent, optimizer=STILL), tmp_path / "run")
    merged = open_checkpoint(tmp_path / "run").weights(ema=False)
    assert all(torch.equal(merged[name], value) for name, value in parent_weights(parent).items())


def test_merged_weights_compute_what_the_trained_network_computes(parent, tmp_path):
    outputs = []

    class Watch(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            outputs.append(validate(pl_module))

    def validate(stage):
        batch = trained.trainer.datamodule.val_dataloader().dataset[0]
        stage.eval()
        torch.manual_seed(0)
        with torch.no_grad():
            return stage.flow_matching(batch)[0]

    trained = new_stage(parent)
    fit(trained, tmp_path / "run", callbacks=(Watch(),))
    plain = new_stage(None, adapter=None)
    load_into(plain.denoiser, open_checkpoint(tmp_path / "run").weights(ema=False))
    torch.testing.assert_close(validate(plain), outputs[0], atol=1e-5, rtol=1e-5)


def test_the_recipe_without_an_adapter_is_the_full_finetune(parent, tmp_path):
    for name, adapter in (("without", None), ("full", FullFinetune())):
        fit(new_stage(parent, adapter=adapter), tmp_path / name)
    assert_same(tmp_path / "without", tmp_path / "full")
    checkpoint = open_checkpoint(tmp_path / "without")
    assert (checkpoint.is_lora, checkpoint.weights_name) == (False, "denoiser.safetensors")
    assert checkpoint.trained().keys() == denoiser().state_dict().keys()
    assert "base" not in checkpoint.lineage


@pytest.mark.parametrize("cls", [FlowMatchingPretraining, ChunkwiseDiffusionForcing, SelfForcing, StepDistillation])
def test_every_stage_takes_an_adapter_and_frozen_copies_stay_plain(cls, parent, tmp_path):
    if cls is FlowMatchingPretraining:
        stage = cls(denoiser(), chunk_frames=2, num_chunks=2, optimizer=AdamW(lr=1e-2, warmup_steps=1), adapter=lora())
        stage.recipe = {"init_from": str(parent), "model": {"init_args": {"denoiser": SPEC}}}
    else:
        stage = new_stage(parent, cls)
    fit(stage, tmp_path / "run", 2)
    base = parent_weights(parent)
    if hasattr(stage, "intermediate"):
        frozen = stage.intermediate.network.state_dict()
        assert frozen.keys() == base.keys()
        assert all(torch.equal(frozen[name], value) for name, value in base.items())
    assert any(not torch.equal(value, base[name]) for name, value in open_checkpoint(tmp_path / "run").weights().items())


# --- mistakes


def test_a_lora_without_a_parent_is_refused(tmp_path):
    with pytest.raises(UserError, match="LoRA trains beside the frozen weights of a checkpoint: set init_from"):
        fit(new_stage(None), tmp_path / "run")


def test_a_wrong_pattern_is_refused_before_training(parent, tmp_path):
    with pytest.raises(UserError, match=r"'double_block\.\*' matches no linear layer of the network. Did you mean double_blocks"):
        fit(new_stage(parent, adapter=lora(targets=["double_block.*"])), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_replace_its_own_base(parent, tmp_path):
    fit(new_stage(parent, adapter=None), tmp_path / "full", 1)
    with pytest.raises(UserError, match=r"would replace .*full, whose weights they need"):
        fit(new_stage(tmp_path / "full"), tmp_path / "full", 1)


def test_an_autoencoder_stage_has_no_adapter():
    """Its statistics change outside of any parameter, so what is trained would not be all that a checkpoint has to hold."""
    assert AutoencoderTraining(CausalVideoAutoencoder(latent_channels=CHANNELS, width=8)).adapter.keeps_base is False


# --- reading


def test_a_next_stage_starts_from_merged_weights_and_a_lora_may_stand_on_a_lora(parent, tmp_path):
    fit(new_stage(parent), tmp_path / "first", 2)
    first = open_checkpoint(tmp_path / "first")
    following = new_stage(tmp_path / "first", SelfForcing)
    fit(following, tmp_path / "second", 2)
    second = open_checkpoint(tmp_path / "second")
    assert second.base().path == tmp_path / "first"
    assert [ancestor["weights_sha256"] for ancestor in second.lineage["ancestors"]] == [open_checkpoint(parent).weights_sha256, first.weights_sha256]
    frozen = following.intermediate.network.state_dict()
    assert all(torch.equal(frozen[name], value) for name, value in first.weights().items())
    network = instantiate(SPEC, "denoisers")
    assert len(load_into(network, second.weights()).matched) == len(network.state_dict())


def test_a_base_that_was_moved_is_found_beside_and_otherwise_asked_for(parent, tmp_path):
    fit(new_stage(parent), tmp_path / "run", 1)
    checkpoint = open_checkpoint(tmp_path / "run")
    before = checkpoint.weights()
    (tmp_path / "elsewhere").mkdir()
    moved = parent.rename(tmp_path / "elsewhere" / "renamed")
    with pytest.raises(UserError, match=r"step 7.*not in .*parent, which holds no checkpoint, nor beside .*Put the folder, or a link to it, beside"):
        checkpoint.weights()
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.weights(base=moved).items())
    (tmp_path / "link").symlink_to(moved)
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.weights().items())


def test_another_checkpoint_in_the_place_of_the_base_is_refused(parent, tmp_path):
    fit(new_stage(parent), tmp_path / "run", 1)
    checkpoint = open_checkpoint(tmp_path / "run")
    shutil.rmtree(parent)
    other = denoiser(seed=2)
    write_parent(parent, other, {name: value.detach() for name, value in other.named_parameters()})
    with pytest.raises(UserError, match="parent, which holds another checkpoint"):
        checkpoint.weights()
    with pytest.raises(UserError, match="parent, which holds another checkpoint"):
        checkpoint.base(parent)


# --- resuming


@pytest.mark.parametrize("name", ["plain", "ZeRO, bf16-mixed"])
def test_stop_and_resume_equals_never_stopping(name, parent, tmp_path):
    fit(new_stage(parent), tmp_path / "whole", **options_of(name))
    fit(new_stage(parent), tmp_path / "parts", STOP, **options_of(name))
    assert open_checkpoint(tmp_path / "parts").step == STOP
    resumed = new_stage(parent)
    fit(resumed, tmp_path / "parts", resume=True, **options_of(name))
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert open_checkpoint(tmp_path / "parts").lineage["base"] == open_checkpoint(tmp_path / "whole").lineage["base"]
    base, live = parent_weights(parent), plain_state(resumed)
    assert all(torch.equal(live[name], value) for name, value in base.items() if not name.startswith("out."))


@pytest.mark.parametrize("name", ["plain", "ZeRO"])
def test_the_engine_leaves_the_base_out(name, parent, tmp_path):
    fit(new_stage(parent), tmp_path / "run", 1, **options_of(name))
    engine = open_checkpoint(tmp_path / "run").engine
    file = engine if engine.is_file() else next(engine.rglob("*model_states.pt"))
    content = torch.load(file, weights_only=True)
    names = set(content.get("state_dict") or content["module"])
    assert names
    assert {name for name in names if ".lora_" not in name} == {"denoiser.out.weight", "denoiser.out.bias"}


@pytest.mark.parametrize("name", ["plain", "ZeRO"])
def test_a_run_does_not_go_on_beside_other_weights(name, parent, tmp_path):
    fit(new_stage(parent), tmp_path / "run", 1, **options_of(name))
    other = write_parent(tmp_path / "other", denoiser(seed=2))
    with pytest.raises(UserError, match=r"other does not hold the weights beside which this run was trained"):
        fit(new_stage(other), tmp_path / "run", 2, resume=True, **options_of(name))


def test_two_processes_train_save_and_resume_a_lora(parent, tmp_path, run_script):
    """Under ZeRO 2, with windows of their own: the checkpoint is whole, and resuming is exact."""
    script = Path(__file__).with_name("lora_run.py")
    run_script(script, tmp_path, timeout=240)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    checkpoint, base = open_checkpoint(tmp_path / "whole"), parent_weights(parent)
    assert checkpoint.step == STEPS
    merged = checkpoint.weights()
    changed = {name for name, value in base.items() if not torch.equal(value, merged[name])}
    assert changed == {f"{layer}.weight" for layer in linear_names(denoiser())} | {"out.bias"}
    alone = load_file(checkpoint.path / "adapter.safetensors")
    fit(new_stage(parent), tmp_path / "one", strategy=DeepSpeed(stage=2))
    assert alone.keys() == load_file(tmp_path / "one" / "adapter.safetensors").keys()
    assert not torch.equal(alone["out.weight"], load_file(tmp_path / "one" / "adapter.safetensors")["out.weight"]), "two processes see other windows"
