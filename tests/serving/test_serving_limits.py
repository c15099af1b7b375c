"""What comes from outside is bounded before anything looks at it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowact.errors import UserError
from flowact.serving.events import read_event
from flowact.serving.limits import Bucket, Limits, Refusal, parse_json

LIMITS = Limits()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0.1, 4)), max_size=40))
def test_no_pattern_of_requests_gets_more_than_rate_and_burst(pattern):
    clock = Clock()
    bucket = Bucket(2.0, 5.0, clock)
    taken = 0.0
    for wait, amount in pattern:
        clock.now += wait
        taken += amount if bucket.take(amount) else 0.0
        assert taken <= 5.0 + 2.0 * (clock.now - 100.0) + 1e-6


def test_a_bucket_that_refused_gives_again_later():
    clock = Clock()
    bucket = Bucket(1.0, 2.0, clock)
    assert [bucket.take(), bucket.take(), bucket.take()] == [True, True, False]
    assert not bucket.full
    clock.now += 1.0
    assert bucket.take()
    clock.now += 10.0
    assert bucket.full
    assert not bucket.take(2.5)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "invalid_json"),
        ("[]", "invalid_json"),
        ("7", "invalid_json"),
        ('{"a": NaN}', "invalid_json"),
        ('{"a": 1, "a": 2}', "invalid_json"),
        ("\ud800", "invalid_json"),
        ('{"a": ' + "9" * 5000 + "}", "invalid_json"),
        ('{"a":' * 12 + "1" + "}" * 12, "event_too_complex"),
        ("[" * 100_000, "event_too_complex"),
        ('{"a": [' + "1," * 1000 + "1]}", "event_too_complex"),
        ('{"a": "' + "x" * LIMITS.text_bytes + '"}', "event_too_large"),
    ],
)
def test_hostile_json_is_refused(text, code):
    with pytest.raises(Refusal) as refused:
        parse_json(text, LIMITS)
    assert refused.value.code == code
    assert len(refused.value.message) < 400


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=60), st.binary(max_size=60)))
def test_any_text_is_an_event_or_a_refusal(text):
    with pytest.raises(Refusal):  # no text of this length happens to be an event
        read_event(text, LIMITS)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=12,
    ),
    st.sampled_from(["session.update", "avatar.state.update", "avatar.prompt.update", "avatar.ping", "input_audio_buffer.append"]),
)
def test_any_field_values_are_an_event_or_a_refusal(value, kind):
    for name in ("session", "state", "text", "sent", "audio", "event_id"):
        try:
            code = read_event(json.dumps({"type": kind, name: value}), LIMITS).type
        except Refusal as refusal:
            code = refusal.code
        assert code in (kind, "invalid_event", "prompt_too_long", "event_too_complex", "invalid_json")


def test_a_mistake_is_told_with_its_field():
    with pytest.raises(Refusal, match=r"session\.audio\.input\.format\.rate") as refused:
        read_event('{"type": "session.update", "session": {"audio": {"input": {"format": {"rate": 5}}}}}', LIMITS)
    assert refused.value.code == "invalid_event"
    with pytest.raises(Refusal, match=r"avatar\.state\.update") as refused:
        read_event('{"type": "avatar.status.update"}', LIMITS)
    assert refused.value.code == "unknown_event"
    with pytest.raises(Refusal, match="600 characters") as refused:
        read_event(json.dumps({"type": "avatar.prompt.update", "text": "x" * 600}), LIMITS)
    assert refused.value.code == "prompt_too_long"


def test_limits_are_above_zero():
    with pytest.raises(UserError, match="max_sessions 0"):
        Limits(max_sessions=0)
