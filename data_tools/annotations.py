"""Labels over time as annotation programs write them: Praat TextGrid, ELAN, tables and subtitles. Nothing but the file itself is opened."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

from flowact.data.media import MediaError
from flowact.errors import did_you_mean
from flowact.types import FRAMES_PER_SECOND

#: what KEY.SUFFIX may end in
FORMATS = ("TextGrid", "eaf", "csv", "tsv", "srt", "vtt")
#: tier of labels that have none of their own
SUBTITLES = "subtitles"
MAX_BYTES = 64 << 20
TOLERANCE_S = 1 / FRAMES_PER_SECOND  # by which labels may overlap: what rounding does

_COLUMNS = {
    "start": ("start", "start_s", "begin", "onset", "from"),
    "end": ("end", "end_s", "stop", "offset", "to"),
    "label": ("label", "state", "behaviour", "behavior", "annotation", "value"),
    "caption": ("caption", "prompt", "text"),
    "tier": ("tier", "track", "layer"),
}
#: a table's column -> the tier that it makes
_COLUMN_TIERS = {"label": "states", "caption": "captions"}
# Praat reads free-standing numbers, quoted text and <flags>, and ignores all else: so the long and the short format are one
_PRAAT = re.compile(r'"((?:[^"]|"")*)"|(?<!\S)([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?!\S)|(<\w+>)|![^\n]*')
_TIMES = re.compile(r"((?:\d+:)?\d+:\d+[,.]\d+)\s*-->\s*((?:\d+:)?\d+:\d+[,.]\d+)")
_TAG = re.compile(r"<[^>]*>|\{\\[^}]*\}")


class AnnotationError(MediaError):
    """An annotation that can not be used: the file, the place, what is wrong, and what to do."""

    code = "annotation"


@dataclass(frozen=True)
class Label:
    """Something that is said about a stretch of a recording.

    Attributes:
        start_s: second at which it begins.
        end_s: second at which it ends, after it began.
        text: one line, not empty.
        tier: of a TextGrid or ELAN file, or of a table's column of that name; 'states' and 'captions' for a table's columns of labels and captions,
            'subtitles' for subtitles.
    """

    start_s: float
    end_s: float
    text: str
    tier: str


def read_annotations(path: Path) -> tuple[Label, ...]:
    """Labels of a file, in order of tier and time; empty ones are gaps and left out.

    Raises:
        AnnotationError: unreadable, another format than its name says, times that run backwards, labels of one tier that overlap.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise AnnotationError(f"{path}: {path.suffix or 'no suffix'} is no format of annotations; known are {', '.join(FORMATS)}")
    try:
        labels = [label for label in reader(_text(path), path) if label.text]
    except (ValueError, ArithmeticError, LookupError, StopIteration, RuntimeError, csv.Error, ElementTree.ParseError) as error:
        if isinstance(error, AnnotationError):
            raise
        reason = str(error) or "it ends too early"
        raise AnnotationError(f"{path} can not be read as {path.suffix.lstrip('.')} ({reason}); export it again, or remove it") from error
    labels = sorted(labels, key=lambda label: (label.tier, label.start_s, label.end_s))
    for label in labels:
        if not (0 <= label.start_s < label.end_s and math.isfinite(label.end_s)):
            raise AnnotationError(
                f"{path}: {label.text!r} lasts from {label.start_s:g} to {label.end_s:g} s; a label begins at 0 or later and ends after that"
            )
    for one, two in pairwise(labels):
        if one.tier == two.tier and two.start_s < one.end_s - TOLERANCE_S:
            raise AnnotationError(
                f"{path}: {one.text!r} ({one.start_s:g} to {one.end_s:g} s) and {two.text!r} (from {two.start_s:g} s) overlap"
                f"{f' in the tier {one.tier!r}' if one.tier else ''}; a frame has one label, so shorten one or move it to another tier"
            )
    return tuple(labels)


def frame_runs(labels: Sequence[Label], start_s: float, frames: int) -> list[tuple[int, int, str]]:
    """Labels of one tier as runs first, end, text of frames 0..frames-1, of which frame 0 is at `start_s`; what lies outside is cut off."""
    found: list[tuple[int, int, str]] = []
    for label in labels:
        first, end = (min(max(round((second - start_s) * FRAMES_PER_SECOND), 0), frames) for second in (label.start_s, label.end_s))
        if found and first < found[-1][1]:  # an overlap of less than a frame
            first = found[-1][1]
        if end > first:
            found.append((first, end, label.text))
    return found


