"""Laws of the rigged human and of its rasteriser."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest

from flowact.characters.behaviour import IDLE, LISTENING, SPEAKING, THINKING, lay_out, sample_track
from flowact.characters.behaviour import TrackSegment as Segment
from flowact.characters.human import CAPTIONS, RiggedHuman
from flowact.characters.human_rig import UNITS, rotation
from flowact.characters.rasteriser import draw_triangles, vertex_normals
from flowact.characters.speech import load_speech
from flowact.errors import UserError
from flowact.types import STATES


@pytest.fixture(scope="module")
def human():
    return RiggedHuman(64)


@pytest.fixture(scope="module")
def clips(human):
    """(identity, states, truth, frames, read-out) of people who go through all states."""
    pieces = [piece for piece in load_speech() if piece.seconds > 2]
    made = []
    for seed in range(4):
        generator = np.random.default_rng(seed)
        identity = human.sample_identity(generator)
        speech = Segment(SPEAKING, 40, pieces[seed])
        samples, states = lay_out([speech, Segment(LISTENING, 20), Segment(THINKING, 20), Segment(IDLE, 20)])
        truth = human.perform(samples, states, generator)
        frames = human.render(identity, truth)
        made.append((identity, states, truth, frames, human.read(frames, identity)))
    return made


def test_frames_are_pictures_of_the_person(human, clips):
    for identity, _, truth, frames, _ in clips:
        assert frames.shape == (100, 64, 64, 3)
        assert frames.dtype == np.uint8
        np.testing.assert_array_equal(human.render(identity, truth[50:52]), frames[50:52])


def test_rotation_is_read_back(human, clips):
    for name, tolerance in (("pitch", 0.06), ("yaw", 0.06), ("roll", 0.03)):
        column = human.channels.index(name)
        errors = np.concatenate([readout.channels[name] - truth[:, column] for _, _, truth, _, readout in clips])
        assert np.percentile(np.abs(errors), 90) < tolerance, name


def test_mouth_area_follows_the_truth_in_its_units(human, clips):
    for _, states, truth, _, readout in clips:
        speaking = states == SPEAKING
        area = human.mouth_area(truth)
        assert np.corrcoef(area[speaking], readout.mouth_area[speaking])[0, 1] > 0.97
        assert np.polyfit(area, readout.mouth_area, 1)[0] == pytest.approx(1, abs=0.2)


def test_two_frames_late_are_noticed(human, clips):
    correlations = []
    for identity, states, truth, frames, _ in clips:
        speaking = states == SPEAKING
        late = human.read(np.roll(frames, 2, axis=0), identity).mouth_area
        correlations.append(np.corrcoef(human.mouth_area(truth)[speaking], late[speaking])[0, 1])
    assert np.mean(correlations) < 0.75


def test_states_are_read_back(clips):
    states, read = np.concatenate([clip[1] for clip in clips]), np.concatenate([clip[4].state for clip in clips])
    assert (states == read).mean() > 0.8  # with four switches in four seconds
    settled = np.concatenate([np.concatenate([np.arange(n) > 10 for n in (40, 20, 20, 20)])] * len(clips))
    assert (states == read)[settled].mean() > 0.95


def test_its_own_identity_is_nearest(human, clips):
    distances = np.array([[human.identity_distance(frames[::20], other[0]) for other in clips] for _, _, _, frames, _ in clips])
    assert (distances.argmin(axis=1) == np.arange(len(clips))).all()
    assert np.diag(distances).max() < 0.02
    assert all(readout.residual.mean() < 0.05 for *_, readout in clips)
    stranger = human.read(clips[0][3][:10], clips[1][0])
    assert stranger.residual.mean() > 0.1


def test_what_cannot_be_read_is_nan(human, clips):
    channels = clips[0][4].channels
    assert set(channels) == set(human.channels)
    for name in ("mouthFunnel", "mouthStretch", "gaze_x", "eyeBlink"):
        assert np.isnan(channels[name]).all()
    assert np.isfinite(channels["jawOpen"]).all()


def test_every_channel_changes_the_picture(human):
    identity = human.sample_identity(np.random.default_rng(1))
    truth = np.zeros((len(human.channels) + 1, len(human.channels)), np.float32)
    for i, name in enumerate(human.channels):
        truth[i + 1, i] = 0.3 if name in ("pitch", "yaw", "roll") else 1.0
    pictures = human.render(identity, truth).astype(int)
    changed = np.abs(pictures[1:] - pictures[0]).sum(axis=(1, 2, 3))
    assert (changed > 300).all(), dict(zip(human.channels, changed, strict=True))


def test_signs_are_as_seen(human):
    """Rolling clockwise lowers the right stud, nodding lowers both, turning right moves the nose to the right."""
    centres = human.rig.stud_centres
    nose = human.rig.vertices[human.rig.vertices[:, 1].argmin()]
    rolled = human.rig.rotate(centres, rotation(np.array([0, 0, 0.2])))
    assert rolled[1, 2] < rolled[0, 2]
    assert human.rig.rotate(nose[None], rotation(np.array([0.2, 0, 0])))[0, 2] < nose[2]
    assert human.rig.rotate(nose[None], rotation(np.array([0, 0.2, 0])))[0, 0] > nose[0]


def test_the_mouth_opens_with_the_jaw_and_narrows_with_the_funnel(human):
    truth = np.zeros((4, len(human.channels)))
    jaw, funnel = human.channels.index("jawOpen"), human.channels.index("mouthFunnel")
    truth[1:, jaw] = (0.3, 0.8, 0.8)
    truth[3, funnel] = 1
    closed, little, wide, funnelled = human.mouth_area(truth)
    assert closed < 0.1 * wide
    assert closed < little < wide
    assert funnelled != pytest.approx(wide, rel=0.01)


def test_performance_is_causal_and_silent_when_listening(human):
    samples, states = sample_track(np.random.default_rng(0), load_speech(), 60)
    truth = human.perform(samples, states, np.random.default_rng(1))
    assert truth.shape == (60, len(human.channels))
    assert truth.dtype == np.float32
    np.testing.assert_array_equal(truth, human.perform(samples, states, np.random.default_rng(1)))
    quiet = human.perform(samples, np.full(60, LISTENING, np.uint8), np.random.default_rng(1))
    assert quiet[:, : list(UNITS).index("mouthStretch") + 1].max() == 0
    later = samples.copy()
    later[40 * 640 :] = 0
    np.testing.assert_array_equal(human.perform(later, states, np.random.default_rng(1))[:40, 0], truth[:40, 0])


def test_captions_and_errors(human):
    assert set(CAPTIONS) == set(STATES)
    assert max(len(text.split()) for texts in CAPTIONS.values() for text in texts) <= 8
    with pytest.raises(UserError, match="32 pixels"):
        RiggedHuman(16)
    with pytest.raises(ValueError, match="rigged human"):
        human.render({"skin": [0.5] * 3}, np.zeros((1, len(human.channels))))


def test_notice_travels_with_the_mesh():
    folder = files("flowact") / "assets" / "characters"
    assert (folder / "rigged_human.npz").is_file()
    assert "CC0" in (folder / "NOTICE.md").read_text()


# --- rasteriser -----------------------------------------------------------------------------------------------------------------------------------


def test_a_triangle_covers_its_area_once():
    corners = np.array([[3.3, 40.2], [55.1, 50.7], [20.4, 4.9]])  # counter-clockwise with y up
    picture = draw_triangles(corners, np.ones(3), np.ones((3, 1), np.float32), np.array([[0, 1, 2]]), np.zeros((64, 64, 1), np.float32))
    (ax, ay), (bx, by), (cx, cy) = corners
    assert picture.sum() == pytest.approx(abs((bx - ax) * (cy - ay) - (cx - ax) * (by - ay)) / 2, rel=0.02)
    assert set(np.unique(picture)) == {0, 1}


def test_back_faces_are_not_drawn_and_the_nearer_triangle_wins():
    square = np.array([[10, 50], [50, 50], [50, 10], [10, 10]], float)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    places, triangles = np.concatenate([square, square]), np.concatenate([faces, faces + 4])
    colours = np.repeat(np.eye(2, 3, dtype=np.float32), 4, axis=0)
    behind = np.zeros((64, 64, 3), np.float32)
    for near, depth in ((0, [1.0] * 4 + [2.0] * 4), (1, [2.0] * 4 + [1.0] * 4)):
        picture = draw_triangles(places, np.array(depth), colours, triangles, behind)
        np.testing.assert_allclose(picture[30, 30], np.eye(3)[near])
        assert (picture.sum(axis=-1) > 0).sum() == 40 * 40
    assert draw_triangles(places, np.ones(8), colours, triangles[:, ::-1], behind).max() == 0


def test_colours_are_mixed_linearly():
    corners = np.array([[0, 64], [64, 64], [0, 0]], float)
    colours = np.array([[0.0], [1.0], [0.0]], np.float32)
    picture = draw_triangles(corners, np.ones(3), colours, np.array([[0, 1, 2]]), np.zeros((64, 64, 1), np.float32))
    np.testing.assert_allclose(picture[60, :50, 0], (np.arange(50) + 0.5) / 64, atol=1e-5)


def test_normals_point_outwards(human):
    rig = human.rig
    np.testing.assert_allclose(np.linalg.norm(rig.normals[rig.studs[0]], axis=1), 1, atol=1e-5)
    away = rig.vertices[rig.studs[0]] - rig.stud_centres[0]
    assert (np.einsum("nc,nc->n", away, rig.normals[rig.studs[0]]) > 0).all()
    np.testing.assert_allclose(vertex_normals(rig.vertices, rig.triangles), rig.normals)


def test_the_rim_of_the_lips_is_a_ring(human):
    ring = human.rig.vertices[human.rig.lip_ring]
    assert 10 < len(ring) < 120
    assert np.ptp(ring[:, 0]) > 0.03
    assert (human.rig.lips[human.rig.lip_ring] > 0.2).all()
