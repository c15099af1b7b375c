"""How a law is tried, and how a broken one is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import NoReturn

import torch
from torch import Tensor


def broken(subject: object, law: str, detail: str = "") -> NoReturn:
    """Say which law of which object does not hold."""
    raise AssertionError(f"{type(subject).__name__} breaks the law '{law}'{f': {detail}' if detail else ''}")


def ensure(holds: object, subject: object, law: str, detail: str = "") -> None:
    """A law holds."""
    if not bool(holds):
        broken(subject, law, detail)


def refuses(call: Callable[[], object], subject: object, law: str) -> None:
    """A ValueError is raised, nothing else."""
    try:
        call()
    except ValueError:
        return
    except Exception as error:
        broken(subject, law, f"raised {type(error).__name__} instead of ValueError")
    broken(subject, law, "raised nothing")


def same(a: Tensor, b: Tensor, tolerance: float = 0.0) -> bool:
    """Whether two tensors have one shape and, within a relative and absolute tolerance, one content."""
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance))


def tensors_of(record: object) -> list[Tensor]:
    """Every tensor in a record, in field order."""
    if isinstance(record, Tensor):
        return [record]
    if isinstance(record, (tuple, list)):
        return [tensor for item in record for tensor in tensors_of(item)]
    if is_dataclass(record) and not isinstance(record, type):
        return [tensor for field in fields(record) for tensor in tensors_of(getattr(record, field.name))]
    return []


def seeded(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)
