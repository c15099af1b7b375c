"""Records of memory, sample by sample: which are finite, taking some from one state and some from another, and plain values to save.

Nothing here knows a bank. Every tensor of a state has the batch first; a tensor without axes belongs to the whole batch. Legend: flowact/types.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from flowact.errors import UserError
from flowact.types import Chunk

Record = TypeVar("Record")
Plain = Tensor | int | float | str | bool | None


def parts_of(record: object) -> dict[str, Any]:
    """Fields of a record or items of a tuple, by name; empty for tensors and plain values."""
    if is_dataclass(record) and not isinstance(record, type):
        return {field.name: getattr(record, field.name) for field in fields(record)}
    return {str(i): item for i, item in enumerate(record)} if isinstance(record, tuple) else {}


def rebuilt(record: Any, parts: Mapping[str, Any]) -> Any:
    """A record of the same kind with other parts; see `parts_of`."""
    return tuple(parts.values()) if isinstance(record, tuple) else replace(record, **parts)


def finite_samples(record: object) -> Tensor:
    """finite_B: the samples in which no tensor holds NaN or Inf.

    Raises:
        ValueError: there is no tensor.
    """
    found = [tensor.flatten(1).isfinite().all(1) for tensor in tensors_of(record) if tensor.ndim]
    if not found:
        raise ValueError(f"a {type(record).__name__} without a tensor has no samples")
    return torch.stack(found).all(0)


def tensors_of(record: object) -> Iterator[Tensor]:
    """Every tensor of a record, in field order."""
    if isinstance(record, Tensor):
        yield record
    for part in parts_of(record).values():
        yield from tensors_of(part)


def chunks_of(record: object) -> Iterator[Chunk]:
    """Every chunk of a record, in field order."""
    if isinstance(record, Chunk):
        yield record
    else:
        for part in parts_of(record).values():
            yield from chunks_of(part)


def is_numbered(state: object) -> bool:
    """Whether a chunk of a state has a number."""
    return any(chunk.identity is not None for chunk in chunks_of(state))


def fresh_identity(state: object) -> int:
    """A number that no chunk of a state has. A stream counts up, so numbers for changed contents go down."""
    return min((chunk.identity for chunk in chunks_of(state) if chunk.identity is not None), default=0) - 1


def select(chosen_B: Tensor, new: Record, old: Record) -> Record:
    """The chosen samples of one record and the others of another: no value is read back, and what is one object in both stays that object.

    A chunk whose contents are mixed has no number, since the numbers of samples may differ. Plain values are those of `new`.

    Args:
        chosen_B: which samples come from `new`.
        new: a record.
        old: a record of the same structure.

    Raises:
        ValueError: the two differ in structure or shapes.
    """
    if new is None or isinstance(new, (int, float, str)):
        return new
    if not isinstance(new, tuple) and new is old:
        return old
    if isinstance(new, Tensor) and isinstance(old, Tensor):
        return _select_tensor(chosen_B, new, old)  # type: ignore[return-value]
    new_parts, old_parts = parts_of(new), parts_of(old)
    if type(new) is not type(old) or list(new_parts) != list(old_parts):
        raise ValueError(f"samples of two states are mixed part by part, but one has {_shape_of(old)} where the other has {_shape_of(new)}")
    merged = {name: select(chosen_B, part, old_parts[name]) for name, part in new_parts.items()}
    if isinstance(new, Chunk) and any(merged[name] is not part for name, part in new_parts.items() if isinstance(part, Tensor)):
        merged["identity"] = None
    return rebuilt(new, merged)


def _select_tensor(chosen_B: Tensor, new: Tensor, old: Tensor) -> Tensor:
    if new.shape != old.shape:
        raise ValueError(f"shapes of a memory never change, but {tuple(old.shape)} became {tuple(new.shape)}")
    if new.ndim == 0:
        return torch.where(chosen_B.any(), new, old)
    if new.shape[0] != chosen_B.shape[0]:
        raise ValueError(f"tensors of a memory have the batch first: {chosen_B.shape[0]} samples, but a shape of {tuple(new.shape)}")
    return torch.where(chosen_B.view(-1, *(1,) * (new.ndim - 1)), new, old)


def _shape_of(record: object) -> str:
    parts = parts_of(record)
    return f"{type(record).__name__} of {len(parts)} parts" if parts else type(record).__name__


Method = TypeVar("Method", bound=Callable[..., Any])


def only_finite(method: Method) -> Method:
    """A method (bank, state, incoming) -> state in which a sample of `incoming` that is not finite leaves its sample of the state as it was.

    The choice is a mask and no branch, so nothing is read back from a device and the method compiles whole. One case looks: outside of torch.compile,
    chunks with numbers keep them only if all samples took part, and numbers are plain values. On a CPU looking is free and saves the masks.
    Under torch.compile what is changed has no numbers: a compiler would take each number for another program.
    """

    @wraps(method)
    def guarded(bank: Any, state: Any, incoming: Any) -> Any:
        if torch.compiler.is_compiling() and isinstance(incoming, Chunk):
            incoming = Chunk(incoming.latents_BFCHW, incoming.audio_BFAD, incoming.text_BLD)
        finite_B = finite_samples(incoming)
        following = method(bank, state, incoming)
        if not torch.compiler.is_compiling() and (finite_B.device.type == "cpu" or is_numbered(following)) and bool(finite_B.all()):
            return following
        return select(finite_B, following, state)

    return guarded  # type: ignore[return-value]


def to_plain(record: object, at: str = "") -> dict[str, Plain]:
    """Every tensor and plain value of a record by its dotted place; tensors are copies."""
    if isinstance(record, Tensor):
        return {at: record.detach().clone(memory_format=torch.contiguous_format)}
    parts = parts_of(record)
    if not parts and not isinstance(record, tuple):
        return {at: record}  # type: ignore[dict-item]
    return {key: value for name, part in parts.items() for key, value in to_plain(part, f"{at}.{name}" if at else name).items()}


def from_plain(like: Record, saved: Mapping[str, Plain]) -> Record:
    """The record of what `to_plain` gave, on the device of a record of the same structure.

    Raises:
        UserError: the places or the shapes differ.
    """
    expected = to_plain(like)
    missing, unexpected = sorted(expected.keys() - saved.keys()), sorted(saved.keys() - expected.keys())
    if missing or unexpected:
        raise UserError(
            f"the saved memory is not one of this bank: missing {', '.join(missing[:4]) or 'nothing'}, unexpected"
            f" {', '.join(unexpected[:4]) or 'nothing'}; restore it with the bank and the options that it was saved with"
        )

    def build(part: Any, at: str) -> Any:
        if isinstance(part, Tensor):
            value = saved[at]
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            if not isinstance(value, Tensor) or value.shape != part.shape:
                here = tuple(part.shape)
                raise UserError(f"saved memory {at}: {got}, this stream has {here}; restore it with the same characters, picture size and bank")
            return value.to(part.device)
        if not parts_of(part):
            return part if isinstance(part, tuple) else saved[at]
        return rebuilt(part, {name: build(inner, f"{at}.{name}" if at else name) for name, inner in parts_of(part).items()})

    return build(like, "")
