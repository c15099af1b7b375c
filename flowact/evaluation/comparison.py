"""Two measurements of the same clips, before and after a training: what changed, and whether it is more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowact.errors import UserError, did_you_mean
from flowact.evaluation.measurement import METRIC_NAMES
from flowact.evaluation.metrics import bootstrap_interval
from flowact.evaluation.report import METRICS, Explanation, duration, number

#: numbers that each clip has, so that differences are taken clip by clip
PER_CLIP = ("lip_correlation", "identity_error", "identity_rank", "state_accuracy", "motion_ratio")
#: entry of metrics.json
COMPARISON = "comparison"


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What changed from one measurement to another, for every number that both have.

    Args:
        before: an entry under `stages`.
        after: another one.

    Returns:
        Name -> before, after, difference (after minus before), better (True, False, or None where neither is), and where each clip has the number and
        the clips are the same, interval: 95 % of the mean difference over clips, bootstrapped over clips.
    """
    rows = {}
    for name in METRIC_NAMES:
        first, second = before.get(name), after.get(name)
        if first is None or second is None:
            continue
        difference, better = round(second - first, 6), is_better(first, second, METRICS[name])
        row: dict[str, Any] = {"before": first, "after": second, "difference": difference, "better": better}
        if name in PER_CLIP and (pairs := _pairs(before, after, name)):
            row["interval"] = [round(end, 6) for end in bootstrap_interval([b - a for a, b in pairs])]
        rows[name] = row
    return rows


def is_better(before: float, after: float, explanation: Explanation) -> bool | None:
    """Whether the second number is nearer to what is right; None if they are equal as shown."""
    distance = {"higher": lambda x: -x, "lower": lambda x: x, "one": lambda x: abs(x - 1), "zero": abs}[explanation.better]
    first, second = (round(distance(value), explanation.digits) for value in (before, after))
    return None if first == second else second < first


