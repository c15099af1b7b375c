"""Laws of every step that is registered: what is measured never depends on what is decided from it, nor on how frames come in blocks."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from made_recording import act, record, whole

from data_tools.steps.base import Clip, Recording, Rule, Step
from data_tools.steps.detectors.sidecar import SidecarBoxes
from flowact import registry
from flowact.errors import UserError

STEPS = {component.name: component for component in registry.components("steps") if component.distribution == "flowact"}
#: of steps that need some
ARGUMENTS: dict[str, dict[str, Any]] = {"FaceTracks": {"detector": SidecarBoxes()}}
#: tried in the place of a threshold, until the step takes one
OTHERS = (0.37, 3, 45, 1e-3, "keep", "reject", "require", "warn")


def build(name: str, **changes: Any) -> Step:
    return registry.load(name, "steps")(**{**ARGUMENTS.get(name, {}), **changes})


def in_order(steps: dict[str, Step]) -> list[Step]:
    """Each after those that it needs."""
    ordered: list[Step] = []
    while len(ordered) < len(steps):
        names = {step.name for step in ordered}
        ready = [step for name, step in sorted(steps.items()) if name not in names and set(step.needs) <= names]
        assert ready, f"{sorted(set(steps) - names)} need steps that are not registered"
        ordered += ready
    return ordered


@pytest.fixture(scope="module")
def chain() -> list[Step]:
    assert {"Scenes", "FaceTracks", "Sharpness", "Exposure", "Motion"} <= set(STEPS)
    return in_order({name: build(name) for name in STEPS})


@pytest.fixture(scope="module")
def recording(chain, tmp_path_factory) -> Recording:
    return record(tmp_path_factory.mktemp("puppet"), chain, **act())


@pytest.fixture(scope="module")
def clips(chain, recording) -> dict[str, Clip]:
    """What each step is shown, as in a build."""
    clip, shown, scores = whole(recording), {}, {}
    for step in chain:
        shown[step.name] = clip
        found = step.score(clip)
        if found:
            scores[step.name] = found
        clip = Clip(recording, step.apply(replace(clip, scores=scores), found), dict(scores))
    return shown


def spying(step: Step) -> list[str]:
    """Names of attributes that are read of the step from now on."""
    read: list[str] = []

    class Spy(type(step)):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            read.append(name)
            return super().__getattribute__(name)

    Spy.__name__ = type(step).__name__
    step.__class__ = Spy
    return read


def with_other_thresholds(name: str) -> Iterator[tuple[str, Step]]:
    """The step with one threshold changed, for each."""
    cls = registry.load(name, "steps")
    hints = get_type_hints(cls.__init__)
    for threshold in cls.thresholds:
        default = inspect.signature(cls).parameters[threshold].default
        words = [word for word in get_args(hints[threshold]) if isinstance(word, str)]
        others = [not default] if isinstance(default, bool) else words or OTHERS
        for other in others:
            if other == default or isinstance(other, str) != isinstance(default, str):
                continue
            try:
                yield threshold, build(name, **{threshold: other})
                break
            except (UserError, TypeError):
                continue


def test_thresholds_are_arguments(chain):
    for step in chain:
        assert set(step.thresholds) <= set(inspect.signature(type(step)).parameters), step.name


def test_signals_have_a_value_a_frame_and_do_not_depend_on_blocks(chain, recording, tmp_path):
    others = record(tmp_path, chain, **act(), block=7).signals
    assert set(others) == set(recording.signals)
    for name, values in recording.signals.items():
        assert len(values) == recording.frames, name
        assert values.dtype.kind == "f", name
        np.testing.assert_allclose(values, others[name], rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", sorted(STEPS))
def test_measuring_reads_no_threshold(name, recording, clips):
    step = build(name)
    read = spying(step)
    step.survey(recording.source, recording.footage)
    step.watcher(recording.source, recording.footage)
    step.listen(recording.sound, recording.other)
    step.score(clips[name])
    assert "score" in read  # the spy sees
    assert not set(read) & set(step.thresholds)


@pytest.mark.parametrize("name", sorted(STEPS))
def test_other_thresholds_measure_the_same(name, recording, clips, tmp_path):
    step, changed = build(name), []
    expected = step.score(clips[name]), step.survey(recording.source, recording.footage)
    for threshold, step in with_other_thresholds(name):
        assert (step.score(clips[name]), step.survey(recording.source, recording.footage)) == expected, threshold
        changed.append(threshold)
    assert changed or not step.thresholds
    signals = record(tmp_path, [step], **act()).signals
    for signal, values in signals.items():
        np.testing.assert_array_equal(values, recording.signals[signal], err_msg=signal)


@pytest.mark.parametrize("name", sorted(STEPS))
def test_scores_are_plain_and_rules_are_about_them(name, recording, clips):
    step = build(name)
    for scores in (step.survey(recording.source, recording.footage), step.score(clips[name])):
        assert json.loads(json.dumps(scores)) == scores
        for rule in step.judge(scores) if scores else ():
            if rule is None:
                continue
            assert isinstance(rule, Rule)
            assert rule.score in scores
            assert step.explain(rule).strip()