def _text(path: Path) -> str:
    """What is in a file: UTF-8, or UTF-16 with its mark, as Praat writes it."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_BYTES else b""
    except OSError as error:
        raise AnnotationError(f"{path} can not be read ({error.strerror})") from error
    if size > MAX_BYTES:
        raise AnnotationError(f"{path} has {size / 2**20:.0f} MiB, annotations have at most {MAX_BYTES >> 20}; is it another kind of file?")
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        what = encoding.removesuffix("-sig").upper()
        raise AnnotationError(f"{path} is no {what} text ({error.reason} at byte {error.start}); save it as UTF-8") from error


# --- Praat ----------------------------------------------------------------------------------------------------------------------------------------


def _textgrid(text: str, path: Path) -> Iterator[Label]:
    tokens = iter([match for match in _PRAAT.finditer(text) if not match[0].startswith("!")])

    def word() -> str:
        token = next(tokens)
        if token[1] is None:
            raise ValueError(f"expected quoted text, found {token[0]}")
        return token[1].replace('""', '"')

    def number() -> float:
        token = next(tokens)
        if token[2] is None:
            raise ValueError(f"expected a number, found {token[0][:40]}")
        return float(token[2])

    if word() != "ooTextFile" or word() != "TextGrid":
        raise ValueError("it does not begin as a TextGrid in text format")
    number(), number(), next(tokens)  # its times, and the flag that there are tiers
    for _ in range(int(number())):
        kind, tier = word(), word()
        number(), number()
        for _ in range(int(number())):
            if kind == "IntervalTier":
                yield Label(number(), number(), " ".join(word().split()), tier)
            else:  # points have no duration
                number(), word()


# --- ELAN -----------------------------------------------------------------------------------------------------------------------------------------


def _elan(text: str, path: Path) -> Iterator[Label]:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("it declares a document type or entities, which ELAN never does")
    root = ElementTree.fromstring(text)
    slots = {slot.attrib["TIME_SLOT_ID"]: slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}
    entries = {
        entry.attrib["ANNOTATION_ID"]: (entry, tier.attrib["TIER_ID"])
        for tier in root.iter("TIER")
        for kind in ("ALIGNABLE_ANNOTATION", "REF_ANNOTATION")
        for entry in tier.iter(kind)
    }
    for entry, tier in entries.values():
        aligned, steps = entry, 0
        while "ANNOTATION_REF" in aligned.attrib:  # a symbolic tier has the times of the one above it
            aligned, steps = entries[aligned.attrib["ANNOTATION_REF"]][0], steps + 1
            if steps > len(entries):
                raise ValueError("its annotations refer to each other in a circle")
        start, end = (slots[aligned.attrib[f"TIME_SLOT_REF{number}"]] for number in (1, 2))
        words = " ".join((entry.findtext("ANNOTATION_VALUE") or "").split())
        if start is None or end is None:
            raise ValueError(f"{words!r} in the tier {tier!r} has no times; align it in ELAN")
        yield Label(int(start) / 1000, int(end) / 1000, words, tier)


# --- tables ---------------------------------------------------------------------------------------------------------------------------------------


def _table(text: str, path: Path) -> Iterator[Label]:
    head = text.partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=head.count)
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(map(str.strip, row))]
    if not rows:
        return
    columns = _columns(rows[0], path)
    said = [name for name in _COLUMN_TIERS if name in columns] or ["label"]
    for number, row in enumerate(rows[1 if columns else 0 :], 2 if columns else 1):
        cells = {name: row[place] if place < len(row) else "" for name, place in (columns or {"start": 0, "end": 1, "label": 2}).items()}
        start, end = (_seconds(cells[name], delimiter, f"{path}:{number}: {name}") for name in ("start", "end"))
        for name in said:
            tier = cells.get("tier", "") if len(said) == 1 else ""
            yield Label(start, end, " ".join(cells[name].split()), tier or _COLUMN_TIERS[name])


def _columns(head: Sequence[str], path: Path) -> dict[str, int]:
    """Our name of a column -> its place; empty where the first row holds times already."""
    if len(head) >= 3 and all(re.fullmatch(r"[\d:.,]+", cell) for cell in head[:2]):
        return {}
    names = [cell.lower() for cell in head]
    found = {ours: next((names.index(name) for name in known if name in names), None) for ours, known in _COLUMNS.items()}
    columns = {ours: place for ours, place in found.items() if place is not None}
    missing = [ours for ours in ("start", "end") if ours not in columns] + ([] if {"label", "caption"} & set(columns) else ["label"])
    if missing:
        hint = did_you_mean(missing[0], head)
        raise AnnotationError(f"{path} has no column {missing[0]!r}.{hint} A table of labels has the columns start, end and label (or caption)")
    return columns


def _seconds(cell: str, delimiter: str, place: str) -> float:
    """Seconds, or [hours:]minutes:seconds; with a decimal comma where semicolons part the cells."""
    try:
        parts = [float(part) for part in (cell.replace(",", ".") if delimiter == ";" else cell).split(":")]
    except ValueError as error:
        raise AnnotationError(f"{place} is {cell!r}, expected seconds or minutes:seconds") from error
    return sum(part * 60**power for power, part in enumerate(reversed(parts)))


# --- subtitles ------------------------------------------------------------------------------------------------------------------------------------


def _subtitles(text: str, path: Path) -> Iterator[Label]:
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    for block in re.split(r"\n[ \t]*\n", lines):
        if "-->" not in block:  # a number, a note, a style
            continue
        times = _TIMES.search(block)
        if times is None:
            raise ValueError(f"{next(line for line in block.splitlines() if '-->' in line)[:80]!r} are no times")
        words = block[times.end() :].partition("\n")[2]
        start, end = (_seconds(time.replace(",", "."), ",", str(path)) for time in times.groups())
        yield Label(start, end, " ".join(html.unescape(_TAG.sub("", words)).split()), SUBTITLES)


_READERS = {".textgrid": _textgrid, ".eaf": _elan, ".csv": _table, ".tsv": _table, ".srt": _subtitles, ".vtt": _subtitles}
