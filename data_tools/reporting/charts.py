"""Charts as SVG in the page: drawn by hand, coloured by the page's own variables so that they follow light and dark, every number in words too.

All text is escaped here; what a function returns may go into the page as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape

from data_tools.reporting.decisions import Threshold
from data_tools.reporting.histograms import Histogram
from data_tools.reporting.wording import is_number, nice_step, number_text, plain_text

WIDTH, HEIGHT = 640, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 30, 26
#: Okabe and Ito's colours, which people with any kind of colour vision tell apart
STATE_COLOURS = {"speaking": "#e69f00", "listening": "#56b4e9", "thinking": "#cc79a7", "idle": "#8c8c8c"}
OTHER_COLOUR = "#009e73"
Scale = Callable[[float], float]


def histogram_svg(found: Histogram, thresholds: Sequence[Threshold], title: str, split: bool = True) -> Markup:
    """Bars of clips that keep (below) and break (above, hatched) the rules, with a line at each threshold.

    Args:
        found: the counts.
        thresholds: to draw.
        title: what is counted, for those who hear the page.
        split: tell apart keeping and breaking; otherwise all bars are of one colour.
    """
    edges, totals = found.edges, found.kept + found.broken
    tallest = max(int(totals.max()), 1)
    low, high = float(edges[0]), float(edges[-1])
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(value: float) -> float:
        share = np.log(value / low) / np.log(high / low) if found.log else (value - low) / (high - low)
        return LEFT + float(share) * across

    def tall(count: int) -> float:
        return max(count / tallest * down, 1.5) if count else 0.0  # one clip among many is still seen

    parts = [_y_axis(tallest, down)]
    for i in range(len(totals)):
        if not totals[i]:
            continue
        left, right = x(edges[i]), x(edges[i + 1])
        where = _ends(found, i)
        words = f"{where}: {number_text(int(found.kept[i]))} keep, {number_text(int(found.broken[i]))} break" if split else f"{where}: {totals[i]}"
        bars, base = [], float(TOP + down)
        for kind, count in (("keep", int(found.kept[i])), ("break", int(found.broken[i]))):
            if count:
                size = tall(count)
                base -= size
                place = f'x="{left + 0.5:.1f}" y="{base:.1f}" width="{max(right - left - 1, 0.8):.1f}" height="{size:.1f}"'
                bars.append(f'<rect class="{kind}" {place}/>' + (f'<rect class="hatch" {place}/>' if kind == "break" else ""))
        parts.append(f"<g><title>{escape(words)}</title>{''.join(bars)}</g>")
    parts.append(_x_axis(found, x))
    parts += [_threshold(threshold, x, found) for threshold in thresholds if is_number(threshold.bound)]
    return _svg(parts, title, WIDTH, HEIGHT, "histogram")


def _of_whole_numbers(found: Histogram) -> bool:
    """Whether each bin holds one whole number."""
    return bool(found.edges[0] % 1 == 0.5 and found.edges[1] - found.edges[0] == 1)


def _ends(found: Histogram, i: int) -> str:
    """What a bin holds, in words."""
    low, high = float(found.edges[i]), float(found.edges[i + 1])
    if i == 0 and found.below:
        return f"up to {number_text(high, 4)}"
    if i == len(found.edges) - 2 and found.above:
        return f"from {number_text(low, 4)} on"
    return number_text(low + 0.5, 6) if _of_whole_numbers(found) else f"{number_text(low, 4)} to {number_text(high, 4)}"


def _threshold(threshold: Threshold, x: Scale, found: Histogram) -> str:
    place = float(threshold.bound)
    if _of_whole_numbers(found):  # between the bars of two numbers
        place += -0.5 if threshold.relation == "at least" else 0.5
    at = min(max(x(place), LEFT), WIDTH - RIGHT)
    anchor, gap = ("end", -5) if at > WIDTH * 0.72 else ("start", 5)
    label = f"{threshold.relation} {plain_text(threshold.bound)}"
    return (
        f'<line class="bound" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 26}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="boundtext" x="{at + gap:.1f}" y="14" text-anchor="{anchor}">{escape(label)}</text>'
    )


def _x_axis(found: Histogram, x: Scale) -> str:
    base = HEIGHT - BOTTOM
    lines = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>']
    for tick in _ticks(found):
        lines.append(f'<line class="axis" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{base}" y2="{base + 4}"/>')
        lines.append(f'<text x="{x(tick):.1f}" y="{base + 17}" text-anchor="middle">{escape(number_text(tick, 6))}</text>')
    return "".join(lines)


def _ticks(found: Histogram) -> list[float]:
    low, high = float(found.edges[0]), float(found.edges[-1])
    if found.log:
        factors = (1, 2, 5) if high / low < 1000 else (1,)
        powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        return [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
    step = nice_step((high - low) / 7)
    if _of_whole_numbers(found):
        step = max(round(step), 1)
    return [float(number * step) for number in range(int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9)) + 1)]


def _y_axis(tallest: int, down: float) -> str:
    parts = []
    step = max(int(nice_step(tallest / 3)), 1)
    for count in range(step, tallest + 1, step):
        y = TOP + down - count / tallest * down
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(number_text(count, 6))}</text>')
    return "".join(parts)


def bars_svg(values: Sequence[tuple[str, float]], title: str, colour: str = "var(--keep)") -> Markup:
    """Thin bars side by side, one a value with its name shown on pointing: shards, for example."""
    tallest = max((value for _, value in values), default=1) or 1
    across, down = WIDTH - LEFT - RIGHT, 90
    parts = []
    each = across / max(len(values), 1)
    for number, (name, value) in enumerate(values):
        size = max(value / tallest * down, 1.5)
        place = f'x="{LEFT + number * each + 0.5:.1f}" y="{8 + down - size:.1f}" width="{max(min(each - 1, 40), 0.8):.1f}" height="{size:.1f}"'
        parts.append(f'<g><title>{escape(name)}</title><rect fill="{colour}" {place}/></g>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{8 + down}" y2="{8 + down}"/>')
    return _svg(parts, title, WIDTH, down + 16, "bars")


def strip(runs: Sequence[tuple[int, int, str]], frames: int, fps: int) -> Markup:
    """States of a clip as a coloured strip, each with its name as far as there is room."""
    parts = [((end - first) / frames, state, state, f"{state}, {first / fps:.1f} to {end / fps:.1f} s") for first, end, state in runs]
    return _strip(parts, STATE_COLOURS, "strip", "states")


def shares(counts: Mapping[str, float], colours: Mapping[str, str], title: str) -> Markup:
    """One bar of shares that add up to all."""
    total = sum(counts.values()) or 1
    parts = [(count / total, name, f"{name} {count / total:.0%}", f"{name} {count / total:.1%}") for name, count in counts.items()]
    return _strip(parts, colours, "strip tall", title)


def _strip(parts: Sequence[tuple[float, str, str, str]], colours: Mapping[str, str], kind: str, title: str) -> Markup:
    """Parts: share, name of the colour, words inside, words on pointing."""
    spans = "".join(
        f'<span style="width:{share * 100:.3f}%;background:{colours.get(name, OTHER_COLOUR)}" title="{escape(words)}"><i>{escape(inside)}</i></span>'
        for share, name, inside, words in parts
    )
    said = f"{title}: {'; '.join(words for *_, words in parts)}"
    return Markup(f'<div class="{kind}" role="img" aria-label="{escape(said)}">{spans}</div>')


def curves_svg(peaks_N2: np.ndarray, mouth_N: np.ndarray | None, title: str) -> Markup:
    """The sound's wave (lowest and highest sample of each column, -1 to 1) and, where it is known, the mouth's opening as a line (0 to 1)."""
    width, height = 600, 64
    steps = np.linspace(0, width, len(peaks_N2))
    middle = height / 2
    upper = [f"{x:.1f},{middle - high * middle:.1f}" for x, (_, high) in zip(steps, peaks_N2)]
    lower = [f"{x:.1f},{middle - low * middle:.1f}" for x, (low, _) in zip(steps, peaks_N2)]
    parts = [f'<polygon class="wave" points="{" ".join([*upper, *reversed(lower)])}"/>']
    if mouth_N is not None:
        across = np.linspace(0, width, len(mouth_N))
        line: list[str] = []
        for x, value in zip(across, mouth_N):
            if np.isfinite(value):
                line.append(f"{x:.1f},{height - 2 - value * (height - 4):.1f}")
            elif line:
                parts.append(f'<polyline class="mouth" points="{" ".join(line)}"/>')
                line = []
        parts.append(f'<polyline class="mouth" points="{" ".join(line)}"/>' if line else "")
    return _svg(parts, title, width, height, "curves", stretch=True)


def _svg(parts: Iterable[str], title: str, width: int, height: int, kind: str, stretch: bool = False) -> Markup:
    aspect = ' preserveAspectRatio="none"' if stretch else ""
    return Markup(f'<svg class="{kind}" viewBox="0 0 {width} {height}"{aspect} role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>')
