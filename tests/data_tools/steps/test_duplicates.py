"""Duplicates: a copy is found in another encoding, size and rate; another take of the same person is none; the work does not grow with the pairs."""

from __future__ import annotations

import numpy as np
import pytest
from made_recording import act, record, shot
from PIL import Image

from data_tools.steps.base import Clip, Plan, Span
from data_tools.steps.duplicates import Duplicates
from data_tools.steps.fingerprints import NEIGHBOURS, agreement, candidate_pairs, from_print, to_print, words
from flowact.data.media import encode_video
from flowact.errors import UserError

FRAMES, SIZE = 201, 96
STEP = Duplicates()


def scored(folder, id_="a", span=None, **recording):
    made = record(folder, [STEP], id=id_, **recording)
    return STEP.score(Clip(made, Plan(span or Span(0, made.frames))))


def take(folder, seed=0, person=0, **more):
    return scored(folder, f"take-{seed}-{person}", **act(seed, FRAMES, SIZE, person), **more)


def copied(folder, seed=0, side=64, crf=35, fps=25, **more):
    """Another encoding: smaller, coarser, quieter, perhaps at another rate."""
    made = act(seed, FRAMES, SIZE)
    frames = made["pictures_THWC"][np.minimum(np.arange(FRAMES * fps // 25) * 25 // fps, FRAMES - 1)]
    small = np.stack([np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC)) for frame in frames])
    (folder / "copy.mp4").write_bytes(encode_video(small, crf=crf, fps=fps))
    noise = np.random.default_rng(0).normal(0, 1e-3, len(made["samples_S"]))
    return scored(folder, "copy", video=folder / "copy.mp4", samples_S=0.5 * made["samples_S"] + noise, **more)


@pytest.fixture(scope="module")
def takes(tmp_path_factory):
    """Three takes of one person and one of another."""
    folder = tmp_path_factory.mktemp("takes")
    return {f"take-{seed}-{person}": take(folder, seed, person) for seed, person in ((0, 0), (3, 0), (6, 0), (9, 1))}


@pytest.mark.parametrize("fps", [25, 30])
def test_a_copy_in_another_encoding_is_out_and_names_the_one_that_stays(takes, tmp_path, fps):
    found = STEP.compare({**takes, "copy": copied(tmp_path, 3, fps=fps)})
    assert set(found) == {"copy"}
    assert "shows and sounds like take-3-0, which is kept" in found["copy"].reason
    assert found["copy"].step == "Duplicates"
    assert (found["copy"].relation, found["copy"].bound) == ("at least", 11)  # what would have kept it
    assert found["copy"].value <= 10


def test_the_first_stays_whichever_it_is(takes, tmp_path):
    assert set(STEP.compare({"copy": copied(tmp_path, 3), **takes})) == {"take-3-0"}


def test_of_three_copies_one_stays(takes, tmp_path):
    found = STEP.compare({**takes, "b": copied(tmp_path, 3), "c": copied(tmp_path, 3, side=48)})
    assert set(found) == {"b", "c"}
    assert all("take-3-0" in rejection.reason for rejection in found.values())


def test_takes_of_one_person_are_no_copies(takes):
    assert STEP.compare(takes) == {}
    assert STEP.groups(takes) == []


def test_a_copy_that_was_cut_elsewhere_is_found(takes, tmp_path):
    later = copied(tmp_path, 3, span=Span(31, FRAMES))
    assert set(STEP.compare({**takes, "later": later})) == {"later"}


def test_copies_that_are_kept_share_a_split(takes, tmp_path):
    scores = {**takes, "copy": copied(tmp_path, 3)}
    assert Duplicates(drop=False).compare(scores) == {}
    assert [set(pair) for pair in Duplicates(drop=False).groups(scores)] == [{"take-3-0", "copy"}]


def test_one_sound_with_another_picture_is_kept_and_shares_a_split(takes, tmp_path):
    dubbed = scored(tmp_path, "dubbed", **{**act(9, FRAMES, SIZE, 1), "samples_S": act(0, FRAMES, SIZE)["samples_S"]})
    scores = {"take-0-0": takes["take-0-0"], "dubbed": dubbed}
    assert STEP.compare(scores) == {}
    assert [set(pair) for pair in STEP.groups(scores)] == [{"take-0-0", "dubbed"}]


def test_one_performance_by_two_actors_is_kept_and_shares_a_split(takes, tmp_path):
    scores = {"take-0-0": takes["take-0-0"], "other": take(tmp_path, 0, person=1)}
    assert agreement(*(from_print(found["motion"]) for found in scores.values()), 5) > 0.8  # they move alike
    assert STEP.compare(scores) == {}
    assert [set(pair) for pair in STEP.groups(scores)] == [{"take-0-0", "other"}]


def test_one_picture_with_another_sound_is_kept_and_shares_a_split(takes, tmp_path):
    dubbed = scored(tmp_path, "dubbed", **{**act(0, FRAMES, SIZE), "samples_S": act(3, FRAMES, SIZE)["samples_S"]})
    scores = {"take-0-0": takes["take-0-0"], "dubbed": dubbed}
    assert STEP.compare(scores) == {}
    assert [set(pair) for pair in STEP.groups(scores)] == [{"take-0-0", "dubbed"}]


def test_two_people_of_one_recording_are_no_copies(takes):
    one = {**takes["take-0-0"], "recording": "both"}
    assert STEP.compare({"both-0": one, "both-0-p1": {**one, "track": 1}}) == {}
    assert set(STEP.compare({"both-0": one, "both-9": one})) == {"both-9"}


def test_stills_without_sound_are_compared_by_their_pictures(tmp_path):
    stills = {name: np.repeat(shot(seed, 1, size=(96, 96)), 40, axis=0) for name, seed in (("a", 1), ("b", 1), ("c", 2))}
    scores = {name: scored(tmp_path, name, pictures_THWC=pictures) for name, pictures in stills.items()}
    assert set(STEP.compare(scores)) == {"b"}


def test_clips_too_short_to_tell_are_kept(tmp_path):
    scores = {key: scored(tmp_path, key, **act(seed, 5, 64)) for key, seed in (("a", 0), ("b", 5))}
    assert set(STEP.compare(scores)) <= {"b"}
    assert STEP.compare({}) == {}
    assert STEP.compare({"a": scores["a"]}) == {}


# --- prints ----------------------------------------------------------------------------------------------------------------------------------------



def test_a_print_agrees_with_itself_moved_by_any_frames_and_not_with_another():
    a, b = (np.convolve(np.random.default_rng(seed).normal(0, 20, 600), np.ones(8) / 8, "same") for seed in (1, 2))
    for moved in (0, 1, 7, 60):
        assert agreement(*(from_print(to_print(part, -60, 0.4)) for part in (a[:400], a[moved : moved + 400])), 3) > 0.97
        assert len(set(words(a[:400]).tolist()) & set(words(a[moved : moved + 400]).tolist())) >= 8
    assert agreement(*(from_print(to_print(part[:400], -60, 0.4)) for part in (a, b)), 3) < 0.7
    assert not set(words(a).tolist()) & set(words(b).tolist())


def test_what_is_too_even_or_too_short_can_not_be_told():
    quiet = from_print(to_print(np.full(300, -60.0), -70, 0.3))
    assert agreement(quiet, quiet, 10) is None
    assert agreement(quiet[:5], quiet[:5], 0) is None
    assert len(words(np.full(300, -60.0))) == 0


def test_pairs_do_not_grow_with_the_square():
    """Everybody shares ten words; pairs that share more are still found."""
    random, number = np.random.default_rng(0), 5_000
    own = random.integers(2**20, 2**40, (number, 16), dtype=np.uint64)
    own[number // 2 :] = own[: number // 2]  # the second half are copies
    common = np.tile(np.arange(10, dtype=np.uint64), (number, 1))
    everything = np.concatenate([own, common], axis=1)
    pairs = candidate_pairs(everything.ravel(), np.repeat(np.arange(number), everything.shape[1]), 2)
    assert {(i, i + number // 2) for i in range(number // 2)} <= set(pairs)
    assert len(pairs) <= number * (NEIGHBOURS + 1)
    assert all(i < j for i, j in pairs)


def test_impossible_arguments_are_refused():
    with pytest.raises(UserError, match="max_distance 40 is 0 to 32 bits"):
        Duplicates(max_distance=40)
