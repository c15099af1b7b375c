"""Timed prompts as files that people write, YAML or SRT, and as one prompt per video frame.

YAML is a list in time order; `at` is in seconds or minutes:seconds, `until` is optional and only checked, of `state` and `text` one may be left
out::

    - {at: 0, state: listening, text: the person listens and nods}
    - {at: 2.4, state: thinking}
    - {at: 3.6, until: 8, text: the person laughs while talking}

SRT is the subtitle format; a caption may begin with its state in brackets: `[thinking] the person looks up`.

A prompt stays in force until the next one. A prompt without a state is `speaking`; one without a text takes the state's default caption.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from flowact.errors import UserError, did_you_mean
from flowact.planning.base import TimedPrompt
from flowact.planning.captions import DEFAULT_CAPTIONS
from flowact.types import FRAMES_PER_SECOND, STATES

FIELDS = ("at", "until", "state", "text")
SRT_TIME = r"(-?\d+):(\d{2}):(\d{2})[,.](\d{1,3})"
SRT_TIMES = re.compile(rf"^\s*{SRT_TIME}\s*-->\s*{SRT_TIME}(\s.*)?$")
SRT_STATE = re.compile(r"^\[([^\]]*)\]\s*(.*)$", re.DOTALL)


@dataclass(frozen=True)
class _Entry:
    """A prompt as written, with the place to name in an error."""

    place: str
    start: float
    end: float | None
    state: str | None
    text: str


def load_prompts(path: str | Path) -> list[TimedPrompt]:
    """The timed prompts of a .yaml, .yml or .srt file, in time order.

    Raises:
        UserError: no such file, not of these formats, a time that is negative or before the end of the prompt above, an unknown state or field.
    """
    path = Path(path)
    readers = {".yaml": _read_yaml, ".yml": _read_yaml, ".srt": _read_srt}
    if path.suffix.lower() not in readers:
        raise UserError(f"prompts {path}: {path.suffix or 'a file without suffix'} is not a prompt file; use .yaml or .srt")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"no prompt file at {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompts of {path} ({error}); save the file as UTF-8 text") from error
    entries = readers[path.suffix.lower()](text, str(path))
    if not entries:
        raise UserError(f"{path} holds no prompt; write at least one")
    return _check(entries)


def save_prompts(path: str | Path, prompts: Sequence[TimedPrompt], seconds: float | None = None) -> None:
    """Write prompts to a .yaml or .srt file that `load_prompts` reads back, times rounded to milliseconds.

    Args:
        path: the file, overwritten.
        prompts: in time order.
        seconds: when the last prompt ends; one second after its start if not given. Only SRT says it.

    Raises:
        UserError: another suffix.
    """
    path = Path(path)
    if path.suffix.lower() in {".yaml", ".yml"}:
        rows = [{"at": round(prompt.start_seconds, 3), "state": prompt.state, "text": prompt.text} for prompt in prompts]
        path.write_text(yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, width=150), encoding="utf-8")
    elif path.suffix.lower() == ".srt":
        starts = [prompt.start_seconds for prompt in prompts]
        ends = [*starts[1:], max(seconds or 0.0, starts[-1] + 1.0)] if starts else []
        blocks = [
            f"{i}\n{_srt_time(prompt.start_seconds)} --> {_srt_time(end)}\n[{prompt.state}] {' '.join(prompt.text.split())}\n"
            for i, (prompt, end) in enumerate(zip(prompts, ends, strict=True), start=1)
        ]
        path.write_text("\n".join(blocks), encoding="utf-8")
    else:
        raise UserError(f"cannot write prompts to {path}; use .yaml or .srt")


def prompts_per_frame(prompts: Sequence[TimedPrompt], num_frames: int) -> list[str]:
    """The text in force at each of `num_frames` video frames; before the first prompt it is the first one's.

    Raises:
        ValueError: no prompts, or not in time order.
    """
    return [prompts[i].text for i in _index_per_frame(prompts, num_frames)]


def states_per_frame(prompts: Sequence[TimedPrompt], num_frames: int) -> np.ndarray:
    """The state in force at each video frame, uint8 (num_frames,), indices into `flowact.types.STATES`; as `prompts_per_frame`."""
    return np.array([STATES.index(prompts[i].state) for i in _index_per_frame(prompts, num_frames)], np.uint8)


def _index_per_frame(prompts: Sequence[TimedPrompt], num_frames: int) -> np.ndarray:
    starts = np.array([prompt.start_seconds for prompt in prompts])
    if not starts.size or (np.diff(starts) < 0).any():
        raise ValueError(f"prompts are at least one and in time order, got start times {starts.tolist()}")
    first_frames = np.ceil(starts * FRAMES_PER_SECOND - 1e-6)  # a prompt begins with the first frame that begins no earlier than it
    return np.maximum(np.searchsorted(first_frames, np.arange(num_frames), side="right") - 1, 0)


def _read_yaml(text: str, name: str) -> list[_Entry]:
    try:
        rows = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not YAML: {error}") from error
    if rows is None:
        return []
    if not isinstance(rows, list):
        raise UserError(f"{name} holds {type(rows).__name__}, expected a list of prompts such as: - {{at: 0, state: listening}}")
    entries = []
    for number, row in enumerate(rows, start=1):
        place = f"{name}, prompt {number}"
        if not isinstance(row, dict) or "at" not in row:
            raise UserError(f"{place}: expected a mapping with at least 'at' (seconds), got {row!r}")
        for field in row:
            if field not in FIELDS:
                raise UserError(f"{place}: unknown field {field!r}.{did_you_mean(str(field), FIELDS)}")
        state, caption = row.get("state"), row.get("text")
        for field, value in (("state", state), ("text", caption)):
            if value is not None and not isinstance(value, str):
                raise UserError(f"{place}: {field} is text, got {value!r}; put it in quotes")
        if state is None and not caption:
            raise UserError(f"{place}: says neither state nor text; give at least one of them")
        until = row.get("until")
        entries.append(_Entry(place, _seconds(row["at"], place), None if until is None else _seconds(until, place), state, caption or ""))
    return entries


def _seconds(value: Any, place: str) -> float:
    """Seconds of a number or of "minutes:seconds" (which YAML already turns into seconds where it can)."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+):(\d{1,2}(?:\.\d+)?)", value.strip())):
        value = 60 * int(match[1]) + float(match[2])
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{place}: {value!r} is not a time; write seconds such as 2.4, or minutes:seconds such as 1:02.4")
    return float(value)


