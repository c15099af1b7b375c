"""The whole table: truth scores perfectly, and each fault moves its own number."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from flowact.evaluation import METRIC_NAMES, Clip, measure


def test_truth_is_perfect(clips, block):
    result = measure(clips, block)
    assert result.lip_correlation == pytest.approx(1, abs=1e-3)
    assert abs(result.lip_correlation_shuffled) < 0.1
    assert result.lip_lag_frames == 0
    assert result.identity_error < 2 / 255
    assert result.identity_rank == 1
    assert result.state_accuracy == 1
    assert result.drift == pytest.approx(0, abs=1e-9)
    assert result.motion_ratio == pytest.approx(1)
    assert result.details["lip_failures"] == 0
    assert result.details["sharpness_ratio"] == pytest.approx(1)
    assert result.details["pose_frechet"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("late", [-8, -1, 3, 8])
def test_a_late_video_shows_in_the_lag(clips, block, late):
    shifted = [replace(clip, frames_THWC=np.roll(clip.frames_THWC, late, axis=0)) for clip in clips]
    result = measure(shifted, block)
    assert result.lip_lag_frames == late
    assert result.lip_correlation < 0.8


def test_a_frozen_video_fails_and_is_not_averaged_away(clips, block):
    frozen = [replace(clip, frames_THWC=np.repeat(clip.frames_THWC[:1], len(clip.states_T), 0)) for clip in clips[:2]]
    result = measure([*frozen, *clips[2:]], block)
    assert result.details["lip_failures"] == 2
    assert result.details["lip_clips"] == 6
    assert result.lip_correlation == pytest.approx(4 / 6, abs=1e-3)
    still = measure([replace(clip, frames_THWC=np.repeat(clip.frames_THWC[:1], len(clip.states_T), 0)) for clip in clips], block)
    assert still.lip_correlation == 0
    assert still.motion_ratio == 0
    assert still.to_json()["lip_lag_frames"] is None


def test_wrong_speech_gives_chance(clips, block):
    swapped = [
        replace(clip, frames_THWC=block.render(clip.identity, other.truth_TP)) for clip, other in zip(clips, clips[1:] + clips[:1], strict=True)
    ]
    result = measure(swapped, block)
    assert abs(result.lip_correlation) < 0.15
    assert result.identity_rank == 1
    assert result.state_accuracy == 1


def test_wrong_people_show_in_rank_and_error(clips, block):
    swapped = [
        replace(clip, frames_THWC=block.render(other.identity, clip.truth_TP)) for clip, other in zip(clips, clips[1:] + clips[:1], strict=True)
    ]
    result = measure(swapped, block)
    assert result.identity_rank > 1.5
    assert result.identity_error > 0.05
    assert result.lip_correlation == pytest.approx(1, abs=1e-3)


def test_two_clips_of_one_person_are_not_rivals(clips, block):
    twin = replace(clips[1], key="twin", identity=clips[0].identity, frames_THWC=block.render(clips[0].identity, clips[1].truth_TP))
    assert measure([clips[0], twin, *clips[2:]], block).identity_rank == 1


def test_fading_colours_drift(clips, block):
    def fade(clip: Clip) -> Clip:
        shift = np.linspace(0, 60, len(clip.states_T))[:, None, None, None] * np.array([1, 1, 0])
        return replace(clip, frames_THWC=(clip.frames_THWC * 0.7 + shift).astype(np.uint8))

    result = measure([fade(clip) for clip in clips], block)
    assert result.drift > 0.03
    assert result.drift == max(result.details["drift_identity"], result.details["drift_residual"])
    assert len(result.details["curves"]["identity_error"]) == len(result.details["curves"]["seconds"]) == 12


def test_json_has_the_promised_names_and_nothing_that_json_cannot_say(clips, block):
    written = measure(clips[:1], block).to_json()
    assert set(written) == {*METRIC_NAMES, "details"}
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert written["details"]["example"]["key"] == "clip-0"


def test_clips_without_speech_have_no_lips(clips, block):
    mute = replace(clips[0], states_T=np.full(300, 3, np.uint8))
    result = measure([mute, clips[1]], block)
    assert result.details["lip_clips"] == 1
    assert result.details["per_clip"][0]["lip_correlation"] is None
    assert measure([mute], block).to_json()["lip_correlation"] is None


def test_mismatched_lengths_are_refused(clips):
    with pytest.raises(ValueError, match="one length"):
        replace(clips[0], frames_THWC=clips[0].frames_THWC[1:])
    with pytest.raises(ValueError, match="no clips"):
        measure([], None)
