"""Before and after: what changed, clip by clip, and whether the direction is right."""

from __future__ import annotations

import pytest

from flowact.errors import UserError
from flowact.evaluation.comparison import compare, compare_named, compared_stages, comparison_table, is_better
from flowact.evaluation.report import METRICS


def measured(lips, identity, motion=1.0, keys=("a", "b", "c"), **details):
    """An entry under `stages`; the number of clip i is a little off the mean."""
    shared = {"num_frames": 100, "identity_error": identity, "motion_ratio": motion}
    rows = [{"key": key, "lip_correlation": lips + 0.01 * i} | shared for i, key in enumerate(keys)]
    numbers = {"lip_correlation": lips, "identity_error": identity, "motion_ratio": motion, "identity_rank": None}
    counts = {"num_clips": len(keys), "num_frames": 100 * len(keys), "num_identities": 1, "frames_per_second": 25}
    return {**numbers, "details": {"per_clip": rows, **counts, **details}}


def test_differences_have_a_direction_and_an_interval_over_clips():
    changes = compare(measured(0.4, 0.10, 0.5), measured(0.8, 0.05, 1.2))
    assert changes["lip_correlation"]["difference"] == pytest.approx(0.4)
    assert changes["lip_correlation"]["interval"] == pytest.approx([0.4, 0.4]), "each clip gained as much"
    assert [changes[name]["better"] for name in ("lip_correlation", "identity_error", "motion_ratio")] == [True, True, True]
    assert "identity_rank" not in changes, "neither has it"


@pytest.mark.parametrize(
    ("name", "before", "after", "better"),
    [
        ("lip_correlation", 0.5, 0.4, False), ("identity_error", 0.1, 0.2, False), ("motion_ratio", 0.9, 1.3, False), ("lip_lag_frames", -2, 1, True),
        ("lip_correlation", 0.5001, 0.5002, None),
    ],
)  # fmt: skip
def test_what_is_better_depends_on_what_is_right(name, before, after, better):
    assert is_better(before, after, METRICS[name]) is better


def test_other_clips_are_no_comparison():
    stages = {"base": measured(0.4, 0.1), "anna": measured(0.8, 0.05), "short": measured(0.8, 0.05, keys=("a", "b"))}
    found = compare_named({"stages": stages}, "base", "anna")
    assert (found["before"], found["after"]) == ("base", "anna")
    assert "better, +0.400 to +0.400 over clips" in comparison_table(found)
    with pytest.raises(UserError, match="not the same clips"):
        compare_named({"stages": stages}, "base", "short")
    with pytest.raises(UserError, match="Did you mean anna"):
        compare_named({"stages": stages}, "base", "anne")
    stages["judged"] = measured(0.8, 0.05, identity_by="OnnxFaceEmbedder")
    with pytest.raises(UserError, match="identity of base was measured by truth and of judged by OnnxFaceEmbedder"):
        compare_named({"stages": stages}, "base", "judged")


def test_a_difference_that_may_be_chance_says_so():
    before, after = measured(0.40, 0.1), measured(0.41, 0.1)
    for row, value in zip(after["details"]["per_clip"], (0.3, 0.41, 0.56), strict=True):
        row["lip_correlation"] = value
    assert "(0 is within)" in comparison_table({"before": "x", "after": "y", "changes": compare(before, after)})


def test_the_table_of_a_card_has_the_pair_or_every_stage():
    stages = {"base": measured(0.4, 0.1), "other": measured(0.5, 0.1), "anna": measured(0.8, 0.05)}
    every = compared_stages({"stages": stages})
    assert every["columns"] == ["base", "other", "anna"]
    pair = compared_stages({"stages": stages, "comparison": compare_named({"stages": stages}, "base", "anna"), "truth": {"lip_correlation": 0.95}})
    assert pair["columns"] == ["before (base)", "after (anna)", "change", "truth through the decoder"]
    assert pair["rows"][0] == {"label": "Lip sync", "cells": ["0.400", "0.800", "+0.400", "0.950"], "aim": "higher is better"}
    assert "3 clips of 1 person that were held out, 12.0 s" in pair["measured"]
    assert compared_stages({"seconds": {}}) is None
