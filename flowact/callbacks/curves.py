"""The curves of a run in its own process: kept, written as JSON lines, and drawn."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

#: groups in the order in which they are drawn; others follow
GROUPS = ("train", "val", "preview", "ema", "throughput", "data")
_BY_LEVEL = re.compile(r"(.*)_sigma_(.*)")
_COLUMNS = 4
#: from so many points on a curve of training is drawn smoothed over itself, if it is one that has noise
_MANY, _NOISY = 60, re.compile(r".*(loss|grad_norm)")

Point = tuple[int, float]


class CurveRecord(Logger):
    """A logger beside the recipe's: keeps every scalar that they get, and writes a line of JSON for each call.

    Values that are not finite are null in the file, and left out of the curves.

    Args:
        path: the file; None writes none.
        folder: of the run.

    Attributes:
        curves: name -> (step, value), in the order of steps.
    """

    def __init__(self, path: Path | None, folder: Path) -> None:
        super().__init__()
        self.path = path
        self.folder = folder
        self.curves: dict[str, list[Point]] = {}

    @property
    def name(self) -> str:
        """Of the logger."""
        return "curves"

    @property
    def version(self) -> int:
        """There is one."""
        return 0

    @property
    def save_dir(self) -> str:
        """The folder of the run."""
        return str(self.folder)

    @property
    def log_dir(self) -> str:
        """The same: it stays the run's where there is no other logger."""
        return str(self.folder)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Take in what the other loggers get."""
        values = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        if step is None or not values:
            return
        self._keep(step, values)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(step, values))

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The recipe lies beside it."""

    def begin(self, last_step: int | None) -> None:
        """Begin the file anew, or for a run that is resumed keep what it says until its last step.

        Raises:
            OSError: the disk refuses.
        """
        assert self.path is not None
        lines = list(read_lines(self.path)) if last_step is not None else []
        kept = [(line.pop("step"), line) for line in lines if line["step"] <= (last_step or 0)]
        self.curves = {}
        for step, values in kept:
            self._keep(step, {name: math.nan if value is None else value for name, value in values.items()})
        self.path.write_text("".join(_line(step, values) for step, values in kept), encoding="utf-8")

    def _keep(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if math.isfinite(value):
                self.curves.setdefault(name, []).append((step, value))


def _line(step: int, values: Mapping[str, float | None]) -> str:
    return json.dumps({"step": step} | {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}) + "\n"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """What a file of curves says; a line that a crash cut off is left out."""
    if not path.is_file():
        return
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            yield line


# --- drawing ----------------------------------------------------------------------------------------------------------------------------------------


def panels(curves: Mapping[str, list[Point]]) -> dict[str, dict[str, dict[str, list[Point]]]]:
    """Group -> title of a panel -> name of a line -> points: curves by noise level share a panel."""
    found: dict[str, dict[str, dict[str, list[Point]]]] = {}
    for name in in_order(curves):
        group, _, rest = name.rpartition("/") if name.count("/") < 2 else name.partition("/")
        by_level = _BY_LEVEL.fullmatch(rest)
        title, line = (f"{by_level[1]} by noise level", by_level[2]) if by_level else (rest, "")
        found.setdefault(group or "others", {}).setdefault(title, {})[line] = curves[name]
    return found


def in_order(names: Iterable[str]) -> list[str]:
    """Names of curves, group by group."""
    return sorted(names, key=lambda name: (GROUPS.index(group) if (group := name.partition("/")[0]) in GROUPS else len(GROUPS), name))


def draw(curves: Mapping[str, list[Point]], path: Path) -> None:
    """All curves as small multiples, a row of panels for each group, as a PNG.

    Raises:
        ValueError: there is no curve.
        OSError: the disk refuses.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = panels(curves)
    if not groups:
        raise ValueError("there is no curve to draw")
    rows = [(group, list(own.items())[first : first + _COLUMNS]) for group, own in groups.items() for first in range(0, len(own), _COLUMNS)]
    figure = Figure(figsize=(3.4 * _COLUMNS, 2.1 * len(rows) + 0.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(rows), _COLUMNS)
    shown: set[str] = set()
    last = max(points[-1][0] for points in curves.values())
    for line, (group, own) in enumerate(rows):
        for column, (title, lines) in enumerate(own):
            axes = figure.add_subplot(grid[line, column])
            _draw_panel(axes, lines, smooth=group == "train" and bool(_NOISY.match(title)))
            axes.set_xlim(0, last * 1.03 + 1)  # one scale of steps for all
            axes.set_title(title, fontsize=9, loc="left")
            if column == 0:
                axes.set_ylabel(group if group not in shown else "", fontsize=10, fontweight="bold")
                shown.add(group)
    figure.savefig(path, dpi=90)


def _draw_panel(axes: Any, lines: Mapping[str, list[Point]], smooth: bool) -> None:
    for number, (name, points) in enumerate(sorted(lines.items())):
        steps, values = zip(*points, strict=True)
        colour = f"C{number}"
        if smooth and len(points) >= _MANY:
            axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
            axes.plot(steps, smoothed(values), color=colour, linewidth=1.3, label=name)
        else:
            axes.plot(steps, values, color=colour, linewidth=1.2, marker="o" if len(points) < 20 else None, markersize=2.5, label=name)
    if len(lines) > 1:
        axes.legend(fontsize=6, frameon=False, ncols=2)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.locator_params(axis="y", nbins=5)


def smoothed(values: tuple[float, ...]) -> list[float]:
    """Exponential mean over some twentieth of the curve, which begins as a plain mean."""
    found: list[float] = []
    mean, span = 0.0, max(len(values) / 20, 1.0)
    for count, value in enumerate(values, 1):
        mean += (value - mean) / min(count, span)
        found.append(mean)
    return found
