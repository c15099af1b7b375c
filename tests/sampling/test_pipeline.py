"""From a checkpoint folder to frames: conditions in time, lengths, what is taken from the checkpoint."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import AUDIO, SAMPLES_PER_CHUNK, SHAPE, TEXT, autoencoder, denoiser, picture, small_pipeline, sound

from flowact.autoencoders import save_autoencoder
from flowact.checkpoints import write_checkpoint
from flowact.conditioning import HashedText, LogMel
from flowact.errors import UserError
from flowact.memory import NoMemory, SlidingWindowMemory, StructuredMemory
from flowact.sampling import Guidance
from flowact.sampling.pipeline import Pipeline, character_captions, to_pixels, trained_shift
from flowact.schedulers import AdamsBashforth, Euler, Renoise, Staircase
from flowact.stages.preview import preview_pipeline


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


def test_each_chunk_has_its_own_sound_and_silence_follows_the_end(pipeline):
    samples = sound(SAMPLES_PER_CHUNK + 100)
    audio, text = pipeline.conditions(samples, [(0, "hello")], 3)
    whole = np.concatenate([samples, np.zeros(3 * SAMPLES_PER_CHUNK - len(samples), np.float32)])
    assert torch.equal(audio.flatten(0, 2), pipeline.audio.encode(torch.from_numpy(whole)))
    assert audio.shape == (3, 2, 4, pipeline.audio.width)
    assert text.shape == (3, 4, 16)
    long = sound(9 * SAMPLES_PER_CHUNK)
    cut, _ = pipeline.conditions(long, [(0, "a")], 2)
    assert torch.equal(cut, pipeline.conditions(long[: 2 * SAMPLES_PER_CHUNK], [(0, "a")], 2)[0])


def test_a_chunk_has_the_caption_in_force_at_its_middle(pipeline):
    """Chunks of eight frames have their middles at 4, 12, 20, 28."""
    captions = [(0, "one"), (4, "two"), (13, "three"), (27, "four")]
    _, text = pipeline.conditions(sound(10), captions, 4)
    assert torch.equal(text, pipeline.text.encode(["two", "two", "three", "four"]))


@pytest.mark.parametrize("captions", [[], [(3, "late")], [(0, "a"), (9, "b"), (5, "c")]])
def test_captions_that_are_not_a_timeline_are_refused(pipeline, captions):
    with pytest.raises(UserError, match="begin at frame 0 and be in order"):
        pipeline.conditions(sound(10), captions, 2)


@pytest.mark.parametrize(
    ("num_samples", "num_chunks"), [(0, 1), (1, 1), (SAMPLES_PER_CHUNK, 1), (SAMPLES_PER_CHUNK + 1, 2), (3 * SAMPLES_PER_CHUNK, 3)]
)
def test_a_clip_is_as_long_as_its_sound_in_whole_chunks(pipeline, num_samples, num_chunks):
    arguments, seen = ([picture()], [sound(num_samples)], [[(0, "hello")]]), []
    made = pipeline.generate(*arguments, progress=lambda *at: seen.append(at))
    assert made.num_chunks == num_chunks == len(made.chunk_seconds)
    assert made.frames[0].shape == (8 * num_chunks, 16, 32, 3)
    assert made.frames[0].dtype == np.uint8
    assert seen == [(i + 1, num_chunks) for i in range(num_chunks)]
    pieces = list(pipeline.clips(*arguments))
    assert [piece.shape[:2] for piece in pieces] == [(1, 8)] * num_chunks
    assert np.array_equal(np.concatenate(pieces, axis=1)[0], made.frames[0])
    assert made.evaluations_per_chunk == 3
    assert made.ttff_seconds > 0


def test_clips_side_by_side_are_as_long_as_the_longest_and_the_seed_decides(pipeline):
    arguments = [picture(0), picture(1)], [sound(100), sound(2 * SAMPLES_PER_CHUNK)], [[(0, "one")], [(0, "two")]]
    first, same, other = (pipeline.generate(*arguments, seed=seed) for seed in (3, 3, 4))
    assert [clip.shape[0] for clip in first.frames] == [16, 16]
    assert all(np.array_equal(a, b) for a, b in zip(first.frames, same.frames, strict=True))
    assert not np.array_equal(first.frames[0], other.frames[0])


def test_guidance_costs_two_evaluations_and_micro_steps_their_number(pipeline):
    costly = replace(pipeline, guidance=2.0, staircase=Staircase(micro_steps=2))
    assert costly.generate([picture()], [sound(10)], [[(0, "hello")]]).evaluations_per_chunk == 12


def test_numbers_of_inputs_must_agree(pipeline):
    with pytest.raises(UserError, match="got 1, 2 and 1"):
        pipeline.generate([picture()], [sound(1), sound(1)], [[(0, "a")]])


def test_pixels_are_rounded_and_clipped():
    frames = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0])[None, None, :, None, None].expand(1, 3, -1, 1, 1)
    assert to_pixels(frames)[0, :, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


def test_sizes_follow_from_the_latents_and_the_geometry(pipeline):
    assert pipeline.picture_size == (16, 32)
    assert pipeline.latency_budget.prompt_to_motion_seconds == pytest.approx(3 * 8 / 25)


# --- from a checkpoint


def write(folder, arguments=None, ema=None, **lineage):
    save_autoencoder(autoencoder(), autoencoder().spec, folder.parent / "ae")
    arguments = {"denoiser": {"class_path": "MMDiT", "init_args": SHAPE}} if arguments is None else arguments
    encoders = {"text": {"class_path": "HashedText", "init_args": TEXT}, "audio": {"class_path": "LogMel", "init_args": AUDIO}}
    facts = {
        "schema": 1,
        "stage": "diffusion_forcing",
        "step": 5,
        "chunk_frames": 2,
        "latent_shape": [3, 1, 2],
        "encoders": encoders,
        "character": None,
    }
    return write_checkpoint(
        folder, weights=denoiser(1).state_dict(), ema=ema, recipe={"model": {"class_path": "X", "init_args": arguments}}, lineage=facts | lineage,
        autoencoder_folder=folder.parent / "ae", engine_saver=None,
    )  # fmt: skip


def test_a_checkpoint_holds_everything_that_generating_needs(tmp_path):
    built = Pipeline.from_checkpoint(write(tmp_path / "run"))
    assert not built.denoiser.training
    assert built.chunk_frames == 2
    assert (built.latent_size, built.staircase, built.guidance) == ((1, 2), Staircase(3, 1, 1.0), 1.0)
    assert isinstance(built.bank, StructuredMemory)
    direct = replace(built, denoiser=denoiser(1), autoencoder=autoencoder(), text=HashedText(**TEXT), audio=LogMel(**AUDIO))
    clips = [made.generate([picture()], [sound(10)], [[(0, "hello")]]).frames[0] for made in (built, direct)]
    assert np.array_equal(*clips)


def test_the_moving_average_is_what_generates(tmp_path):
    ema = {name: value.detach() + 1 for name, value in denoiser(1).named_parameters()}
    built = Pipeline.from_checkpoint(write(tmp_path / "run", ema=ema))
    assert all(torch.equal(value, ema[name]) for name, value in built.denoiser.named_parameters())


def test_memory_and_shift_are_those_of_training_unless_said_otherwise(tmp_path):
    arguments = {
        "denoiser": {"class_path": "MMDiT", "init_args": SHAPE},
        "memory": {"class_path": "SlidingWindowMemory", "init_args": {"chunks": 2, "chunk_frames": 2}},
        "levels": {"class_path": "MixedLevels", "init_args": {"shift": 5.0}},
    }
    folder = write(tmp_path / "run", arguments)
    built = Pipeline.from_checkpoint(folder)
    assert isinstance(built.bank, SlidingWindowMemory)
    assert built.bank.chunks == 2
    assert built.staircase.shift == 5.0
    assert Pipeline.from_checkpoint(folder, shift=2.0, micro_steps=4).staircase == Staircase(3, 4, 2.0)
    assert trained_shift({"shift": 3.0}) == 3.0
    assert trained_shift({"levels": None}) == 1.0


def test_memory_that_no_recipe_names_is_the_stages_own(tmp_path):
    assert isinstance(Pipeline.from_checkpoint(write(tmp_path / "run", memory="NoMemory")).bank, NoMemory)


def test_previews_stream_as_generating_would(tmp_path):
    arguments = {"denoiser": {"class_path": "MMDiT", "init_args": SHAPE}, "levels": {"class_path": "MixedLevels", "init_args": {"shift": 5.0}}}
    lineage = {"solver": "renoise", "stream_chunks": 1, "micro_steps": 2}
    folder = write(tmp_path / "run", arguments, **lineage)
    built = Pipeline.from_checkpoint(folder)
    encoders = {"text": {"class_path": "HashedText", "init_args": TEXT}, "audio": {"class_path": "LogMel", "init_args": AUDIO}}
    conditions = {"autoencoder_path": str(tmp_path / "ae"), "encoders": encoders, "character": None, "latent_shape": [3, 1, 2]}
    stage = SimpleNamespace(
        trainer=SimpleNamespace(datamodule=SimpleNamespace(conditions=conditions)), denoiser=denoiser(1), device=torch.device("cpu"),
        memory=StructuredMemory(), chunk_frames=2, recipe={"model": {"init_args": arguments}}, lineage=lambda: lineage,
    )  # fmt: skip
    preview = preview_pipeline(stage)
    assert preview.staircase == built.staircase
    clips = [made.generate([picture()], [sound(10)], [[(0, "hello")]]).frames[0] for made in (built, preview)]
    assert np.array_equal(*clips)


def test_solver_and_guidance_are_what_the_stage_was_trained_for(tmp_path):
    plain = Pipeline.from_checkpoint(write(tmp_path / "plain"), guidance=2.0).engine
    assert (plain.solver, plain.guidance, plain.scales) == (Euler(), Guidance(2.0), None)
    folder = write(tmp_path / "distilled", solver="renoise", guidance_ranges={"text": [1.0, 3.0], "audio": [1.0, 2.0]})
    for asked, scales in ((1.0, (1.0, 1.0)), (2.0, (2.0, 2.0)), ((3.0, 1.5), (3.0, 1.5))):
        engine = Pipeline.from_checkpoint(folder, guidance=asked).engine
        assert (engine.solver, engine.guidance, engine.scales) == (Renoise(), Guidance(1.0), scales)
        assert engine.evaluations_per_chunk == 3
    with pytest.raises(UserError, match="guidance 3 for audio"):
        Pipeline.from_checkpoint(folder, guidance=3.0)


def test_a_checkpoint_may_name_a_solver_by_its_spec_and_a_stream_may_take_another(tmp_path):
    folder = write(tmp_path / "run", solver={"class_path": "AdamsBashforth"}, micro_steps=2)
    assert Pipeline.from_checkpoint(folder).engine.solver == AdamsBashforth()
    assert Pipeline.from_checkpoint(folder, solver=Renoise()).engine.solver == Renoise()
    clips = [
        Pipeline.from_checkpoint(folder, solver=solver).generate([picture()], [sound(10)], [[(0, "hello")]]).frames[0]
        for solver in (None, AdamsBashforth(), Euler())
    ]
    assert np.array_equal(clips[0], clips[1])
    assert not np.array_equal(clips[0], clips[2])
    with pytest.raises(UserError, match="called 'GoneSolver'"):
        Pipeline.from_checkpoint(write(tmp_path / "gone", solver={"class_path": "GoneSolver"}))


@pytest.mark.parametrize(
    ("lineage", "asked", "staircase"),
    [
        ({}, None, (3, 1)),  # a checkpoint that says nothing
        ({"num_chunks": 4, "memory": "NoMemory"}, None, (3, 1)),  # pretraining trains no stream
        ({"num_chunks": 1, "stream_chunks": 1, "micro_steps": 4}, None, (1, 4)),
        ({"num_chunks": 1, "stream_chunks": 1, "micro_steps": 4}, 2, (1, 2)),
        ({"num_chunks": 5, "stream_chunks": 5, "micro_steps": 1}, None, (5, 1)),
    ],
)
def test_a_stream_has_the_chunks_and_micro_steps_that_its_checkpoint_was_trained_for(lineage, asked, staircase, tmp_path):
    built = Pipeline.from_checkpoint(write(tmp_path / "run", **lineage), micro_steps=asked)
    assert (built.staircase.num_chunks, built.staircase.micro_steps) == staircase
    made = built.generate([picture()], [sound(2 * SAMPLES_PER_CHUNK)], [[(0, "hello")]])
    assert made.evaluations_per_chunk == built.engine.evaluations_per_chunk == staircase[0] * staircase[1]
    assert built.latency_budget.audio_lookahead_seconds == pytest.approx(staircase[0] * 8 / 25)
    assert made.frames[0].shape[0] == 16


def test_a_checkpoint_without_a_denoiser_says_what_it_is(tmp_path):
    with pytest.raises(UserError, match="its stage is autoencoder"):
        Pipeline.from_checkpoint(write(tmp_path / "run", {"autoencoder": {}}, stage="autoencoder"))


def test_captions_of_a_character():
    rest, by_state = character_captions({"class_path": "Puppet", "init_args": {"size": 64}})
    assert rest in by_state["idle"]
    assert set(by_state) == {"speaking", "listening", "thinking", "idle"}
    assert character_captions(None) == ("", {})
