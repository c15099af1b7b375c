"""Reads a model file of CTranslate2 (binary version 6), which may be cut into parts. Nothing in it is executed, and CTranslate2 is not needed.

The file holds its version, the name of the network's specification and its revision; then for each variable its name, shape, type and bytes; then
pairs of names that share one variable. Numbers are little-endian, a string is its length, its UTF-8 bytes and a zero byte.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from flowact.errors import UserError

BINARY_VERSION = 6
TYPES = {0: torch.float32, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.float16, 5: torch.bfloat16}
MAX_RANK = 8


class _Cursor:
    """A position in the bytes of a file.

    Args:
        data: the whole file.
        name: what to call it in errors.
    """

    def __init__(self, data: bytearray, name: str) -> None:
        self._data, self._name, self.position = data, name, 0

    def take(self, count: int) -> int:
        """Move on by `count` bytes and return where they begin."""
        start, self.position = self.position, self.position + count
        if self.position > len(self._data):
            raise UserError(f"{self._name} ends at byte {len(self._data)}, inside a field that ends at {self.position}: the file is cut off")
        return start

    def number(self, form: str) -> int:
        """An unsigned number of struct's form B, H or I."""
        (value,) = struct.unpack_from(f"<{form}", self._data, self.take(struct.calcsize(form)))
        return int(value)

    def text(self) -> str:
        """A string."""
        length = self.number("H")
        start = self.take(length)
        raw = bytes(self._data[start : start + length])
        if not raw.endswith(b"\0") or b"\0" in raw[:-1]:
            raise UserError(f"{self._name}: no name ends at byte {self.position}; the file is not a CTranslate2 model or is damaged")
        try:
            return raw[:-1].decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{self._name}: the name at byte {start} is not UTF-8; the file is damaged") from error

    @property
    def at_end(self) -> bool:
        """Whether every byte has been read."""
        return self.position == len(self._data)


def read_variables(parts: Sequence[Path], specification: str, prefix: str = "", sha256: str | None = None) -> dict[str, Tensor]:
    """The variables whose names begin with `prefix`, by name. Every field of the file is checked, also of those left out.

    Args:
        parts: the file, or its pieces in order.
        specification: name that the file must give for its network, such as "WhisperSpec".
        prefix: beginning of the names to keep.
        sha256: of the whole file, in hex; None does not compare.

    Raises:
        UserError: another version or network, another file than expected, or a damaged one.
    """
    data = bytearray().join(part.read_bytes() for part in parts)
    name = " + ".join(str(part) for part in parts)
    if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise UserError(f"{name} is another file than expected: SHA-256 {found}, not {sha256}; install it again in the version that is named")
    cursor = _Cursor(data, name)
    version = cursor.number("I")
    if version != BINARY_VERSION:
        raise UserError(f"{name} is not a CTranslate2 model of binary version {BINARY_VERSION}: it begins with {version}")
    found_specification, revision = cursor.text(), cursor.number("I")
    if found_specification != specification:
        raise UserError(f"{name} holds a {found_specification!r} of revision {revision}; {specification!r} is needed")
    variables: dict[str, Tensor] = {}
    names = set()
    for _ in range(cursor.number("I")):
        variable, tensor = _read_variable(cursor, data, name)
        if variable in names:
            raise UserError(f"{name} holds {variable} twice; the file is damaged")
        names.add(variable)
        if variable.startswith(prefix):
            variables[variable] = tensor.clone()  # so that the whole file is not kept for the sake of a part
    for _ in range(cursor.number("I")):
        alias, variable = cursor.text(), cursor.text()
        if variable not in names:
            raise UserError(f"{name}: {alias} stands for {variable}, which is not there; the file is damaged")
        if variable in variables and alias.startswith(prefix):
            variables[alias] = variables[variable]
    if not cursor.at_end:
        raise UserError(f"{name} goes on after its last field, at byte {cursor.position} of {len(data)}; the file is damaged")
    return variables


def _read_variable(cursor: _Cursor, data: bytearray, name: str) -> tuple[str, Tensor]:
    variable = cursor.text()
    rank = cursor.number("B")
    if rank > MAX_RANK:
        raise UserError(f"{name}: {variable} has {rank} dimensions; the file is damaged")
    shape = [cursor.number("I") for _ in range(rank)]
    kind, size = cursor.number("B"), cursor.number("I")
    if kind not in TYPES:
        raise UserError(f"{name}: {variable} is of type {kind}; known are {sorted(TYPES)}")
    count = math.prod(shape)
    if size != count * TYPES[kind].itemsize:
        raise UserError(f"{name}: {variable} of shape {shape} has {size} bytes, {count * TYPES[kind].itemsize} are needed; the file is damaged")
    start = cursor.take(size)
    flat = torch.frombuffer(data, dtype=TYPES[kind], count=count, offset=start) if count else torch.empty(0, dtype=TYPES[kind])
    return variable, flat.view(shape)
