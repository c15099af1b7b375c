"""Members of samples as bytes and back: JSON, text and arrays without pickled objects; everything else stays bytes."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from flowact.errors import UserError


class ShardError(UserError):
    """A shard that is not what its index says. The message names shard and key."""


#: members with these endings are pickles: opening one may run anything
PICKLED = ("pth", "pt", "pkl", "pickle", "pyd", "ckpt", "bin")


def is_pickled(suffix: str) -> bool:
    """Whether a member of this suffix is a pickle by its name."""
    return suffix.rpartition(".")[2].lower() in PICKLED


def lacking(suffix: str, members: Iterable[str]) -> str:
    """What is said of a sample without a member: what it has, and how a pickle becomes one that can be read."""
    names = list(members)
    pickled = [name for name in names if is_pickled(name)]
    text = f"the sample has {', '.join(names)}"
    if suffix.endswith(".npy") and pickled:
        text += (
            f". Pickles ({', '.join(pickled)}) are never opened, since that runs whatever they hold; convert them once and without that risk, e.g. "
            f"numpy.save({suffix!r}, torch.load({pickled[0]!r}, weights_only=True, map_location='cpu').half().numpy()): "
            "docs/data.md has the script for whole shards under 'Shards made elsewhere'"
        )
    return text


def decode(suffix: str, data: bytes, where: str = "member") -> Any:
    """A member by its suffix: .json, .txt and .npy (plain numbers only); other suffixes stay bytes.

    Raises:
        ShardError: names `where` and what is wrong.
    """
    kind = suffix.rpartition(".")[2]
    try:
        if kind == "json":
            return json.loads(data)
        if kind == "txt":
            return data.decode("utf-8")
        if kind == "npy":
            return _decode_array(data)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where}, member .{suffix}: {error}") from error
    return data


def encode_array(array: np.ndarray) -> bytes:
    """An array as .npy bytes, C order, the same bytes for the same array."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def encode_json(value: Any) -> bytes:
    """JSON bytes with sorted names, the same bytes for the same value."""
    return (json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _decode_array(data: bytes) -> np.ndarray:
    # numpy allocates what the header claims before it reads: the claim is compared with the bytes that are there first
    buffer = io.BytesIO(data)
    version = np.lib.format.read_magic(buffer)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"array format {version} is not read, only 1.0 and 2.0")
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = reader(buffer)
    if dtype.hasobject:
        raise ValueError("array of Python objects refused; store plain numbers")
    count = 1
    for length in shape:
        count *= length
    if count * dtype.itemsize != len(data) - buffer.tell():
        raise ValueError(f"array of shape {shape} {dtype} needs {count * dtype.itemsize} bytes, {len(data) - buffer.tell()} are there")
    array = np.frombuffer(data, dtype=dtype, count=count, offset=buffer.tell())
    return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)
