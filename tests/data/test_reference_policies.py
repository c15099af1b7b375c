from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from ramp_dataset import STRIDE, make_dataset

from flowact.data import ShardDataModule
from flowact.data.references import Companions, check_policy, farthest, reference_frames
from flowact.errors import UserError

#: clip 4 is the only one of its person; clip 5 the only one of its size
PEOPLE = ["ana", "ben", "ana", "ben", "cleo", "ana"]
SIZES = [(1, 1)] * 5 + [(2, 1)]


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Clips of three people; reference picture r of clip i holds 100 + r and i."""
    return make_dataset(tmp_path_factory.mktemp("people"), {"train": [120] * 6, "val": [120]}, people=PEOPLE, sizes=SIZES, per_shard=2)


def pictures(root, policy, **options) -> list[tuple[int, int, int, int]]:
    """(clip, first latent, candidate, clip of the picture) of every window of an epoch."""
    options = {"batch_size": 1, "window_frames": 4, "windows_per_clip": 40, **options}
    data = ShardDataModule(str(root / "train"), str(root / "val"), reference=policy, **options)
    data.setup("fit")
    found = []
    for batch in data.train_dataloader():
        for b, name in enumerate(batch.keys):
            key, _, first = name.partition("@")
            candidate, owner = (int(value) for value in batch.reference_BFCHW[b, 0, :, 0, 0])
            found.append((int(key[-3:]), int(first), candidate - 100, owner))
    return found


def test_other_takes_any_candidate_of_any_other_clip_of_the_person(people):
    found = pictures(people, "other")
    assert {(clip, owner) for clip, _, _, owner in found} == {(0, 2), (2, 0), (1, 3), (3, 1), (4, 4), (5, 5)}
    assert {candidate for clip, _, candidate, _ in found if clip < 4} == {0, 1, 2}


@pytest.mark.parametrize("policy", ["first", "random", "far"])
def test_the_other_policies_stay_in_the_clip(people, policy):
    found = pictures(people, policy)
    assert all(clip == owner for clip, _, _, owner in found)
    wanted = {"first": {0}, "random": {0, 1, 2}, "far": {1, 2}}
    assert {candidate for _, _, candidate, _ in found} == wanted[policy]


def test_far_takes_the_candidate_whose_frame_is_farthest(people):
    frames = reference_frames(120, 2)
    assert frames == [30, 90]
    checked = 0
    for _, first, candidate, _ in pictures(people, "far"):
        shown = range(first * STRIDE + 1, (first + 4) * STRIDE + 1)
        distances = [min(abs(frame - t) for t in shown) for frame in frames]
        if distances[0] != distances[1]:
            assert candidate == 1 + int(distances[1] > distances[0])
            checked += 1
    assert checked > 100


def test_a_clip_without_further_candidates_shows_its_own_picture():
    assert farthest(120, 1, 0, 16) == 0


@pytest.mark.parametrize("policy", ["random", "other", "far"])
def test_pictures_depend_on_the_window_alone(people, policy):
    """Not on workers, cache or what was read before: the same windows in the order of two ranks have the same pictures."""
    expected = pictures(people, policy)
    assert pictures(people, policy, num_workers=2) == expected
    assert pictures(people, policy, cache_bytes=0) == expected
    assert pictures(people, policy, cache_bytes=0) != pictures(people, policy, cache_bytes=0, seed=1)


def test_the_windows_themselves_are_the_same_under_every_policy(people):
    drawn = {policy: [window[:2] for window in pictures(people, policy)] for policy in ("first", "random", "other", "far")}
    assert all(windows == drawn["first"] for windows in drawn.values())


def test_validation_shows_the_clips_own_picture(people):
    data = ShardDataModule(str(people / "train"), str(people / "val"), reference="other", batch_size=4, window_frames=4)
    assert {float(value) for batch in data.val_dataloader() for value in batch.reference_BFCHW[:, 0, 0, 0, 0]} == {100.0}


def test_clips_that_are_alone_are_counted(people, caplog):
    with caplog.at_level("INFO", "lightning.pytorch"):
        pictures(people, "other")
    assert "2 of 6 clips are the only one of their person and size of pictures" in caplog.text


def test_companions_are_drawn_evenly():
    companions = Companions.of(["a", "b", "a", "a", "a"], [(1,)] * 5)
    assert companions.num_alone == 1
    generator = np.random.default_rng(0)
    counts = Counter(companions.draw(2, generator) for _ in range(3000))
    assert set(counts) == {0, 3, 4}
    assert min(counts.values()) > 900
    assert companions.draw(1, generator) == 1


def test_a_policy_that_does_not_exist():
    with pytest.raises(UserError, match=r"reference is 'furthest'; it is one of 'first', 'random', 'other', 'far'"):
        check_policy("furthest")
