"""A mouth that a mesh reads follows the mouth that was drawn."""

from __future__ import annotations

import numpy as np
import pytest

from flowact.characters.human import RiggedHuman
from flowact.errors import UserError
from flowact.evaluation import Film, measure_filmed
from flowact.evaluation.measurement import Clip
from flowact.evaluation.metrics import pearson

SIZE, FRAMES = 96, 40


@pytest.fixture(scope="module")
def human():
    """A rigged human who opens the mouth to a sound, and how far."""
    human = RiggedHuman(size=SIZE)
    generator = np.random.default_rng(3)
    loudness_T = np.repeat(generator.uniform(0, 1, FRAMES // 4), 4)
    samples = (np.repeat(loudness_T, 640) * generator.standard_normal(FRAMES * 640) * 0.3).clip(-1, 1).astype(np.float32)
    identity = human.sample_identity(generator)
    truth_TP = human.perform(samples, np.zeros(FRAMES, np.uint8), generator)
    return human.render(identity, truth_TP), np.asarray(human.mouth_area(truth_TP), np.float64)


@pytest.fixture
def judge():
    pytest.importorskip("ai_edge_litert", reason="pip install ai-edge-litert")
    pytest.importorskip("cv2", reason="pip install 'flowact[data]'")
    from data_tools.judges import MeshMouth

    judge = MeshMouth()
    try:
        judge.check()
    except UserError as error:
        pytest.skip(str(error))
    return judge


def test_the_mesh_reads_the_mouth_and_no_mouth_where_there_is_no_face(human, judge):
    frames, area_T = human
    opening_T = judge.mouth(frames)
    assert np.isfinite(opening_T).mean() > 0.9
    assert pearson(opening_T, area_T) > 0.6
    assert np.isnan(judge.mouth(np.full((3, SIZE, SIZE, 3), 90, np.uint8))).all()


def test_streams_are_judged_against_the_film(human, judge):
    frames, _ = human
    late = np.concatenate([frames[:1].repeat(3, axis=0), frames[:-3]])
    clips = [Clip("one", late, np.zeros((FRAMES, 0), np.float32), np.zeros(FRAMES, np.uint8), {"person": "one"})]
    measured = measure_filmed(clips, [Film(frames, frames[0])], judge)
    assert measured.lip_lag_frames == 3
    assert "lip_correlation" not in measured.details["skipped"]


def test_a_size_without_faces_is_refused():
    pytest.importorskip("cv2", reason="pip install 'flowact[data]'")
    from data_tools.judges import MeshMouth

    with pytest.raises(UserError, match="height is 8"):
        MeshMouth(height=8)
