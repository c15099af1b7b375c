"""The report's plots, as PNG bytes, from plain numbers, in a light and a dark dress."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from flowact.types import FRAMES_PER_SECOND, STATES

WIDTH = 9.6
PIXELS_PER_INCH = 110
#: told apart by people with any colour vision (Okabe and Ito 2008)
STAGE_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#b8a900")
STATE_COLOURS = ("#d55e00", "#0072b2", "#cc79a7", "#8d99a6")
CURVE_TITLES = {
    "lip_correlation": "lip correlation (window of 5 s)",
    "identity_error": "identity error",
    "residual": "residual",
    "state_accuracy": "state accuracy",
}


@dataclass(frozen=True)
class Theme:
    """Colours of a page."""

    name: str
    text: str
    faint: str
    truth: str


LIGHT = Theme("light", text="#1d2129", faint="#d9dde3", truth="#7d8590")
DARK = Theme("dark", text="#e4e7ec", faint="#3a404a", truth="#9aa3af")


def stage_colour(index: int) -> str:
    """Colour of the stage with this place in the training order, the same in every plot and table."""
    return STAGE_COLOURS[index % len(STAGE_COLOURS)]


def draw(plot: Callable[[Theme], Figure], theme: Theme) -> bytes:
    """PNG bytes of a plot on a transparent ground."""
    buffer = io.BytesIO()
    plot(theme).savefig(buffer, format="png", dpi=PIXELS_PER_INCH, transparent=True, metadata={"Software": None})
    return buffer.getvalue()


def new_figure(theme: Theme, rows: int, height: float, columns: int = 1, **grid: Any) -> tuple[Figure, np.ndarray]:
    """A figure and its axes (rows, columns), dressed."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **grid)
    for axis in axes.flat:
        dress(axis, theme)
    return figure, axes