def _read_srt(text: str, name: str) -> list[_Entry]:
    entries = []
    for number, block in enumerate(re.split(r"\n\s*\n", text.strip()), start=1):
        lines = block.strip().split("\n")
        if len(lines) > 1 and lines[0].strip().isdigit():
            lines = lines[1:]
        place = f"{name}, caption {number}"
        if lines == [""]:
            continue
        match = SRT_TIMES.match(lines[0])
        if match is None:
            raise UserError(f"{place}: expected times such as 00:00:01,000 --> 00:00:02,500, got {lines[0]!r}")
        start, end = _srt_seconds(match.groups()[:4]), _srt_seconds(match.groups()[4:8])
        body = " ".join(line.strip() for line in lines[1:]).strip()
        marked = SRT_STATE.match(body)
        state, caption = (marked[1].strip(), marked[2].strip()) if marked else (None, body)
        if state is None and not caption:
            raise UserError(f"{place}: has no text")
        entries.append(_Entry(place, start, end, state, caption))
    return entries


def _srt_seconds(parts: Sequence[str]) -> float:
    hours, minutes, seconds, fraction = parts
    size = abs(int(hours)) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction.ljust(3, "0")) / 1000
    return -size if hours.startswith("-") else size


def _srt_time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d},{rest % 1000:03d}"


def _check(entries: Sequence[_Entry]) -> list[TimedPrompt]:
    prompts: list[TimedPrompt] = []
    above: _Entry | None = None
    for entry in entries:
        if entry.start < 0:
            raise UserError(f"{entry.place}: begins at {entry.start:g} s; times are not negative")
        if entry.end is not None and entry.end <= entry.start:
            raise UserError(f"{entry.place}: ends at {entry.end:g} s, not after its begin at {entry.start:g} s")
        if above is not None:
            if entry.start <= above.start:
                raise UserError(
                    f"{entry.place}: begins at {entry.start:g} s, not after {above.place} at {above.start:g} s; put prompts in time order"
                )
            if above.end is not None and entry.start < above.end:
                raise UserError(f"{entry.place}: begins at {entry.start:g} s while {above.place} lasts until {above.end:g} s; prompts do not overlap")
        state = entry.state or "speaking"
        if entry.state is not None and entry.state not in STATES:
            raise UserError(f"{entry.place}: unknown state {entry.state!r}.{did_you_mean(entry.state, STATES)}")
        prompts.append(TimedPrompt(entry.start, state, entry.text or DEFAULT_CAPTIONS[state][0]))
        above = entry
    return prompts
