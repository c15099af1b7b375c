"""Which columns go with a split: found by name beside the shards, or named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowact.data.schema import COLUMNS, COLUMNS_FOLDER, DATASET_FILE, ColumnInfo, DatasetInfo, read_dataset, split_column_folder_name
from flowact.data.split import Split
from flowact.errors import UserError, did_you_mean


def find_columns(spec: str, root: str | None, names: Mapping[str, str | None]) -> dict[str, Path]:
    """The folder of each column of a split.

    Args:
        spec: folder of shards or brace string.
        root: folder that holds the columns; None for the one beside the split.
        names: column -> folder name, None where there is only one to take.

    Raises:
        UserError: none, several and no name, or no such name.
    """
    folder = split_folder(spec)
    parent = Path(root) if root is not None else folder.parent / COLUMNS_FOLDER
    found: dict[str, list[Path]] = {name: [] for name in COLUMNS}
    for path in sorted(parent.iterdir()) if parent.is_dir() else []:
        parts = split_column_folder_name(path.name)
        if parts and path.is_dir():
            found[parts[0]].append(path)
    chosen = {}
    for column, folders in found.items():
        name = names[column]
        if name is not None:
            if name not in [path.name for path in folders]:
                raise UserError(f"{parent} has no {column} column {name!r}.{did_you_mean(name, [path.name for path in folders])}")
            chosen[column] = parent / name
        elif not folders:
            raise UserError(f"{parent} has no {column} column; make it with: flowact-data encode {column} {folder.parent}")
        elif len(folders) > 1:
            raise UserError(f"{parent} has {len(folders)} {column} columns: {', '.join(p.name for p in folders)}; name one with {column}=NAME")
        else:
            chosen[column] = folders[0]
    return chosen


def temporal_stride(latents: ColumnInfo) -> int:
    """Pixel frames of a motion latent.

    Raises:
        UserError: the column does not say.
    """
    if not latents.temporal_stride:
        raise UserError(f"column {latents.folder_name} does not say its temporal_stride; encode the latents again")
    return latents.temporal_stride


def latent_shape(latents: ColumnInfo, metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """[C, H, W] of a clip's latents: from the size of its pictures by KEY.json, else what the column states, which is the shape of most clips."""
    channels, *size = latents.shapes["latents.npy"]
    stride, width, height = latents.spatial_stride, metadata.get("width"), metadata.get("height")
    if stride and isinstance(width, int) and isinstance(height, int):
        size = [height // stride, width // stride]
    return (channels, *size)


def rates(split: Split) -> dict[str, Any]:
    """What dataset.yaml says of pictures, sound and states; nothing where there is none."""
    if split.info is None:
        return {}
    return {"fps": split.info.fps, "sample rate": split.info.sample_rate, "states": list(split.info.states)}


def split_folder(spec: str) -> Path:
    """The folder that the shards of a folder or brace string lie in."""
    return Path(spec).parent if spec.endswith(".tar") else Path(spec)


def dataset_of(spec: str) -> DatasetInfo | None:
    """What dataset.yaml says, None where there is none."""
    root = split_folder(spec).parent
    return read_dataset(root) if (root / DATASET_FILE).is_file() else None
