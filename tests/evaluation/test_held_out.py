"""From shards to numbers: alignment, the ceiling, the command and its file."""

from __future__ import annotations

import io
import json
import sys
import types
from dataclasses import dataclass, replace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from flowact import cli
from flowact.autoencoders import CausalVideoAutoencoder, save_autoencoder
from flowact.autoencoders.base import Autoencoder
from flowact.characters.puppet import Puppet
from flowact.data import encode_sound
from flowact.data.schema import DatasetInfo, write_dataset
from flowact.data.shards import ShardWriter, encode_array, encode_json
from flowact.errors import UserError
from flowact.evaluation import evaluate_stream, evaluate_truth, merge_metrics, read_held_out, read_metrics
from flowact.types import FIRST_STREAMED_FRAME, SAMPLES_PER_FRAME, STATES

SIZE = 32
CHARACTER = {"class_path": "Puppet", "init_args": {"size": SIZE}}


def encode_mp4(frames_THWC: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv444p"
        for frame in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def encode_png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def encode_wav(samples: np.ndarray) -> bytes:
    return encode_sound((samples * 32767).astype(np.int16))


def make_sample(seed: int, num_frames: int, puppet: Puppet) -> dict[str, bytes]:
    """A puppet that babbles noise bursts: speaking, listening, speaking, thinking."""
    generator = np.random.default_rng(seed)
    quarter = num_frames // 4
    states_T = np.repeat(np.array([0, 1, 0, 2], np.uint8), [quarter, quarter, quarter, num_frames - 3 * quarter])
    loudness = np.repeat(generator.uniform(0, 1, num_frames // 3 + 1) ** 2, 3)[:num_frames] * 0.3 * (states_T == 0)
    samples = (np.repeat(loudness, SAMPLES_PER_FRAME) * generator.standard_normal(num_frames * SAMPLES_PER_FRAME)).clip(-1, 1).astype(np.float32)
    identity = puppet.sample_identity(generator)
    truth_TP = puppet.perform(samples, states_T, generator)
    frames = puppet.render(identity, truth_TP)
    starts = [0, quarter, 2 * quarter, 3 * quarter, num_frames]
    names = [STATES[states_T[start]] for start in starts[:-1]]
    captions = [[a, b, name, puppet.caption(name)] for a, b, name in zip(starts[:-1], starts[1:], names, strict=True)]
    key = f"clip-{seed:03d}"
    metadata = {"key": key, "identity": f"p{seed}", "frames": num_frames, "captions": captions, "appearance": identity, "character": CHARACTER}
    return {
        "json": encode_json(metadata),
        "mp4": encode_mp4(frames),
        "wav": encode_wav(samples),
        "ref.png": encode_png(frames[0]),
        "states.npy": encode_array(states_T),
        "truth.npy": encode_array(truth_TP),
        "txt": b"a puppet",
    }


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("shards")
    puppet = Puppet(SIZE)
    lengths = {0: 150, 1: 150, 2: 150, 3: 121}
    with ShardWriter(root / "val") as writer:
        for seed, num_frames in lengths.items():
            writer.write(f"clip-{seed:03d}", make_sample(seed, num_frames, puppet), num_frames)
    write_dataset(root, DatasetInfo("test", character=CHARACTER, splits={"val": {"shards": 1, "samples": 4, "frames": 571}}))
    return str(root / "val")


class Pixels(Autoencoder):
    """Latents are pixels: the first alone, then four frames side by side."""

    temporal_stride, spatial_stride, latent_channels = 4, 1, 12

    def encode(self, frames_BCTHW):
        first, rest = frames_BCTHW[:, :, :1].repeat(1, 4, 1, 1, 1).transpose(1, 2), frames_BCTHW[:, :, 1:]
        batch, channels, length, height, width = rest.shape
        groups = rest.transpose(1, 2).reshape(batch, length // 4, 4 * channels, height, width)
        return torch.cat([first.reshape(batch, 1, 12, height, width), groups], 1)

    def decode(self, latents_BFCHW):
        batch, length, _, height, width = latents_BFCHW.shape
        frames = latents_BFCHW.reshape(batch, length * 4, 3, height, width).transpose(1, 2)
        return frames[:, :, 3:]

    def decode_stream(self, latents_BFCHW, state=None):
        raise NotImplementedError


class Blurred(Pixels):
    """An autoencoder that loses detail."""

    def decode(self, latents_BFCHW):
        frames = super().decode(latents_BFCHW)
        smooth = torch.nn.functional.avg_pool3d(frames, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
        return smooth


@dataclass
class Stream:
    frames: list[np.ndarray]
    ttff_seconds: float = 0.25
    frames_per_second: float = 100.0
    evaluations_per_chunk: float = 3
    num_chunks: int = 9


class Perfect:
    """A streamer that knows the truth: it finds the clip by its sound and returns the frames from the first generated one on."""

    autoencoder = Pixels()

    def __init__(self, held_out) -> None:
        self.held_out = held_out
        self.calls = []

    def generate(self, references, samples, captions, seed=0, progress=None):
        self.calls.append((references, samples, captions, seed))
        frames = []
        for sound in samples:
            (clip,) = [c for c in self.held_out.clips if np.array_equal(c.samples[SAMPLES_PER_FRAME * FIRST_STREAMED_FRAME :], sound)]
            true = self.held_out.character.render(clip.identity, clip.truth_TP)[FIRST_STREAMED_FRAME:]
            frames.append(true[: len(true) // 4 * 4])
        return Stream(frames)


@pytest.fixture(scope="module")
def held_out(shards):
    return read_held_out(shards)


def test_clips_have_one_length(shards, held_out):
    assert [clip.num_frames for clip in held_out.clips] == [121] * 4
    assert all(len(clip.samples) == 121 * SAMPLES_PER_FRAME for clip in held_out.clips)
    assert [clip.key for clip in read_held_out(shards, seconds=5.5).clips] == ["clip-000", "clip-001", "clip-002"]
    assert [clip.key for clip in read_held_out(shards, limit=2).clips] == ["clip-000", "clip-002"]


@pytest.mark.parametrize(
    ("options", "message"), [({"seconds": 60}, "longest 6 s"), ({"seconds": 0.04}, "two frames"), ({"limit": 0}, "at least one")]
)
def test_impossible_wishes_are_refused(shards, options, message):
    with pytest.raises(UserError, match=message):
        read_held_out(shards, **options)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Shards of two filmed people: the same clips without truth and appearance."""
    root = tmp_path_factory.mktemp("films")
    with ShardWriter(root / "val") as writer:
        for number in range(2):
            members = make_sample(number, 100, Puppet(SIZE))
            metadata = json.loads(members["json"])
            del members["truth.npy"], metadata["appearance"]
            writer.write(f"clip-{number:03d}", {**members, "json": encode_json(metadata | {"identity": f"person-{number}"})}, 100)
    return str(root / "val")


def test_clips_without_truth_are_films(films):
    held_out = read_held_out(films)
    assert held_out.character is None
    assert [clip.identity for clip in held_out.clips] == [{"person": "person-0"}, {"person": "person-1"}]
    assert held_out.clips[0].truth_TP.shape == (100, 0)
    np.testing.assert_array_equal(held_out.true_frames("clip-001"), held_out.clips[1].frames_THWC()[1:])
    truth = evaluate_truth(held_out).measurement
    assert truth.motion_ratio == 1
    assert truth.identity_rank == 1
    assert truth.to_json()["state_accuracy"] is None


def test_a_stream_that_shows_the_truth_is_aligned_and_scores_like_it(held_out):
    streamer = Perfect(held_out)
    streamed = evaluate_stream(streamer, held_out, seed=5)
    truth = evaluate_truth(held_out)
    assert len(streamed.clips[0].states_T) == 120
    assert streamed.measurement.lip_lag_frames == 0
    assert streamed.measurement.lip_correlation > 0.9
    assert streamed.measurement.lip_correlation == pytest.approx(truth.measurement.lip_correlation, abs=0.02)
    assert streamed.measurement.identity_rank == 1
    assert streamed.measurement.motion_ratio == pytest.approx(1, abs=1e-6)
    assert streamed.measurement.details["generation"]["seed"] == 5
    references, _, captions, _ = streamer.calls[0]
    assert references[0].shape == (3, SIZE, SIZE)
    assert references[0].min() >= -1
    assert references[0].max() <= 1
    assert [start for start, _ in captions[0]] == [0, 36, 73, 110]


def test_sound_and_truth_of_a_generated_frame_belong_together(held_out):
    clip = held_out.clips[0]
    frames = np.zeros((8, SIZE, SIZE, 3), np.uint8)
    shown = clip.against(frames)
    np.testing.assert_array_equal(shown.truth_TP, clip.truth_TP[1:9])
    np.testing.assert_array_equal(shown.states_T, clip.states_T[1:9])
    np.testing.assert_array_equal(shown.samples, clip.samples[640 : 9 * 640])
    longer = clip.against(np.zeros((200, SIZE, SIZE, 3), np.uint8))
    assert len(longer.frames_THWC) == 120


def test_captions_that_end_before_the_stream_do_not_drive_it(held_out):
    clip = replace(held_out.clips[0], captions=((0, "never seen"), (1, "first"), (9, "second")))
    assert clip.prompts() == [(0, "first"), (8, "second")]


def test_an_exact_autoencoder_leaves_the_ceiling_at_the_raw_clip_and_a_blurred_one_lowers_it(held_out):
    exact = evaluate_truth(held_out, Pixels()).measurement
    assert exact.details["through"] == "autoencoder"
    assert exact.details["raw"]["lip_correlation"] == pytest.approx(exact.lip_correlation, abs=1e-6)
    blurred = evaluate_truth(held_out, Blurred()).measurement
    assert blurred.details["sharpness_ratio"] < 0.8 < exact.details["sharpness_ratio"]
    assert blurred.details["residual"] > exact.details["residual"]
    assert blurred.details["raw"]["residual"] == pytest.approx(exact.details["raw"]["residual"])


def test_merging_keeps_what_others_wrote(tmp_path):
    path = tmp_path / "run" / "metrics.json"
    merge_metrics(path, {"stages": {"pretraining": {"drift": 0.1}}, "seconds": {"render": 3}})
    merge_metrics(path, {"truth": {"drift": 0.0}, "seconds": {"train": 5}})
    merged = merge_metrics(path, {"stages": {"distillation": {"drift": 0.2}, "pretraining": {"drift": 0.3}}})
    expected = {
        "stages": {"pretraining": {"drift": 0.3}, "distillation": {"drift": 0.2}},
        "seconds": {"render": 3, "train": 5},
        "truth": {"drift": 0.0},
    }
    assert merged == read_metrics(path) == expected
    assert [file.name for file in path.parent.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("content", ["{", "[1]", '{"stages": 3}'])
def test_a_file_that_is_no_metrics_file_is_left_alone(tmp_path, content):
    path = tmp_path / "metrics.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"metrics\.json"):
        merge_metrics(path, {"truth": {}})
    assert path.read_text() == content


@pytest.fixture
def pipeline(monkeypatch, held_out):
    """Stands in for `flowact.sampling.pipeline`, whose own tests need a trained checkpoint. A folder called `weak` shows other clips' truth."""
    loaded = []

    class Pipeline:
        @staticmethod
        def from_checkpoint(folder, device="cpu", micro_steps=None, guidance=1.0, refinement=None, solver=None, loras=()):
            loaded.append((folder, device, micro_steps, *loras))
            return Turned(held_out) if str(folder).endswith("weak") else Perfect(held_out)

    module = types.ModuleType("flowact.sampling.pipeline")
    module.Pipeline = Pipeline
    monkeypatch.setitem(sys.modules, "flowact.sampling.pipeline", module)
    return loaded


class Turned:
    """Shows every clip the truth of the next one."""

    def __init__(self, held_out):
        self.perfect = Perfect(held_out)

    def generate(self, references, samples, captions, seed=0, progress=None):
        made = self.perfect.generate(references, samples, captions, seed, progress)
        return replace(made, frames=[*made.frames[1:], made.frames[0]])


def checkpoint_of(folder, stage):
    folder.mkdir()
    (folder / "lineage.json").write_text(json.dumps({"stage": stage}))
    return str(folder)


def test_before_and_after_are_measured_on_the_same_clips_and_what_changed_is_written(tmp_path, shards, pipeline, capsys):
    before, after = checkpoint_of(tmp_path / "weak", "pretraining"), checkpoint_of(tmp_path / "strong", "self_forcing")
    out = tmp_path / "metrics.json"
    arguments = ["--shards", shards, "--out", str(out), "--video", str(tmp_path / "side.mp4"), "--sheets", str(tmp_path / "sheets"), "--report"]
    assert cli.main(["evaluate", "--before", before, "--checkpoint", after, "--lora", "x", *arguments]) == 0
    assert pipeline == [(before, "cpu", None), (after, "cpu", None, "x")]
    text = capsys.readouterr().out
    found = read_metrics(out)
    assert set(found["stages"]) == {"pretraining", "self_forcing"}
    changes = found["comparison"]["changes"]
    assert (found["comparison"]["before"], found["comparison"]["after"]) == ("pretraining", "self_forcing")
    assert changes["lip_correlation"]["better"] is True
    assert changes["identity_error"]["better"] is True
    assert changes["identity_error"]["difference"] == pytest.approx(
        changes["identity_error"]["after"] - changes["identity_error"]["before"], abs=1e-5
    )
    assert "better" in text
    with Image.open(tmp_path / "sheets" / "before-after.png") as sheet:
        assert sheet.height > 3 * 3 * 112
    with av.open(str(tmp_path / "side.mp4")) as container:
        video = container.streams.video[0]
        assert video.width == 3 * video.height, "truth, before, after"
        assert sum(1 for _ in container.decode(video=0)) == 120
        assert container.streams.audio
    assert cli.main(["evaluate", "--compare", "self_forcing", "pretraining", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changes"]["lip_correlation"]["better"] is False


def test_two_checkpoints_of_one_stage_have_names_of_their_own(tmp_path, shards, pipeline):
    before, after = checkpoint_of(tmp_path / "weak", "diffusion_forcing"), checkpoint_of(tmp_path / "anna", "diffusion_forcing")
    out = tmp_path / "metrics.json"
    arguments = ["--shards", shards, "--out", str(out), "--quiet"]
    assert cli.main(["evaluate", "--before", before, "--checkpoint", after, *arguments]) == 0
    assert cli.main(["evaluate", "--before", before, "--checkpoint", before, "--lora", "x", *arguments]) == 0
    assert set(read_metrics(out)["stages"]) == {"weak", "anna", "before", "after"}


def test_films_are_evaluated_and_what_is_left_out_is_printed(tmp_path, films, monkeypatch, pipeline, capsys):
    held_out = read_held_out(films)
    monkeypatch.setattr(sys.modules["flowact.sampling.pipeline"].Pipeline, "from_checkpoint", staticmethod(lambda *_, **__: Filmed(held_out)))
    checkpoint = checkpoint_of(tmp_path / "one", "self_forcing")
    out = tmp_path / "metrics.json"
    arguments = ["--shards", films, "--out", str(out), "--video", str(tmp_path / "side.mp4"), "--report"]
    assert cli.main(["evaluate", "--before", checkpoint, "--checkpoint", checkpoint, *arguments]) == 0
    assert cli.main(["evaluate", "--checkpoint", checkpoint, *arguments]) == 0
    text = capsys.readouterr().out
    assert "lip_correlation was not measured: no judge" in text
    assert "measured weakly" in text
    assert read_metrics(out)["comparison"]["changes"].keys() == {"identity_error", "identity_rank", "drift", "motion_ratio"}
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert (tmp_path / "side.mp4").stat().st_size > 1000


class Filmed:
    """Shows the films themselves."""

    def __init__(self, held_out):
        self.held_out = held_out

    def generate(self, references, samples, captions, seed=0, progress=None):
        frames = [clip.frames_THWC()[FIRST_STREAMED_FRAME:] for clip in self.held_out.clips]
        return types.SimpleNamespace(frames=frames, ttff_seconds=0.1, frames_per_second=25.0, evaluations_per_chunk=3, num_chunks=9)


def test_the_command_adds_a_stage_and_the_truth_to_one_file(tmp_path, shards, pipeline, capsys):
    checkpoint = tmp_path / "somewhere"
    checkpoint.mkdir()
    (checkpoint / "lineage.json").write_text('{"stage": "self_forcing"}')
    out = tmp_path / "metrics.json"
    arguments = ["evaluate", "--checkpoint", str(checkpoint), "--shards", shards, "--out", str(out), "--micro-steps", "2", "--json", "--report"]
    assert cli.main([*arguments, "--video", str(tmp_path / "side.mp4"), "--sheets", str(tmp_path / "sheets")]) == 0
    assert pipeline == [(str(checkpoint), "cpu", 2)]
    printed = json.loads(capsys.readouterr().out)
    assert cli.main(["evaluate", "--truth", "--shards", shards, "--out", str(out)]) == 0
    assert "lip_correlation" in capsys.readouterr().out
    found = read_metrics(out)
    assert set(found) == {"stages", "truth"}
    assert found["stages"]["self_forcing"] == printed
    assert sorted(file.name for file in (tmp_path / "sheets").iterdir()) == ["self_forcing-identity.png", "self_forcing-states.png"]
    assert (tmp_path / "report.html").stat().st_size > 10_000
    with av.open(str(tmp_path / "side.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 120
        assert container.streams.audio


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--checkpoint"),
        (["--checkpoint", "x", "--autoencoder", "y"], "--truth"),
        (["--truth", "--before", "x"], "--before goes with --checkpoint"),
        (["--checkpoint", "x", "--judge", "NoSuchJudge"], "NoSuchJudge"),
        (["--compare", "a", "b"], "leave out"),
    ],
)
def test_options_that_do_not_fit_are_explained(tmp_path, shards, arguments, message, capsys):
    assert cli.main(["evaluate", "--shards", shards, "--out", str(tmp_path / "m.json"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_ceiling_is_that_of_the_autoencoder_named(tmp_path, shards):
    init_args = {"latent_channels": 4, "width": 8}
    save_autoencoder(CausalVideoAutoencoder(**init_args), {"class_path": "CausalVideoAutoencoder", "init_args": init_args}, tmp_path / "ae")
    out = tmp_path / "metrics.json"
    arguments = ["evaluate", "--truth", "--shards", shards, "--out", str(out), "--limit", "2", "--quiet"]
    assert cli.main([*arguments, "--autoencoder", str(tmp_path / "ae")]) == 0
    untrained = read_metrics(out)["truth"]
    assert untrained["details"]["through"] == "autoencoder"
    assert untrained["lip_correlation"] < 0.5 < untrained["details"]["raw"]["lip_correlation"]
    assert cli.main(arguments) == 0
    assert read_metrics(out)["truth"]["details"]["through"] == "pixels"
