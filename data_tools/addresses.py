"""Files at addresses: local paths, what fsspec knows, and members of tars at either, `MEMBER::TAR`. Nothing is ever unpacked by its name."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

from data_tools.media.container import FootageError, check_file
from flowact.errors import UserError

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_PIECE = 1 << 20


class Member(NamedTuple):
    """A file in a tar: where its bytes are, and why they are not to be read; empty where they are."""

    name: str
    offset: int
    size: int
    refused: str = ""


def is_remote(address: str) -> bool:
    """Whether fsspec opens it."""
    return bool(_ADDRESS.match(address))


def member_of(address: str) -> tuple[str, str] | None:
    """(member, tar) of `MEMBER::TAR`; None for a file of its own, also for one that has '::' in its name."""
    member, _, tar = address.rpartition("::")
    return (member, tar) if member and tar.lower().endswith(".tar") and not os.path.lexists(address) else None


def read(address: str, limit: int) -> bytes:
    """The bytes of a small file.

    Raises:
        FootageError: not to be read, or larger than `limit`.
    """
    data = bytearray()
    for piece in _pieces(address):
        data += piece
        if len(data) > limit:
            raise FootageError(f"{address} has more than {limit} bytes, which can not be meant; make it shorter", "too-large")
    return bytes(data)


def copy(address: str, target: Path) -> None:
    """Copy to a local file, in pieces.

    Raises:
        FootageError: not to be read.
    """
    with target.open("wb") as file:
        for piece in _pieces(address):
            file.write(piece)


def members(tar: str) -> dict[str, Member]:
    """What a tar holds, by name and in its order. A tar that has not changed is gone through once.

    Raises:
        FootageError: not to be read, or no plain tar.
    """
    status = os.stat(tar) if os.path.isfile(tar) else None
    return _scan(tar, status and (status.st_size, status.st_mtime_ns))


def filesystem(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path on it.

    Raises:
        UserError: fsspec is not installed, or does not know it.
    """
    try:
        return _fsspec().url_to_fs(address)
    except (ValueError, ImportError) as error:
        raise UserError(f"{address!r} can not be opened ({error}); install what fsspec needs for it (s3:// needs s3fs), or copy the files") from error


@lru_cache(maxsize=4)
def _scan(tar: str, stamp: Any) -> dict[str, Member]:
    found = {}
    try:
        with _reading(tar), _opened(tar) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                refused = "" if info.isreg() and not info.issparse() else "no regular file"
                found[info.name] = Member(info.name, info.offset_data, info.size, refused)
    except tarfile.TarError as error:
        raise FootageError(f"{tar} is no plain tar, or was cut ({error}); WebDataset shards are uncompressed .tar files", "not-media") from error
    return found


def _pieces(address: str) -> Iterator[bytes]:
    """A file's bytes; errors of reading are told, those of whoever takes the bytes are not touched."""
    left, inside = 1 << 62, member_of(address)
    with _reading(address):
        if inside is not None:
            place = members(inside[1]).get(inside[0])
            if place is None or place.refused:
                raise FootageError(f"{address}: the shard has no such file", "no-file")
            left = place.size
        with _opened(address if inside is None else inside[1]) as file:
            if inside is not None and place is not None:
                file.seek(place.offset)
            while left and (piece := file.read(min(_PIECE, left))):
                left -= len(piece)
                yield piece
    if inside is not None and left:
        raise FootageError(f"{address}: the shard ends within it; copy the shard again", "truncated")


def _opened(address: str) -> IO[bytes]:
    if is_remote(address):
        return _fsspec().open(address, "rb").open()
    check_file(Path(address))
    return open(address, "rb")


@contextmanager
def _reading(address: str) -> Iterator[None]:
    try:
        yield
    except (UserError, tarfile.TarError):
        raise
    except Exception as error:  # file systems raise errors of their own kinds
        reason = f"{type(error).__name__}: {error}"
        raise FootageError(f"{address} can not be read ({reason}); check the address and your access to it", "no-file") from error


def _fsspec() -> Any:
    try:
        import fsspec.core
    except ImportError as error:
        raise UserError("addresses such as s3://bucket/folder need fsspec; pip install 'flowact[data]'") from error
    return fsspec.core
