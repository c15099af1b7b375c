"""Plans against reality: a debug stage that is built and trained for a step, and the figures that the field publishes."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowact.autoencoders import CausalVideoAutoencoder, save_autoencoder
from flowact.budget import DEVICES, UTILISATION, Wishes, find_device, make_plan, records
from flowact.budget.accelerator import Meter
from flowact.budget.advice import advise
from flowact.budget.costs import Precision, Sizes, evaluation_cost
from flowact.budget.facts import outline_of_autoencoder
from flowact.budget.source import Source
from flowact.budget.states import Strategy
from flowact.data.schema import ColumnInfo, write_column
from flowact.devices import START_SECONDS, Device, Work
from flowact.errors import UserError
from flowact.recipe import load_recipe
from flowact.registry import load_class
from flowact.signatures import build
from flowact.types import FULL_VISIBILITY, Batch, Segment, WindowLayout

ROOT = Path(__file__).parents[2]
DEBUG, SMALL = "debug/diffusion_forcing.yaml", Wishes(size=(64, 64), text_tokens=8)
SHAPES = {"latents.npy": [96, 4, 4], "text.npy": [8, 256], "audio.npy": [127]}
H100 = DEVICES["h100"]


@functools.cache  # plans are frozen
def plan_of(recipe, *overrides, wishes=SMALL, device=H100, **options):
    return make_plan(load_recipe(recipe, overrides), device, wishes=wishes, **options)


@pytest.fixture(scope="module")
def debug():
    return plan_of(DEBUG, device=replace(H100, is_cpu=True))


# --- against a real step


@pytest.fixture(scope="module")
def stage():
    """The stage of the debug recipe, on this CPU, after a training step of its own on random windows."""
    model = load_recipe(DEBUG).config["model"]
    torch.manual_seed(0)
    stage = build(load_class(model["class_path"]), model["init_args"]).train()
    frames, batch = stage.history_frames + 9, 2
    text = torch.randn(batch, 1, 8, 256)
    index = torch.zeros(batch, frames, dtype=torch.long)
    windows = Batch(torch.randn(batch, frames, 96, 4, 4), torch.randn(batch, 1, 96, 4, 4), torch.randn(batch, frames, 4, 127), text, index)
    optimizer = stage.optimizer.build(stage.trained_module())
    with Meter([*stage.parameters(), *stage.buffers(), *(value for value in vars(windows).values() if isinstance(value, torch.Tensor))]) as meter:
        _, _, loss = stage.flow_matching(windows)
        kept = meter.alive
    loss.backward()
    optimizer.step()
    return stage, windows, optimizer, kept


def test_parameters_are_those_of_the_real_stage(debug, stage):
    (role,) = debug.roles
    assert role.parameters == role.trained == sum(parameter.numel() for parameter in stage[0].parameters())
    assert role.averaged


def test_saved_activations_are_those_of_the_real_forward_pass(debug, stage):
    network, windows = stage[0].denoiser, stage[1]
    sizes = Sizes((96, 4, 4), (8, 256), (4, 127))
    layout = WindowLayout((Segment("reference", 1, -13), *(Segment("long", 1, 3 * i - 10) for i in range(3)), Segment("short", 1, -1),
                           *(Segment("stream", 3, 3 * k) for k in range(3))))  # fmt: skip
    latents, sigma, conditions = sizes.window(layout, windows.latents_BFCHW.shape[0], False, torch.float32)
    text, audio = torch.zeros(conditions.text_BSLD.shape), torch.zeros(conditions.audio_BFAD.shape)
    inputs = torch.zeros(latents.shape), torch.zeros(sigma.shape), replace(conditions, text_BSLD=text, audio_BFAD=audio)
    with Meter([*network.parameters(), *inputs[:2], text, audio]) as meter:
        result = network(*inputs, layout)
    assert result.requires_grad
    assert debug.training.saved_bytes_per_sample["none"] * 2 == meter.alive
    assert meter.alive == pytest.approx(stage[3], rel=0.1)  # the whole step also holds targets and noise


def test_the_optimizer_is_the_real_one(debug, stage):
    held = sum(value.nbytes for state in stage[2].state.values() for name, value in state.items() if name != "step")
    assert debug.memory.states.optimizer == held
    assert debug.memory.states.gradients == sum(parameter.grad.nbytes for parameter in stage[0].parameters())
    assert debug.memory.states.weights == sum(parameter.nbytes for parameter in stage[0].parameters())


def test_the_peak_is_the_sum_of_its_parts(debug):
    for memory in (debug.memory, *debug.memory_by_zero):
        parts = dataclasses.asdict(memory.states)
        parts.pop("zero")
        assert memory.peak_bytes == sum(parts.values()) + memory.working_bytes
    assert debug.memory.working_bytes >= 2 * debug.training.saved_bytes_per_sample["none"]


# --- what it says


def test_tokens_are_those_of_the_window(debug):
    assert [(s.kind, s.visual, s.audio, s.text) for s in debug.tokens.segments] == [
        *[(kind, 16, 4, 8) for kind in ("reference", "long", "long", "long", "short")],
        *[("stream", 48, 12, 8)] * 3,
    ]
    memory, stream = 5 * 28, 3 * 68
    assert (debug.tokens.memory, debug.tokens.stream) == (memory, stream)
    assert debug.tokens.attended_pairs == memory**2 + stream * (memory + stream)


def test_keeping_memory_splits_the_window(debug):
    whole, before, alone = (evaluation.flops for evaluation in debug.evaluations)
    assert before + alone == pytest.approx(whole, rel=1e-6)
    assert debug.stream.flops_per_chunk == whole  # with one micro-step memory is computed in the same pass
    assert not debug.stream.reuses_memory


def test_a_stream_with_micro_steps_keeps_memory():
    plan = plan_of(DEBUG, micro_steps=4, guidance=2.0)
    whole, before, alone = (evaluation.flops for evaluation in plan.evaluations)
    assert plan.stream.reuses_memory
    assert plan.stream.evaluations_per_chunk == 3 * 4 * 2
    assert plan.stream.flops_per_chunk == pytest.approx(2 * (4 * before + alone))
    assert plan.stream.flops_per_chunk_without_reuse == pytest.approx(8 * whole)
    assert (plan.stream.audio_lookahead_seconds, plan.stream.prompt_to_motion_seconds) == (1.44, 1.44)


def test_a_stage_with_a_frozen_copy_shows_it():
    plan = plan_of("debug/self_forcing.yaml")
    assert [(role.name, bool(role.trained)) for role in plan.roles] == [("denoiser", True), ("intermediate", False)]
    assert plan.memory.states.frozen == plan.memory.states.weights
    assert {(e.role, e.gradient) for e in plan.training.evaluations} == {("denoiser", True), ("intermediate", False)}
    assert plan.training.flops_per_sample > plan_of(DEBUG).training.flops_per_sample


def test_an_adapter_trains_a_few_weights():
    pytest.importorskip("peft")
    plan, whole = plan_of("debug/lora.yaml"), plan_of(DEBUG)
    (role,) = plan.roles
    assert role.parameters - role.trained == whole.roles[0].parameters
    assert plan.memory.states.optimizer == 8 * role.trained < whole.memory.states.optimizer
    assert plan.training.flops_per_sample < whole.training.flops_per_sample  # frozen weights get no gradient


def test_batch_accumulation_and_processes_multiply_a_step():
    one = plan_of(DEBUG)
    many = plan_of(DEBUG, "data.init_args.batch_size=4", "trainer.accumulate_grad_batches=3", processes=5)
    assert many.training.flops_per_sample == pytest.approx(one.training.flops_per_sample, rel=1e-3)
    assert many.training.flops_per_step == pytest.approx(one.training.flops_per_step * 2 * 3 * 5, rel=1e-3)
    assert many.strategy == Strategy(processes=5, zero=None, overlaps=False)


def test_the_strategy_is_that_of_the_recipe_unless_told():
    source = Source(load_recipe("quickstart/pretraining.yaml"))
    assert source.strategy(None, None) == (Strategy(processes=2, zero=2, bucket_size=50_000_000, overlaps=False), [])
    assert source.strategy(7, 3)[0] == Strategy(processes=7, zero=3, bucket_size=50_000_000, overlaps=False)
    source = Source(load_recipe(DEBUG, ["trainer.devices=auto"]))
    assert source.strategy(None, None) == (Strategy(zero=None, overlaps=False), ["trainer.devices is 'auto', taken as one process (--processes)"])


def test_what_a_plan_need_not_build_is_left_out():
    overrides = [f"model.init_args.denoiser.init_args.{option}" for option in ("compile_blocks=true", "attention=flex")]
    assert plan_of(DEBUG, *overrides).evaluations == plan_of(DEBUG).evaluations


# --- where sizes come from


def columns(folder: Path) -> str:
    """A data set of which only the descriptions of its columns are there."""
    autoencoder = CausalVideoAutoencoder(latent_channels=96, width=8)
    for name, encoder in (("latents", "CausalVideoAutoencoder"), ("text", "HashedText"), ("audio", "LogMel")):
        shapes = {f"{name}.npy": SHAPES[f"{name}.npy"]}
        info = ColumnInfo(name, {"class_path": encoder, "init_args": {}}, "0123abcd", shapes, temporal_stride=4 if name == "latents" else None)
        path = folder / "shards" / "columns" / info.folder_name
        path.mkdir(parents=True)
        write_column(path, info)
        if name == "latents":
            save_autoencoder(autoencoder, autoencoder.spec, path / "autoencoder")
    return f"vars.run={folder}"


def test_data_that_are_there_leave_nothing_to_assume(tmp_path):
    plan = plan_of(DEBUG, columns(tmp_path), wishes=None)
    assert plan.assumed == ()
    assert plan.geometry.latent == (96, 4, 4)
    assert plan.geometry.picture == (64, 64)
    assert plan.evaluations == plan_of(DEBUG).evaluations
    autoencoder = plan.roles[-1]
    assert autoencoder.name == "autoencoder"
    assert autoencoder.parameters == sum(p.numel() for p in CausalVideoAutoencoder(96, 8).parameters())
    assert plan.stream.decode_flops_per_chunk > 0


def test_a_wish_stands_in_front_of_the_data(tmp_path):
    plan = plan_of(DEBUG, columns(tmp_path), wishes=Wishes(size=(128, 64)))
    assert plan.geometry.latent == (96, 8, 4)
    assert plan.tokens.segments[0].text == 8


def test_what_was_assumed_is_said():
    plan = plan_of(DEBUG, wishes=Wishes(size=(64, 64)))
    text = " ".join(plan.assumed)
    assert "no latents column" in text
    assert "CausalVideoAutoencoder: strides 4x16" in text
    assert "captions have 512 tokens" in text
    assert "decoding is in no figure" in text


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (Wishes(), r"could not be read \(.*no latents column.*--size 480x832"),
        (Wishes(size=(70, 64)), r"--size 70x64: does not divide into latent cells of 16 pixels; the nearest size is 64x64"),
        (Wishes(size=(64, 64), autoencoder="AutoencoderKLWann"), r"Did you mean AutoencoderKLWan\b"),
        (Wishes(size=(64, 64), autoencoder="nowhere/vae"), r"nowhere/vae holds no autoencoder"),
    ],
)
def test_sizes_that_are_not_known_or_do_not_fit_are_told(wishes, message):
    pytest.importorskip("diffusers")
    with pytest.raises(UserError, match=message):
        plan_of(DEBUG, wishes=wishes)


def test_an_unknown_latent_space_asks_for_its_strides():
    override = "model.init_args.denoiser.init_args.latent_channels=7"
    with pytest.raises(UserError, match="cell of 7 latent channels has; give --strides"):
        plan_of(DEBUG, override)
    assert plan_of(DEBUG, override, wishes=replace(SMALL, strides=(4, 8))).geometry.latent == (7, 8, 8)


def test_a_patch_that_does_not_divide_the_picture_is_told():
    with pytest.raises(UserError, match=r"latents of 5x5 cells do not divide into patches of side 2"):
        plan_of(DEBUG, "model.init_args.denoiser.init_args.patch=2", wishes=replace(SMALL, size=(80, 80)))


def test_a_stage_without_denoiser_has_no_plan():
    with pytest.raises(UserError, match="AutoencoderTraining does not"):
        plan_of("quickstart/autoencoder.yaml")


# --- published figures


def test_the_decoder_of_wan_computes_what_was_published():
    pytest.importorskip("diffusers")
    model = outline_of_autoencoder("AutoencoderKLWan")
    assert (model.temporal_stride, model.spatial_stride, model.latent_channels) == (4, 8, 16)
    with torch.no_grad(), Meter(model.parameters()) as meter:
        _, state = model.decode_stream(torch.empty(1, 1, 16, 60, 104, device="meta"))
        before = meter.flops.total
        model.decode_stream(torch.empty(1, 1, 16, 60, 104, device="meta"), state)
    assert meter.flops.total - before == pytest.approx(13.55e12, rel=0.01)


def test_a_video_token_of_wan_costs_what_is_published(monkeypatch):
    """2 L (6 d^2 + 2 d f) for the maps, 4 L d for each key that it sees (21 latent frames of 832x480, and 512 of text)."""
    monkeypatch.syspath_prepend(str(ROOT / "plugins" / "flowact-wan" / "src"))
    from flowact_wan import WanDenoiser

    with torch.device("meta"):
        model = WanDenoiser(latent_channels=16, text_width=4096, audio_width=8, audio_every=0)
    layout = WindowLayout((Segment("stream", 21, 0),), FULL_VISIBILITY)
    cost = evaluation_cost(model, Sizes((16, 60, 104), (512, 4096), (4, 8)), layout, Precision("bf16-mixed"))
    tokens, layers, width, hidden = 21 * 1560, 30, 1536, 8960
    assert cost.flops.linear / tokens == pytest.approx(2 * layers * (6 * width**2 + 2 * width * hidden), rel=0.02)
    assert cost.flops.attention / tokens == pytest.approx(4 * layers * width * (tokens + 512), rel=0.02)
    assert cost.flops.training == pytest.approx(949e12, rel=0.02)
    assert cost.plan.num_tokens == tokens


# --- devices


def test_a_device_takes_the_longest_of_three():
    device = Device("test", 100.0, 10.0, bytes_per_second=50.0)
    assert device.seconds(Work(flops=40), torch.bfloat16, 0.4) == pytest.approx(1.0)
    assert device.seconds(Work(flops=40), torch.float32, 0.4) == pytest.approx(10.0)
    assert device.seconds(Work(flops=40, num_bytes=100), torch.bfloat16, 0.4) == pytest.approx(2.0)
    assert device.seconds(Work(operations=1_000_000), torch.bfloat16, 0.4) == pytest.approx(1_000_000 * START_SECONDS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("400", (4e14, None, None)), ("400,2.5", (4e14, 2.5e12, None)), ("400,2.5,48", (4e14, 2.5e12, 48 << 30))],
)
def test_a_device_may_be_numbers(name, expected):
    device = find_device(name)
    assert (device.bf16_flops, device.bytes_per_second, device.memory_bytes) == expected
    assert device.usable_bytes == (float("inf") if expected[2] is None else 0.9 * expected[2])


def test_the_cpu_is_this_machine():
    device = find_device("cpu")
    assert device.is_cpu
    assert 1e8 < device.fp32_flops < 1e14
    assert device.memory_bytes > 1 << 28


@pytest.mark.parametrize("name", ["h10", "-3", "1,2,3,4", "400,x", ""])
def test_other_devices_are_refused(name):
    with pytest.raises(UserError, match="write a name, or the device's TFLOP/s"):
        find_device(name)


# --- warnings


def on_a_device_of(plan, limit):
    """The plan on a device that lets training take so many bytes."""
    device = replace(H100, memory_bytes=-(-int(limit) * 10 // 9))
    rows = [replace(row, fits=row.peak_bytes <= limit) for row in (plan.memory, *plan.memory_by_zero)]
    return replace(plan, device=device, memory=rows[0], memory_by_zero=tuple(rows[1:]))


def test_a_training_that_does_not_fit_says_what_helps():
    plan = plan_of(DEBUG, zero=1, processes=8)
    peak, saved = plan.memory.peak_bytes, plan.training.saved_bytes_per_sample

    def told(limit):
        return next((text for text in advise(on_a_device_of(plan, limit)) if "training needs" in text), None)

    assert told(peak) is None
    assert told(peak - 1).endswith("it would with checkpointing selective or with checkpointing full or with ZeRO stage 2")
    less = peak - 2 * (saved["none"] - saved["selective"])
    assert told(less - 1).endswith("; it would with checkpointing full")
    assert told(peak - 2 * (saved["none"] - saved["full"]) - 1).endswith("it would with ZeRO stage 2 and checkpointing full")
    assert told(100_000).endswith("use more processes, LoRA, fewer chunks or a smaller picture")
    assert any("the stream needs" in text for text in advise(on_a_device_of(plan, 100_000)))


def test_recomputation_that_is_not_needed_is_told(debug):
    training = replace(debug.training, checkpointing="full", flops_per_sample=1.3 * debug.training.model_flops_per_sample)
    assert any("checkpointing full computes 30% more than is needed; none or selective would fit too" in text
               for text in advise(replace(debug, training=training)))  # fmt: skip
    assert not any("computes" in text for text in advise(debug))


def test_zero_three_with_a_small_model_is_told():
    plan = plan_of("debug/self_forcing.yaml", zero=3, processes=4)
    text = " ".join(plan.warnings)
    assert "112,480 parameters" in text
    assert "saves no memory for weights" in text
    assert "frozen networks are whole on every device" in text
    assert "ZeRO" not in " ".join(plan_of(DEBUG, zero=2, processes=4).warnings)


def test_slow_streams_and_float32_are_told(debug):
    slow = replace(debug, stream=replace(debug.stream, frames_per_second=7.5))
    assert any("7.5 of the 25 frames a second" in text for text in advise(slow))
    assert any("32-true computes at a 15th" in text for text in plan_of(DEBUG).warnings)
    mixed = plan_of(DEBUG, "trainer.precision=bf16-mixed")
    assert mixed.warnings == ()
    old_cpu = replace(H100, name="this CPU", bf16_flops=H100.fp32_flops / 10, is_cpu=True)
    assert any("this CPU computes bfloat16 at 10% of float32's speed" in text for text in advise(replace(mixed, device=old_cpu)))


# --- as JSON, and the documentation


def test_json_has_every_field_of_every_record(debug):
    tree = json.loads(json.dumps(dataclasses.asdict(debug)))
    assert list(tree) == [field.name for field in dataclasses.fields(records.Plan)]
    assert list(tree["stream"]) == [field.name for field in dataclasses.fields(records.StreamPlan)]


@pytest.mark.parametrize("record", [value for value in vars(records).values() if dataclasses.is_dataclass(value)], ids=lambda record: record.__name__)
def test_every_field_is_explained(record):
    explained = set(re.findall(r"^\s+(\w+): ", inspect.getdoc(record), re.MULTILINE))
    assert explained >= {field.name for field in dataclasses.fields(record)} or record is records.SegmentTokens


def test_the_help_says_the_default_share_of_the_peak():
    from flowact import cli

    assert f"default: {UTILISATION:g};" in " ".join(cli.PROGRAM.parsers("plan")[1]["plan"].format_help().split())
