"""Painting with signed distances: shapes with smooth edges on many frames at once, numpy only.

A picture spans [-1, 1] in x (to the right) and y (down). Every shape is a distance to its edge, negative inside, which becomes coverage over one
pixel; painting touches only the window that a shape can reach in any of the frames, which keeps the work in cache.

Axes: T pixel frames, C colour channels, H W height and width of a window. Per-frame numbers are arrays (T, 1, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Number: TypeAlias = np.ndarray | np.floating | float


@dataclass(frozen=True)
class Window:
    """A rectangle of whole pixels and the coordinates of their centres: x (1, 1, W), y (1, H, 1)."""

    rows: slice
    columns: slice
    x: np.ndarray
    y: np.ndarray


class Canvas:
    """T pictures of size x size pixels, float32, planes of colour: image_TCHW."""

    def __init__(self, num_frames: int, size: int) -> None:
        self.size = size
        self.pixel = np.float32(2 / size)
        self.image_TCHW = np.empty((num_frames, 3, size, size), np.float32)

    def window(self, left: Number = -1, right: Number = 1, top: Number = -1, bottom: Number = 1) -> Window:
        """The smallest window that holds a rectangle in all frames, and a pixel around it."""
        return make_window(self.size, left, right, top, bottom)

    def fill(self, colour_TCHW: np.ndarray) -> None:
        """Set every pixel."""
        self.image_TCHW[:] = colour_TCHW

    def paint(self, window: Window, coverage_THW: np.ndarray, colour: np.ndarray) -> None:
        """Lay a colour over a window. `colour` is (3,), or anything that broadcasts with (T, 3, H, W)."""
        region = self.image_TCHW[:, :, window.rows, window.columns]
        target = colour[:, None, None] if colour.ndim == 1 else colour
        region += coverage_THW[:, None] * (target - region)

    def coverage(self, distance: np.ndarray) -> np.ndarray:
        """Part of a pixel, 0 to 1, that lies inside a shape at this signed distance."""
        return np.clip(np.float32(0.5) - distance / self.pixel, 0, 1)

    def frames(self) -> np.ndarray:
        """uint8 (T, H, W, 3)."""
        levels = np.clip(self.image_TCHW, 0, 1)
        levels *= 255
        levels += 0.5
        return np.ascontiguousarray(levels.astype(np.uint8).transpose(0, 2, 3, 1))


def make_window(size: int, left: Number = -1, right: Number = 1, top: Number = -1, bottom: Number = 1) -> Window:
    """The smallest window of a size x size picture that holds a rectangle in all frames, and a pixel around it."""

    def span(low: Number, high: Number) -> tuple[int, int]:
        first = int(np.floor((np.min(low) + 1) / 2 * size)) - 1
        last = int(np.ceil((np.max(high) + 1) / 2 * size)) + 1
        first = min(max(first, 0), size - 1)
        return first, min(max(last, first + 1), size)

    (x0, x1), (y0, y1) = span(left, right), span(top, bottom)
    centres = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    return Window(slice(y0, y1), slice(x0, x1), centres[None, None, x0:x1], centres[None, y0:y1, None])


def ellipse(x: np.ndarray, y: np.ndarray, radius_x: Number, radius_y: Number) -> np.ndarray:
    """Distance to an ellipse around the origin, exact on its edge and of first order near it."""
    unit_x, unit_y = x / radius_x, y / radius_y
    radius = np.sqrt(unit_x * unit_x + unit_y * unit_y + np.float32(1e-9))
    unit_x /= radius_x
    unit_y /= radius_y
    slope = np.sqrt(unit_x * unit_x + unit_y * unit_y + np.float32(1e-9))
    return radius * (radius - 1) / slope


def circle(x: np.ndarray, y: np.ndarray, radius: Number) -> np.ndarray:
    """Distance to a circle around the origin."""
    return np.sqrt(x * x + y * y) - radius


def capsule(x: np.ndarray, y: np.ndarray, start: tuple[Number, Number], end: tuple[Number, Number], radius: Number) -> np.ndarray:
    """Distance to a thick line with round ends."""
    along_x, along_y = end[0] - start[0], end[1] - start[1]
    from_x, from_y = x - start[0], y - start[1]
    part = np.clip((from_x * along_x + from_y * along_y) / (along_x * along_x + along_y * along_y + np.float32(1e-9)), 0, 1)
    return circle(from_x - along_x * part, from_y - along_y * part, radius)


def rounded_box(x: np.ndarray, y: np.ndarray, half_width: Number, half_height: Number, corner: Number) -> np.ndarray:
    """Distance to a rectangle around the origin with round corners."""
    over_x, over_y = np.abs(x) - (half_width - corner), np.abs(y) - (half_height - corner)
    outside = np.sqrt(np.maximum(over_x, 0) ** 2 + np.maximum(over_y, 0) ** 2)
    return outside + np.minimum(np.maximum(over_x, over_y), 0) - corner


def bump(distance_squared: np.ndarray) -> np.ndarray:
    """A soft spot: 1 in the middle, falling smoothly to 0 where the squared distance, in units of the radius, reaches 1."""
    inside = np.clip(1 - distance_squared, 0, 1)
    return inside * inside