def dress(axis: Axes, theme: Theme) -> None:
    """Two spines, a faint grid, the page's ink."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(theme.faint)
    axis.tick_params(colors=theme.text, labelsize=9, length=0)
    axis.grid(color=theme.faint, linewidth=0.6)
    axis.set_axisbelow(True)
    for text in (axis.xaxis.label, axis.yaxis.label):
        text.set_color(theme.text)
        text.set_fontsize(10)


def name_panel(axis: Axes, name: str, theme: Theme) -> None:
    """A title over the left edge."""
    axis.set_title(name, loc="left", color=theme.text, fontsize=10, fontweight="bold")


def legend(figure: Figure, theme: Theme, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """One legend for the figure, above the axes."""
    figure.legend(handles, labels, loc="outside upper left", ncols=min(6, max(1, len(labels))), frameon=False, labelcolor=theme.text, fontsize=9)


def numbers(values: Sequence[float | None]) -> np.ndarray:
    """None of JSON to NaN."""
    return np.array([np.nan if value is None else value for value in values], np.float64)


def mouth_curves(examples: Mapping[str, Mapping[str, Any]], seconds: float = 10) -> Callable[[Theme], Figure]:
    """True and measured mouth area over time of one clip, a row per stage; what is not speech is shaded.

    Args:
        examples: stage -> the `details.example` of its measurement, all of one clip.
        seconds: shown length, from the start of the first speech on.
    """

    def plot(theme: Theme) -> Figure:
        figure, axes = new_figure(theme, len(examples), 0.6 + 1.35 * len(examples), sharex=True, sharey=True)
        handles: list[Any] = []
        for index, (stage, example) in enumerate(examples.items()):
            axis, states = axes[index, 0], np.asarray(example["true_state"])
            start = max(0, int(np.argmax(states == STATES.index("speaking"))) - FRAMES_PER_SECOND // 2)
            stop = min(len(states), start + round(seconds * FRAMES_PER_SECOND))
            time = np.arange(start, stop) / FRAMES_PER_SECOND
            true, measured = (numbers(example[name])[start:stop] for name in ("true_mouth_area", "measured_mouth_area"))
            top = 1.15 * float(np.nanmax(np.concatenate([true, measured, [1e-9]])))
            quiet = states[start:stop] != STATES.index("speaking")
            axis.fill_between(time, 0, 1, where=quiet, transform=axis.get_xaxis_transform(), color=theme.faint, alpha=0.55, linewidth=0, step="mid")
            filled = axis.fill_between(time, 0, true, color=theme.truth, alpha=0.45, linewidth=0)
            (line,) = axis.plot(time, measured, color=stage_colour(index), linewidth=1.6)
            axis.set_ylabel(stage.replace("_", "\n"), rotation=0, ha="right", va="center")
            axis.set_yticks([])
            axis.set_ylim(min(0.0, float(np.nanmin(np.append(measured, 0)))), max(top, axis.get_ylim()[1] if index else 0))
            axis.margins(x=0)
            handles = [filled, line, Patch(color=theme.faint, alpha=0.55)]
        axes[-1, 0].set_xlabel("seconds")
        legend(figure, theme, handles, ["true mouth area", "measured in the generated video", "not speaking"])
        return figure

    return plot


def lag_curves(curves: Mapping[str, Mapping[str, Any]], truth: Mapping[str, Any] | None = None) -> Callable[[Theme], Figure]:
    """Lip correlation by lag, a line per stage; `curves` and `truth` are `details.lag_curve`."""

    def plot(theme: Theme) -> Figure:
        figure, axes = new_figure(theme, 1, 3.2)
        axis, handles, labels = axes[0, 0], [], []
        if truth:
            (line,) = axis.plot(truth["lags"], numbers(truth["correlation"]), color=theme.truth, linewidth=1.6, linestyle=(0, (4, 2)))
            handles, labels = [line], ["truth"]
        for index, (stage, curve) in enumerate(curves.items()):
            lags, correlation = np.asarray(curve["lags"]), numbers(curve["correlation"])
            (line,) = axis.plot(lags, correlation, color=stage_colour(index), linewidth=1.8)
            peak = int(np.argmax(correlation))
            axis.plot(lags[peak], correlation[peak], "o", color=stage_colour(index), markersize=6)
            handles, labels = [*handles, line], [*labels, stage.replace("_", " ")]
        axis.axvline(0, color=theme.text, linewidth=0.8, alpha=0.5)
        axis.set_xlabel("video later than sound by (frames of 40 ms)")
        axis.set_ylabel("lip correlation")
        legend(figure, theme, handles, labels)
        return figure

    return plot


def drift_curves(curves: Mapping[str, Mapping[str, Any]], truth: Mapping[str, Any] | None = None) -> Callable[[Theme], Figure]:
    """Each measure by second of the stream, a panel per measure, a line per stage; `curves` and `truth` are `details.curves`."""
    shown = [name for name in CURVE_TITLES if all(name in curve for curve in curves.values())]

    def plot(theme: Theme) -> Figure:
        num_rows = max(1, -(-len(shown) // 2))
        figure, axes = new_figure(theme, num_rows, 0.5 + 2.2 * num_rows, columns=2, sharex=True)
        handles: dict[str, Any] = {}
        for panel, name in enumerate(shown):
            axis = axes.flat[panel]
            name_panel(axis, CURVE_TITLES[name], theme)
            if truth and name in truth:
                (handles["truth"],) = axis.plot(np.asarray(truth["seconds"]) + 0.5, numbers(truth[name]), color=theme.truth, linestyle=(0, (4, 2)))
            for index, (stage, curve) in enumerate(curves.items()):
                time, values = np.asarray(curve["seconds"]) + 0.5, numbers(curve[name])
                marker = "." if len(time) < 3 else None
                (handles[stage.replace("_", " ")],) = axis.plot(time, values, color=stage_colour(index), linewidth=1.6, marker=marker)
            bottom, top = axis.get_ylim()
            axis.set_ylim(min(0.0, bottom), max(1.0, top) if name in ("lip_correlation", "state_accuracy") else top)
        for axis in axes[-1]:
            axis.set_xlabel("seconds of stream")
        for axis in list(axes.flat)[len(shown) :]:
            axis.set_visible(False)
        legend(figure, theme, list(handles.values()), list(handles))
        return figure

    return plot


def state_strips(examples: Mapping[str, Mapping[str, Any]]) -> Callable[[Theme], Figure]:
    """Timelines of one clip: the state that was asked for on top, then what is seen in each stage's video."""

    def plot(theme: Theme) -> Figure:
        rows = {"asked for": next(iter(examples.values()))["true_state"], **{name: example["read_state"] for name, example in examples.items()}}
        figure, axes = new_figure(theme, 1, 0.9 + 0.36 * len(rows))
        axis = axes[0, 0]
        for line, states in enumerate(rows.values()):
            edges = [0, *(np.flatnonzero(np.diff(states)) + 1), len(states)]
            spans = [(start / FRAMES_PER_SECOND, (stop - start) / FRAMES_PER_SECOND) for start, stop in pairwise(edges)]
            colours = [STATE_COLOURS[int(states[start])] for start in edges[:-1]]
            axis.broken_barh(spans, (line - 0.36, 0.72), facecolors=colours, linewidth=0)
        axis.set_yticks(range(len(rows)), [name.replace("_", " ") for name in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.margins(x=0)
        axis.grid(visible=False)
        axis.set_xlabel("seconds")
        legend(figure, theme, [Patch(color=colour) for colour in STATE_COLOURS], STATES)
        return figure

    return plot


def training_curves(losses: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Callable[[Theme], Figure]:
    """Loss over steps, a panel per stage: single values faint, running mean strong, logarithmic if all are positive.

    Args:
        losses: stage -> (steps, losses).
    """

    def plot(theme: Theme) -> Figure:
        num_columns = 2 if len(losses) in (2, 4) else min(3, max(1, len(losses)))
        num_rows = -(-len(losses) // num_columns)
        figure, axes = new_figure(theme, num_rows, 2.3 * num_rows, columns=num_columns)
        for index, (stage, (steps, values)) in enumerate(losses.items()):
            axis, y = axes.flat[index], numbers(values)
            x = np.asarray(steps, np.float64)
            axis.plot(x, y, color=stage_colour(index), alpha=0.3, linewidth=0.8)
            axis.plot(x, running_mean(y), color=stage_colour(index), linewidth=1.8, marker="." if len(x) < 3 else None)
            if np.all(y[np.isfinite(y)] > 0):
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter("{x:g}")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_minor_locator(NullLocator())
            name_panel(axis, stage.replace("_", " "), theme)
            axis.set_xlabel("step")
        for axis in list(axes.flat)[len(losses) :]:
            axis.set_visible(False)
        return figure

    return plot


def running_mean(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Centred mean over `share` of the series, at its ends over what is there; NaNs are left out."""
    width = max(1, round(share * len(values)) // 2 * 2 + 1)
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0), np.ones(width), "same")
    count = np.convolve(finite.astype(float), np.ones(width), "same")
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
