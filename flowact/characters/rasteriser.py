"""Triangles to pixels with a depth buffer, numpy only: exact, without a graphics library, fast enough for small pictures.

Axes: N vertices or samples, C colour channels.
"""

from __future__ import annotations

import numpy as np

_BOX_SIZES = (2, 3, 4, 6, 10, 20, 60, 512)  # triangles are tested against the samples of a box of their size class
_TESTS_AT_ONCE = 1_500_000


def draw_triangles(
    positions_N2: np.ndarray, depth_N: np.ndarray, colours_NC: np.ndarray, triangles: np.ndarray, behind_HWC: np.ndarray
) -> np.ndarray:
    """Picture of front-facing triangles over a background, one sample in the middle of each of its pixels.

    Args:
        positions_N2: x to the right and y down, in pixels.
        depth_N: distance from the eye; the nearest triangle is seen.
        colours_NC: float32 colours of the vertices, mixed linearly inside a triangle.
        triangles: (M, 3) vertex numbers, counter-clockwise as seen from the front (x right, y up).
        behind_HWC: float32, what is seen where no triangle is.
    """
    height, width = behind_HWC.shape[:2]
    corners = positions_N2[triangles]
    x, y = corners[..., 0], corners[..., 1]
    twice_area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])
    # Sample centres lie on half numbers: the first one that a triangle can hold.
    first_x, first_y = np.ceil(x.min(axis=1) - 0.5), np.ceil(y.min(axis=1) - 0.5)
    count_x, count_y = np.floor(x.max(axis=1) - 0.5) - first_x + 1, np.floor(y.max(axis=1) - 0.5) - first_y + 1
    box = np.maximum(count_x, count_y)
    seen = (twice_area < -1e-9) & (count_x > 0) & (count_y > 0) & (first_x < width) & (first_y < height)
    seen &= (first_x + count_x > 0) & (first_y + count_y > 0)

    pixels, depths, weights, owners = [], [], [], []
    smaller = 0
    for size in _BOX_SIZES:
        members = np.flatnonzero(seen & (box > smaller) & (box <= size))
        smaller = size
        offset_x, offset_y = np.tile(np.arange(size), size), np.repeat(np.arange(size), size)
        for part in np.array_split(members, max(1, len(members) * size * size // _TESTS_AT_ONCE + 1)):
            if not len(part):
                continue
            column = first_x[part, None] + offset_x
            row = first_y[part, None] + offset_y
            to_x, to_y = column + 0.5 - x[part, :1], row + 0.5 - y[part, :1]
            area = twice_area[part, None]
            second = (to_x * (y[part, 2:] - y[part, :1]) - (x[part, 2:] - x[part, :1]) * to_y) / area
            third = ((x[part, 1:2] - x[part, :1]) * to_y - to_x * (y[part, 1:2] - y[part, :1])) / area
            first = 1 - second - third
            inside = (first >= 0) & (second >= 0) & (third >= 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            which, _ = np.nonzero(inside)
            weight = np.stack([first[inside], second[inside], third[inside]], axis=1)
            owner = part[which]
            pixels.append((row[inside] * width + column[inside]).astype(np.int64))
            depths.append((weight * depth_N[triangles[owner]]).sum(axis=1))
            weights.append(weight)
            owners.append(owner)
    picture = behind_HWC.reshape(height * width, -1).copy()
    if pixels:
        pixel, depth = np.concatenate(pixels), np.concatenate(depths)
        far_to_near = np.lexsort((-depth, pixel))
        last = np.flatnonzero(np.append(np.diff(pixel[far_to_near]) != 0, True))
        nearest = far_to_near[last]
        corner_colours = colours_NC[triangles[np.concatenate(owners)[nearest]]]
        picture[pixel[nearest]] = np.einsum("nk,nkc->nc", np.concatenate(weights)[nearest], corner_colours)
    return picture.reshape(behind_HWC.shape)


def vertex_normals(vertices_N3: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Unit normals (N, 3), faces weighted by their area; zero where no face is."""
    corners = vertices_N3[triangles]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.stack(
        [sum(np.bincount(triangles[:, k], across[:, axis], len(vertices_N3)) for k in range(3)) for axis in range(3)],
        axis=1,
    )
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
