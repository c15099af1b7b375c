"""Shards: tar files with an index beside each. What others import of them, by one name: members, index, writer, reader and split."""

from flowact.data.index import END, IndexEntry, ShardIndex, build_index, padded, sample_bytes
from flowact.data.members import ShardError, decode, encode_array, encode_json, file_sha256
from flowact.data.reader import SequentialShard, Shard, ShardReader, open_shard
from flowact.data.split import ClipRef, Split, iterate_samples, open_split, split_folders
from flowact.data.writer import ShardWriter

__all__ = [
    "END",
    "ClipRef",
    "IndexEntry",
    "SequentialShard",
    "Shard",
    "ShardError",
    "ShardIndex",
    "ShardReader",
    "ShardWriter",
    "Split",
    "build_index",
    "decode",
    "encode_array",
    "encode_json",
    "file_sha256",
    "iterate_samples",
    "open_shard",
    "open_split",
    "padded",
    "sample_bytes",
    "split_folders",
]
