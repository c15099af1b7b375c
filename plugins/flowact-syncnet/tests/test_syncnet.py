from __future__ import annotations

import os
import wave
from dataclasses import replace

import numpy as np
import pytest
import torch
from flowact_syncnet import Network, SyncNet, best_match, load_network, mfcc
from flowact_syncnet.step import crop_face, face_boxes

from data_tools.footage import encode_clip
from data_tools.inputs import Source
from data_tools.steps import Clip, Plan, Recording, Soundtrack, Span
from flowact.errors import UserError
from flowact.testing import check_constructor

BOXES = "FaceTracks/boxes/0"


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "syncnet_v2.model"
    torch.save(network.state_dict(), path)
    return str(path)


# --- sound ----------------------------------------------------------------------------------------------------------------------------------------

SECONDS = np.arange(640 * 5) / 16_000
SWEEP = np.round(8000 * np.sin(2 * np.pi * (200 + 900 * SECONDS) * SECONDS) + 500 * np.cos(2 * np.pi * 3000 * SECONDS)).astype(np.int16)
#: what python_speech_features 0.6 makes of the eighth window
EXPECTED = [18.85321, 15.17216, 6.94231, 22.02922, -28.48947, -33.31447, 2.47399, -41.83734, -34.52053, 16.77365, -11.75016, -5.85944, 33.92032]


def test_coefficients_are_those_that_the_weights_were_trained_on():
    assert mfcc(SWEEP).shape == (4 * 5 - 1, 13)
    np.testing.assert_allclose(mfcc(SWEEP)[7], EXPECTED, atol=1e-4)


def test_coefficients_equal_the_package():
    reference = pytest.importorskip("python_speech_features", reason="compares with python_speech_features where it is installed")
    np.testing.assert_allclose(mfcc(SWEEP), reference.mfcc(SWEEP, 16_000), atol=1e-9)


def test_a_window_of_sound_hears_nothing_outside():
    changed = SWEEP.copy()
    changed[:1600] = 0
    np.testing.assert_allclose(mfcc(changed)[11:], mfcc(SWEEP)[11:])  # from 1760 on; emphasis reaches one sample back


# --- the network ----------------------------------------------------------------------------------------------------------------------------------


def test_names_and_shapes_are_those_of_the_published_file(network):
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    expected = {
        "netcnnaud.0.weight": (64, 1, 3, 3),
        "netcnnaud.4.weight": (192, 64, 3, 3),
        "netcnnaud.14.bias": (256,),
        "netcnnaud.18.weight": (512, 256, 5, 4),
        "netcnnaud.19.running_var": (512,),
        "netcnnlip.0.weight": (96, 3, 5, 7, 7),
        "netcnnlip.4.weight": (256, 96, 1, 5, 5),
        "netcnnlip.18.weight": (512, 256, 1, 6, 6),
        "netfcaud.3.weight": (1024, 512),
        "netfclip.1.running_mean": (512,),
    }
    assert {name: shapes[name] for name in expected} == expected
    assert len(shapes) == 2 * (6 * 7 + 2 * 2 + 5)


@torch.inference_mode()
def test_windows_that_share_their_work_are_what_each_is_by_itself(network):
    pictures = torch.rand(7, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 255
    together = network.lips(pictures)
    assert together.shape == (3, 1024)
    for number in range(3):
        torch.testing.assert_close(together[number : number + 1], network.lips(pictures[number : number + 5]), rtol=1e-4, atol=1e-5)
    assert network.sound(torch.rand(2, 13, 20)).shape == (2, 1024)


def test_weights_come_back_and_counters_may_be_missing(network, tmp_path):
    state = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.model")
    loaded = load_network(tmp_path / "old.model")
    assert not loaded.training
    for name, value in state.items():
        torch.testing.assert_close(loaded.state_dict()[name], value)


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: {**state, "netfclip.3.weight": torch.zeros(2, 2)}, r"netfclip.3.weight is \(2, 2\), expected \(1024, 512\)"),
        (lambda state: {name: state[name] for name in list(state)[1:]}, "lacks netcnnaud.0.weight"),
        (lambda state: {**state, "head.weight": torch.zeros(1)}, "has head.weight"),
        (lambda state: [1, 2], "holds a list"),
        (lambda state: Code(), "no file of weights alone"),
    ],
    ids=["shape", "missing", "unknown", "list", "code"],
)
def test_another_file_is_refused_and_runs_nothing(network, tmp_path, monkeypatch, change, reason):
    monkeypatch.chdir(tmp_path)
    torch.save(change(network.state_dict()), tmp_path / "x.model")
    with pytest.raises(UserError, match=reason):
        SyncNet(str(tmp_path / "x.model")).check()
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_not_there_or_no_file_of_torch(tmp_path):
    with pytest.raises(UserError, match="there are no weights at"):
        SyncNet(str(tmp_path / "no.model")).check()
    (tmp_path / "x.model").write_bytes(b"weights")
    with pytest.raises(UserError, match="no file of weights alone"):
        SyncNet(str(tmp_path / "x.model")).check()


