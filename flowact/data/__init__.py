"""Data: the shard format, checked random access, an exactly resumable loader, and the Lightning data modules.

`ShardDataModule`, `FrameDataModule` and `Source` are imported from `flowact.data.datamodule` on first use, as they need Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowact.data.media import MediaError, decode_sound, decode_video, encode_sound, encode_video
from flowact.data.schema import (
    COLUMNS,
    SCHEMA_VERSION,
    Captions,
    ColumnInfo,
    DatasetInfo,
    parse_captions,
    read_column,
    read_dataset,
    write_column,
    write_dataset,
)
from flowact.data.shards import (
    ClipRef,
    ShardError,
    ShardIndex,
    ShardReader,
    ShardWriter,
    Split,
    build_index,
    decode,
    encode_array,
    iterate_samples,
    open_split,
    split_folders,
)

if TYPE_CHECKING:
    from flowact.data.datamodule import FrameDataModule, ShardDataModule, Source

__all__ = [
    "COLUMNS",
    "SCHEMA_VERSION",
    "Captions",
    "ClipRef",
    "ColumnInfo",
    "DatasetInfo",
    "FrameDataModule",
    "MediaError",
    "ShardDataModule",
    "ShardError",
    "ShardIndex",
    "ShardReader",
    "ShardWriter",
    "Source",
    "Split",
    "build_index",
    "decode",
    "decode_sound",
    "decode_video",
    "encode_array",
    "encode_sound",
    "encode_video",
    "iterate_samples",
    "open_split",
    "parse_captions",
    "read_column",
    "read_dataset",
    "split_folders",
    "write_column",
    "write_dataset",
]


def __getattr__(name: str) -> Any:
    if name in ("FrameDataModule", "ShardDataModule", "Source"):
        from flowact.data import datamodule

        return getattr(datamodule, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
