"""Clips as the model sees them: their cached latents, decoded back to frames."""

from __future__ import annotations

import numpy as np

from flowact.data.schema import COLUMNS_FOLDER, read_column
from flowact.data.shards import ClipRef, Split
from flowact.errors import UserError


class DecodedLatents:
    """Decodes a split's cached latents with the autoencoder that lies beside them.

    Args:
        split: of the clips.
        name: 'latents', or the name of a latents column.

    Raises:
        UserError: no such column, or several that fit.
    """

    def __init__(self, split: Split, name: str) -> None:
        from flowact.autoencoders import load_autoencoder

        root = split.root / COLUMNS_FOLDER
        folders = sorted(path for path in root.glob("latents-*") if path.is_dir() and name in ("latents", path.name))
        if len(folders) != 1:
            present = ", ".join(sorted(path.name for path in root.glob("latents-*"))) or "none"
            raise UserError(f"--column {name}: {len(folders)} columns of {root} fit; there: {present}")
        self.name = folders[0].name
        self.info = read_column(folders[0])
        self.column = split.column(folders[0])
        self.autoencoder = load_autoencoder(folders[0] / "autoencoder")

    def frames(self, clip: ClipRef) -> np.ndarray:
        """uint8 (T, H, W, 3); up to a stride less one frames fewer than the clip has, where its length is not 4 n + 1."""
        import torch

        latents = torch.from_numpy(self.column.decode(clip, "latents.npy").astype(np.float32))[None]
        with torch.inference_mode():
            frames_CTHW = self.autoencoder.decode(latents)[0]
        return ((frames_CTHW.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