# --- the search -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [-15, -4, 0, 1, 15])
def test_the_search_moves_with_the_sound(offset):
    features = torch.randn(100, 32, generator=torch.Generator().manual_seed(0))
    # early sound: what belongs to frame n is heard at n - offset
    match = best_match(features[20:70], features[20 + offset : 70 + offset])
    assert match.offset == offset
    assert match.distance < 3
    assert match.confidence > 4
    assert best_match(features[20:70], torch.randn(50, 32)).confidence < 2


# --- the step -------------------------------------------------------------------------------------------------------------------------------------


def clip_of(folder, sound_S, greys_T, *, boxes=True, size=48) -> Clip:
    """A film of one grey a frame, with a face in its middle."""
    frames = [np.full((size, size, 3), int(grey), np.uint8) for grey in greys_T]
    (folder / "a.mp4").write_bytes(encode_clip(frames, crf=10, preset="ultrafast"))
    with wave.open(str(folder / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(sound_S.astype("<i2").tobytes())
    boxes_TX4 = np.tile(np.array([0.3, 0.2, 0.7, 0.7], np.float32), (len(frames), 2, 1))
    signals = {BOXES: boxes_TX4} if boxes else {}
    recording = Recording(Source("a", str(folder / "a.mp4"), "a"), None, len(frames), size, size, Soundtrack(folder / "a.wav"), None, signals)  # type: ignore[arg-type]
    return Clip(recording, Plan(Span(0, len(frames)), boxes=BOXES if boxes else ""))


class Levels(torch.nn.Module):
    """Stands for trained weights: embeds how loud and how bright each of the five frames is."""

    def lips(self, pictures_TCHW):
        return pictures_TCHW.mean((1, 2, 3)).unfold(0, 5, 1) / 12

    def sound(self, coefficients_B13S):
        return coefficients_B13S[:, 0].unflatten(1, (5, 4))[..., :3].mean(-1)  # the fourth step reaches into the next frame


def film(folder, offset: int) -> Clip:
    """Brightness follows the loudness of a sound that comes `offset` frames too early."""
    generator = np.random.default_rng(1)
    level_T = generator.uniform(0, 1, 90)
    tone = np.sin(2 * np.pi * 500 * np.arange(90 * 640) / 16_000)
    sound_S = 100 * 10 ** (2 * np.repeat(level_T, 640)) * tone
    energy_T = mfcc(np.round(sound_S))[: 4 * 89, 0].reshape(89, 4)[:, :3].mean(1)
    return clip_of(folder, np.roll(sound_S, -offset * 640), 12 * np.append(energy_T, energy_T[-1]))


@pytest.mark.parametrize("offset", [-6, 0, 4])
def test_offsets_are_found_and_corrected(tmp_path, monkeypatch, weights, offset):
    step = SyncNet(weights)
    monkeypatch.setattr(step, "_network", Levels(), raising=False)
    clip = film(tmp_path, offset)
    scores = step.score(clip)
    assert scores["offset_frames"] == offset
    corrected = step.apply(clip, {**scores, "confidence": 5.0})
    assert corrected.shift == offset
    assert step.score(replace(clip, plan=corrected))["offset_frames"] == 0


def test_random_weights_give_the_same_scores_whatever_the_batch(tmp_path, weights):
    clip = film(tmp_path, 0)
    clip = replace(clip, plan=replace(clip.plan, span=Span(3, 33)))
    first, second = (SyncNet(weights, batch=batch).score(clip) for batch in (13, 64))
    assert first["offset_frames"] == second["offset_frames"]
    assert first["distance"] == pytest.approx(second["distance"], rel=1e-3)
    assert first["method"] == "syncnet"


@pytest.mark.parametrize("case", ["no face", "short"])
def test_what_can_not_be_told_is_unknown(tmp_path, weights, case):
    clip = clip_of(tmp_path, np.zeros(40 * 640), np.full(40, 90), boxes=case != "no face")
    if case == "short":
        clip = replace(clip, plan=replace(clip.plan, span=Span(0, 29)))
    step = SyncNet(weights)
    scores = step.score(clip)
    assert scores["offset_frames"] is None
    assert step.apply(clip, scores) == clip.plan
    assert all(rule.kept for rule in step.judge(scores) if rule is not None)
    reject = SyncNet(weights, unknown="reject")
    broken = [rule for rule in reject.judge(scores) if rule is not None and not rule.kept]
    assert "can not be told" in reject.explain(broken[0])


def test_bounds_reject(weights):
    scores = {"offset_frames": -9, "frames_off": 9, "confidence": 4.0, "distance": 7.0}

    def reasons(step, scores):
        return [step.explain(rule) for rule in step.judge(scores) if rule is not None and not rule.kept]

    assert reasons(SyncNet(weights), scores) == ["lips and sound are 9 frames apart, at most 6 are allowed"]
    assert reasons(SyncNet(weights), {**scores, "confidence": 1.0}) == ["lips and sound go together with a confidence of 1.00, must be at least 3"]
    assert reasons(SyncNet(weights, max_offset=None), scores) == []


# --- crops ----------------------------------------------------------------------------------------------------------------------------------------


def test_the_crop_is_a_square_that_reaches_further_down():
    picture = np.zeros((200, 200, 3), np.uint8)
    picture[..., 0] = np.arange(200)
    picture[..., 1] = np.arange(200)[:, None]
    crop = crop_face(picture, np.array([80.0, 60.0, 120.0, 100.0]))
    assert crop.shape == (3, 224, 224)
    # 20 to a side is half a face, and 1.4 of that is shown: x from 72 to 128, y from 60 to 116
    assert crop[0, 0].min() == pytest.approx(72, abs=1)
    assert crop[0, 0].max() == pytest.approx(127, abs=1)
    assert crop[1].min() == pytest.approx(60, abs=1)
    assert crop[1].max() == pytest.approx(115, abs=1)


def test_outside_of_the_picture_is_grey():
    crop = crop_face(np.zeros((60, 60, 3), np.uint8), np.array([40.0, 40.0, 60.0, 60.0]))
    assert crop[:, 0, 0].tolist() == [0, 0, 0]
    assert crop[:, -1, -1].tolist() == [110, 110, 110]
    assert crop_face(np.zeros((60, 60, 3), np.uint8), np.array([400.0, 400.0, 420.0, 420.0])).unique().tolist() == [110]


def test_boxes_are_smoothed_and_bridged(tmp_path):
    clip = clip_of(tmp_path, np.zeros(40 * 640), np.full(40, 90))
    boxes_TX4 = clip.recording.signals[BOXES]
    boxes_TX4[10] = [0.0, 0.0, 0.1, 0.1]  # a detector's slip
    boxes_TX4[20:25] = np.nan
    faces_T4 = face_boxes(clip)
    np.testing.assert_allclose(faces_T4, np.tile([14.4, 9.6, 33.6, 33.6], (40, 1)), rtol=1e-5)
    boxes_TX4[:] = np.nan
    assert face_boxes(clip) is None


def test_the_constructor_is_the_config():
    check_constructor(SyncNet)
    for arguments in ({"max_offset": 16}, {"unknown": "drop"}, {"batch": 0}):
        with pytest.raises(UserError, match=next(iter(arguments))):
            SyncNet("x", **arguments)
