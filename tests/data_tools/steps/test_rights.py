from __future__ import annotations

import numpy as np
import pytest
from heard_clips import clip_of, judged

from data_tools.steps.rights import Rights
from flowact.errors import UserError


def clip(folder, license=None, consent=None):
    return clip_of(folder, np.zeros(25 * 640, np.float32), source={"license": license, "consent": consent})


def test_what_a_recording_says_goes_before_what_is_said_for_all(tmp_path):
    step = Rights(license="CC-BY-4.0", consent="signed")
    plan = judged(step, clip(tmp_path, "CC0-1.0"))[1]
    assert (plan.license, plan.consent) == ("CC0-1.0", "signed")
    assert judged(Rights(), clip(tmp_path))[1].license == ""


@pytest.mark.parametrize("name", ["license", "consent"])
@pytest.mark.parametrize("value", [None, "", " Unknown ", "n/a"])
def test_what_is_missing_rejects_only_where_it_is_required(tmp_path, name, value):
    found = clip(tmp_path, **{"license": "MIT", "consent": "signed", name: value})
    scores, _, broken = judged(Rights(), found)
    assert scores["missing"] == [name]
    assert not broken
    (reason,) = judged(Rights(**{f"{name}_rule": "require"}), found)[2]
    assert f"Rights.{name}" in reason
    assert not judged(Rights(**{f"{name}_rule": "require", name: "stated"}), found)[2]


def test_only_allowed_licences_pass_however_they_are_written(tmp_path):
    step = Rights(allowed=["CC-BY-4.0", "CC0-1.0"])
    assert not judged(step, clip(tmp_path, "cc by 4.0"))[2]
    assert judged(step, clip(tmp_path, "CC-BY-NC-4.0"))[2] == ["the licence is CC-BY-NC-4.0, and only CC-BY-4.0, CC0-1.0 may be used"]
    assert judged(step, clip(tmp_path, "CC-BY-3.0"))[2]
    assert not judged(step, clip(tmp_path))[2]  # nothing is said, and nothing required


def test_it_is_known_before_a_frame_is_decoded(tmp_path):
    found, step = clip(tmp_path, "MIT"), Rights(consent_rule="require")
    scores = step.survey(found.recording.source, found.recording.footage)
    assert scores == step.score(found)
    assert [rule.score for rule in step.judge(scores) if rule is not None and not rule.kept] == ["consent"]


WRONG = [({"license_rule": "ask"}, "license_rule"), ({"allowed": []}, "allowed"), ({"license": "MIT", "allowed": ["CC0-1.0"]}, "MIT")]


@pytest.mark.parametrize(("arguments", "words"), WRONG)
def test_impossible_arguments_are_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        Rights(**arguments)