def _pairs(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> list[tuple[float, float]]:
    """The number of each clip in both; empty unless they are the same clips of the same length."""
    rows = [{row["key"]: row for row in (measured.get("details") or {}).get("per_clip") or ()} for measured in (before, after)]
    if not rows[0] or rows[0].keys() != rows[1].keys() or any(rows[0][key]["num_frames"] != rows[1][key]["num_frames"] for key in rows[0]):
        return []
    values = [(rows[0][key].get(name), rows[1][key].get(name)) for key in rows[0]]
    return [(first, second) for first, second in values if first is not None and second is not None]


def compare_named(metrics: Mapping[str, Any], before: str, after: str) -> dict[str, Any]:
    """The entry `comparison` of metrics.json for two of its stages.

    Raises:
        UserError: a name that is not among the stages, or stages that were measured on other clips or in other ways.
    """
    stages = metrics.get("stages") or {}
    for name in (before, after):
        if name not in stages:
            held = ", ".join(stages) or "none"
            raise UserError(f"--compare: there is no entry {name!r} in these metrics, which hold {held}.{did_you_mean(name, stages)}")
    keys = [[(row["key"], row["num_frames"]) for row in (stages[name].get("details") or {}).get("per_clip") or ()] for name in (before, after)]
    if sorted(keys[0]) != sorted(keys[1]):
        raise UserError(
            f"--compare: {before} was measured on {len(keys[0])} clips and {after} on {len(keys[1])}, and they are not the same clips of the same "
            "length; measure both with the same --shards, --seconds and --limit"
        )
    kinds = [(stages[name].get("details") or {}).get("identity_by", "truth") for name in (before, after)]
    if kinds[0] != kinds[1]:
        raise UserError(f"--compare: identity of {before} was measured by {kinds[0]} and of {after} by {kinds[1]}; measure both in one way")
    return {"before": before, "after": after, "changes": compare(stages[before], stages[after])}


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """The comparison as lines of text."""
    before, after = str(comparison["before"]), str(comparison["after"])
    lines = [f"  {'':26s} {'before':>8s} {'after':>8s} {'change':>8s}   ({before} -> {after})"]
    for name, row in comparison["changes"].items():
        digits = METRICS[name].digits
        verdict = {True: "better", False: "worse", None: "same"}[row["better"]]
        shown = [number(row["before"], digits), number(row["after"], digits), signed(row["difference"], digits)]
        lines.append(f"  {name:26s} {' '.join(f'{text:>8s}' for text in shown)}   {verdict}{_surely(row, digits)}")
    return "\n".join(lines)


def signed(value: float, digits: int) -> str:
    """A difference with its sign."""
    text = number(value, digits)
    return text if text.startswith("−") or not float(text) else f"+{text}"


def _surely(row: Mapping[str, Any], digits: int) -> str:
    """The interval of a difference, and that it holds 0 if it does."""
    interval = row.get("interval")
    if interval is None or not np.isfinite(interval).all():
        return ""
    text = f", {signed(interval[0], digits)} to {signed(interval[1], digits)} over clips"
    return text + (" (0 is within)" if _holds_zero(row) and row["better"] is not None else "")


def compared_stages(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """A table for people of everything in metrics.json: columns, rows {label, cells, aim}, what it was measured on, and remarks.

    With a comparison its two stages are the columns, and the change; else every stage is one. None without numbers.
    """
    stages, truth, comparison = metrics.get("stages") or {}, metrics.get("truth") or {}, metrics.get(COMPARISON)
    pair = [comparison["before"], comparison["after"]] if comparison else []
    chosen = pair if pair and all(name in stages for name in pair) else list(stages)
    if not chosen:
        return None
    columns = [f"before ({pair[0]})", f"after ({pair[1]})", "change"] if chosen == pair else [name.replace("_", " ") for name in chosen]
    rows = []
    for name, explanation in METRICS.items():
        values = [stages[stage].get(name) for stage in chosen]
        if all(value is None for value in values):
            continue
        cells = [number(value, explanation.digits) for value in values]
        if comparison and chosen == pair:
            row = comparison["changes"].get(name)
            cells.append("–" if row is None else signed(row["difference"], explanation.digits))
        if truth:
            cells.append(number(truth.get(name), explanation.digits))
        rows.append({"label": explanation.label, "cells": cells, "aim": explanation.aim})
    details = stages[chosen[-1]].get("details") or {}
    remarks = [*_remarks(details), *(_perhaps_chance(comparison["changes"]) if comparison and chosen == pair else ())]
    columns += ["truth through the decoder"] if truth else []
    return {"columns": columns, "rows": rows, "measured": _measured(details), "remarks": remarks}


def _perhaps_chance(changes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the changes that may be none."""
    names = [METRICS[name].label for name, row in changes.items() if row["better"] is not None and _holds_zero(row)]
    return [f"May be chance, since the 95 % interval of the change over clips holds 0: {', '.join(names)}."] if names else []


def _holds_zero(row: Mapping[str, Any]) -> bool:
    interval = row.get("interval")
    return interval is not None and bool(np.isfinite(interval).all()) and interval[0] <= 0 <= interval[1]


def _measured(details: Mapping[str, Any]) -> str:
    """On what, in a sentence."""
    if not details.get("num_clips"):
        return "Measured by `flowact evaluate`:"
    length = duration(details["num_frames"] / details["frames_per_second"])
    people = details.get("num_identities")
    who = f"{people} {'person' if people == 1 else 'people'}"
    return f"Measured by `flowact evaluate` on {details['num_clips']} clips of {who} that were held out, {length} of video:"


def _remarks(details: Mapping[str, Any]) -> Sequence[str]:
    """What was not measured or only weakly, and why."""
    remarks = [str(details["identity_note"])] if details.get("identity_note") else []
    remarks += [f"{METRICS[name].label} was not measured: {reason}." for name, reason in (details.get("skipped") or {}).items() if name in METRICS]
    return remarks
