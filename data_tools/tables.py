"""Tables of recordings: CSV, TSV, JSONL and Parquet, at any address. A row that is faulty is told by its line and does not hide the others."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from data_tools import addresses
from flowact.data.media import MediaError
from flowact.errors import UserError, did_you_mean

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
MAX_BYTES = 1 << 31
#: our name of a table's column -> names that are understood without being told
COLUMNS = {
    "video": ("video", "path", "file", "url", "uri"),
    "start": ("start", "start_s", "begin"),
    "end": ("end", "end_s", "stop"),
    "identity": ("identity", "person", "speaker", "name"),
    "caption": ("caption", "text", "prompt"),
    "license": ("license", "licence"),
    "consent": ("consent",),
    "split": ("split",),
}


class Row(NamedTuple):
    """A row, and where it is: FILE:LINE."""

    place: str
    values: Mapping[str, Any]


def read_rows(address: str, suffix: str) -> tuple[list[Row], list[tuple[str, str]]]:
    """Rows of a table, and (place, reason) of each that can not be read.

    Raises:
        UserError: nothing there, no table at all, or one without rows.
    """
    data = addresses.read(address, MAX_BYTES)
    faults: list[tuple[str, str]] = []
    try:
        if suffix == ".parquet":
            rows = _parquet(address, data)
        else:
            text = data.decode("utf-8-sig")
            rows, faults = _jsonl(address, text) if suffix == ".jsonl" else _csv(address, text, "\t" if suffix == ".tsv" else None)
    except UnicodeDecodeError as error:
        raise UserError(f"{address} is not UTF-8 ({error}); save it as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{address} can not be read as a table ({error}); save it anew as {suffix[1:].upper()}") from error
    if not rows and not faults:
        raise UserError(f"{address} has no rows")
    return rows, faults


def choose_columns(address: str, rows: Sequence[Mapping[str, Any]], told: Mapping[str, str]) -> dict[str, str]:
    """Our name of a column -> its name in the table.

    Args:
        address: of the table.
        rows: of it.
        told: by the user; wins over names that are understood.

    Raises:
        UserError: a name that does not exist, or no column of videos.
    """
    present = list(dict.fromkeys(name for row in rows for name in row))
    chosen: dict[str, str] = {}
    for ours, theirs in told.items():
        if ours not in COLUMNS:
            raise UserError(f"columns: there is no {ours!r}.{did_you_mean(ours, COLUMNS)}")
        if theirs not in present:
            raise UserError(f"{address} has no column {theirs!r}.{did_you_mean(theirs, present)}")
        chosen[ours] = theirs
    for ours, names in COLUMNS.items():
        found = next((name for name in present if name.strip().lower() in names), None)
        if found is not None:
            chosen.setdefault(ours, found)
    if "video" not in chosen:
        there = ", ".join(present) or "broken rows"
        raise UserError(f"{address} has no column of videos, only {there}; name it in the recipe: columns: {{video: NAME}}")
    return chosen


def seconds_of(value: Any, column: str) -> float | None:
    """A number of seconds, or [hours:]minutes:seconds; None where there is none.

    Raises:
        MediaError: something else.
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        parts = [float(part) for part in str(value).split(":")]
        seconds = sum(part * 60**power for power, part in enumerate(reversed(parts)))
    except (ValueError, OverflowError) as error:
        raise MediaError(f"{column} is {value!r}, expected seconds or minutes:seconds") from error
    if not 0 <= seconds < 1e6:
        raise MediaError(f"{column} is {value!r}, expected seconds from 0 on")
    return seconds


def plain_text(value: Any) -> str | None:
    """A word or number as text; None for nothing, and for what is neither."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    if isinstance(value, float):  # a column of whole numbers with a gap is one of floats
        return None if math.isnan(value) else f"{value:.17g}"
    return str(value).strip() or None


def _csv(address: str, text: str, delimiter: str | None) -> tuple[list[Row], list[tuple[str, str]]]:
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter or max(",;\t", key=head.count))
    names: list[str] | None = None
    rows, faults, line = [], [], 1
    for fields in reader:
        place, line = f"{address}:{line}", reader.line_num + 1
        if not fields:
            continue
        if names is None:
            names = fields
            if len(set(names)) < len(names):
                raise UserError(f"{place}: two columns have one name: {', '.join(names)}; rename one")
        elif len(fields) != len(names):
            faults.append((place, f"{len(fields)} fields, the first line names {len(names)}: {', '.join(names)}; put texts with commas in quotes"))
        else:
            rows.append(Row(place, dict(zip(names, fields, strict=True))))
    return rows, faults


def _jsonl(address: str, text: str) -> tuple[list[Row], list[tuple[str, str]]]:
    rows, faults = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{address}:{number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            faults.append((place + column, f"no JSON ({getattr(error, 'msg', error)}); correct the line"))
            continue
        if isinstance(values, dict):
            rows.append(Row(place, values))
        else:
            faults.append((place, f"{line.strip()[:40]} is no object; write {{\"video\": ...}}"))
    return rows, faults


def _parquet(address: str, data: bytes) -> list[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{address}: Parquet needs pyarrow; pip install 'flowact[data]'") from error
    try:
        rows: Iterable[dict[str, Any]] = pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{address} can not be read as Parquet ({error}); write it anew") from error
    return [Row(f"{address}:{number}", row) for number, row in enumerate(rows, 1)]
