from __future__ import annotations

import pytest

from flowact.errors import UserError
from flowact.planning import TimedPrompt, load_prompts, prompts_per_frame, save_prompts, states_per_frame
from flowact.types import STATES

PROMPTS = [
    TimedPrompt(0.0, "listening", "the person listens: [closely], 'nods' & smiles"),
    TimedPrompt(1.24, "thinking", "er schaut nach oben \u2013 überlegt"),
    TimedPrompt(3661.04, "speaking", "the person speaks"),
]


def written(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.yaml", "a.yml", "a.srt"])
def test_what_is_written_is_read_back(tmp_path, name):
    save_prompts(tmp_path / name, PROMPTS, seconds=4000.0)
    assert load_prompts(tmp_path / name) == PROMPTS


def test_yaml_as_people_write_it(tmp_path):
    path = written(
        tmp_path, "a.yaml", "- {at: 0, state: idle}\n- at: 1:02.5\n  text: laughs\n- {at: '2:03', until: 130, state: thinking, text: hm}\n"
    )
    prompts = load_prompts(path)
    assert [prompt.start_seconds for prompt in prompts] == [0.0, 62.5, 123.0]
    assert [prompt.state for prompt in prompts] == ["idle", "speaking", "thinking"]
    assert prompts[0].text
    assert prompts[1].text == "laughs"


def test_srt_as_editors_write_it(tmp_path):
    lines = [
        "\ufeff1",
        "00:00:00,000 --> 00:00:01,500 X1:40",
        "[thinking] looks up,",
        "then down",
        "",
        "",
        "2",
        "00:00:01.5 --> 00:01:00,000",
        "laughs",
        "",
    ]
    path = tmp_path / "a.SRT"
    path.write_bytes("\r\n".join(lines).encode("utf-8"))
    assert load_prompts(path) == [TimedPrompt(0.0, "thinking", "looks up, then down"), TimedPrompt(1.5, "speaking", "laughs")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "- {at: -1, state: idle}", r"prompt 1: begins at -1 s; times are not negative"),
        ("a.yaml", "- {at: 0, until: 3, state: idle}\n- {at: 2, state: idle}", r"prompt 2: begins at 2 s while .*prompt 1 lasts until 3 s"),
        ("a.yaml", "- {at: 2, state: idle}\n- {at: 2, state: idle}", r"prompt 2: begins at 2 s, not after .*prompt 1"),
        ("a.yaml", "- {at: 2, until: 1, state: idle}", r"prompt 1: ends at 1 s, not after"),
        ("a.yaml", "- {at: 0, state: speeking}", r"unknown state 'speeking'\. Did you mean speaking"),
        ("a.yaml", "- {at: 0, stat: idle}", r"unknown field 'stat'\. Did you mean state"),
        ("a.yaml", "- {at: soon, state: idle}", r"'soon' is not a time"),
        ("a.yaml", "- {at: .nan, state: idle}", r"nan is not a time"),
        ("a.yaml", "- {at: true, state: idle}", r"True is not a time"),
        ("a.yaml", "- {at: 0}", r"neither state nor text"),
        ("a.yaml", "- {at: 0, text: 7}", r"text is text, got 7"),
        ("a.yaml", "- idle", r"expected a mapping with at least 'at'"),
        ("a.yaml", "at: 0", r"holds dict, expected a list"),
        ("a.yaml", "- {at: 0", r"is not YAML"),
        ("a.yaml", "", r"holds no prompt"),
        ("a.srt", "", r"holds no prompt"),
        ("a.srt", "1\n00:00:00,000 -> 00:00:01,000\nhi", r"caption 1: expected times such as"),
        ("a.srt", "1\n-00:00:01,000 --> 00:00:01,000\nhi", r"caption 1: begins at -1 s; times are not negative"),
        ("a.srt", "1\n00:00:00,000 --> 00:00:02,000\nhi\n\n2\n00:00:01,000 --> 00:00:03,000\nho", r"caption 2: begins at 1 s while"),
        ("a.srt", "1\n00:00:00,000 --> 00:00:02,000\n[dancing] hi", r"unknown state 'dancing'"),
        ("a.srt", "1\n00:00:00,000 --> 00:00:02,000\n", r"caption 1: has no text"),
        ("a.txt", "hi", r"use \.yaml or \.srt"),
    ],
)
def test_each_mistake_is_named(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        load_prompts(written(tmp_path, name, text))


def test_a_missing_or_binary_file(tmp_path):
    with pytest.raises(UserError, match="no prompt file"):
        load_prompts(tmp_path / "absent.yaml")
    (tmp_path / "a.srt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="UTF-8"):
        load_prompts(tmp_path / "a.srt")
    with pytest.raises(UserError, match="cannot write"):
        save_prompts(tmp_path / "a.txt", PROMPTS)


def test_a_prompt_is_in_force_until_the_next_one():
    prompts = [TimedPrompt(0.0, "idle", "a"), TimedPrompt(0.12, "speaking", "b"), TimedPrompt(0.21, "thinking", "c")]
    assert prompts_per_frame(prompts, 8) == ["a", "a", "a", "b", "b", "b", "c", "c"]  # frame 6 begins at 0.24 s, the first not before 0.21
    assert [STATES[i] for i in states_per_frame(prompts, 4)] == ["idle", "idle", "idle", "speaking"]
    assert prompts_per_frame(prompts, 0) == []


def test_every_frame_boundary_is_exact():
    for frame in range(1, 2000):
        assert prompts_per_frame([TimedPrompt(0.0, "idle", "a"), TimedPrompt(frame / 25, "idle", "b")], frame + 1)[frame - 1 :] == ["a", "b"]


def test_before_the_first_prompt_it_is_in_force_too():
    assert prompts_per_frame([TimedPrompt(1.0, "idle", "a")], 3) == ["a", "a", "a"]


@pytest.mark.parametrize("prompts", [[], [TimedPrompt(1.0, "idle", "a"), TimedPrompt(0.0, "idle", "b")]])
def test_no_prompts_or_disorder(prompts):
    with pytest.raises(ValueError, match="time order"):
        prompts_per_frame(prompts, 3)
