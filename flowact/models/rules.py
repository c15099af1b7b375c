"""Two naming schemes of one network's tensors, and rules that translate between them, exactly, in both directions.

A rule takes some tensors of "theirs" to some of "ours" and back. Their names are templates:

    "blocks.{i}.attn.to_q.{kind:weight|bias}"    {i} a number, {kind:a|b} one of the words; both sides hold the same placeholders

Numbers are moved, never computed, so number types stay and a round trip is exact bit for bit. `flowact.models.translation` applies rules to a state.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

_PLACEHOLDER = re.compile(r"\{(\w+)(?::([^{}]+))?\}")
_AXIS = re.compile(r"\s*(\(|\)|[A-Za-z_]\w*|1)")

# --- names ------------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """A family of tensor names.

    Args:
        text: a name with placeholders: `{i}` a number without leading zeros, `{kind:weight|bias}` one of the words.

    Raises:
        ValueError: a placeholder is written twice, or a brace is left over.
    """

    text: str

    def __post_init__(self) -> None:
        if len(self.placeholders) != len(_PLACEHOLDER.findall(self.text)):
            raise ValueError(f"'{self.text}' has one placeholder twice; give them different names")
        if set("{}") & set(_PLACEHOLDER.sub("", self.text)):
            raise ValueError(f"'{self.text}' has a brace outside of a placeholder; write {{i}} for a number or {{kind:weight|bias}} for words")

    @cached_property
    def placeholders(self) -> dict[str, str]:
        """Name -> the regular expression of what may stand there."""
        found = {}
        for name, words in _PLACEHOLDER.findall(self.text):
            found[name] = "|".join(re.escape(word) for word in words.split("|")) if words else "0|[1-9][0-9]*"
        return found

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        parts = _PLACEHOLDER.split(self.text)  # text, name, words, text, name, words, ..., text
        pattern = re.escape(parts[0])
        for name, rest in zip(parts[1::3], parts[3::3], strict=True):
            pattern += f"(?P<{name}>{self.placeholders[name]}){re.escape(rest)}"
        return re.compile(pattern)

    def match(self, name: str) -> dict[str, str] | None:
        """What stands in the placeholders of `name`, or None when it is not of the family."""
        found = self._pattern.fullmatch(name)
        return found.groupdict() if found else None

    def fill(self, values: Mapping[str, str]) -> str:
        """The name with these values in its placeholders."""
        return _PLACEHOLDER.sub(lambda found: values[found[1]], self.text)


# --- maps of one tensor -----------------------------------------------------------------------------------------------------------------------------


class TensorMap(ABC):
    """An exact change of one tensor's layout: theirs to ours, and back. Works on shapes alone (meta tensors) too."""

    @abstractmethod
    def to_ours(self, theirs: Tensor) -> Tensor:
        """Our tensor.

        Raises:
            ValueError: the shape does not fit, with the shape that would.
        """

    @abstractmethod
    def to_theirs(self, ours: Tensor) -> Tensor:
        """Their tensor.

        Raises:
            ValueError: as `to_ours`.
        """


@dataclass(frozen=True)
class Rearrange(TensorMap):
    """Axes in another order, joined or split, as in "D C t h w -> D (t h w C)": a patch convolution as a linear map.

    Args:
        pattern: names of the axes of theirs, then of ours. Parentheses join axes, the last one runs fastest; `1` is an axis of length 1.
        sizes: lengths of axes. Of the axes that parentheses join, all but one must be known.

    Raises:
        ValueError: the two sides do not name the same axes, or too few sizes.
    """

    pattern: str
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        theirs, ours = (sorted(axis for group in side for axis in group) for side in self._sides)
        if theirs != ours or len(set(theirs)) != len(theirs):
            raise ValueError(f"'{self.pattern}': both sides must name the same axes once, got {theirs} and {ours}")
        for group in (group for side in self._sides for group in side):
            unknown = [axis for axis in group if axis not in self.sizes]
            if len(group) > 1 and len(unknown) > 1:
                raise ValueError(f"'{self.pattern}': of ({' '.join(group)}) all lengths but one are needed to split it again, give {unknown[1:]}")
        if wrong := sorted(axis for axis, size in self.sizes.items() if axis not in theirs or size < 1):
            raise ValueError(f"'{self.pattern}': the sizes of {', '.join(wrong)} must be 1 or more and belong to an axis of it")

    @cached_property
    def _sides(self) -> tuple[list[list[str]], list[list[str]]]:
        theirs, arrow, ours = self.pattern.partition("->")
        if not arrow:
            raise ValueError(f"'{self.pattern}' has no arrow; write the axes as in 'D C t h w -> D (t h w C)'")
        return self._groups(theirs), self._groups(ours)

    def _groups(self, side: str) -> list[list[str]]:
        """Axes of each dimension of one side."""
        groups: list[list[str]] = []
        inside = False
        position = 0
        while side[position:].strip():
            found = _AXIS.match(side, position)
            if found is None or (found[1] == "(" and inside) or (found[1] == ")" and not inside):
                raise ValueError(f"'{self.pattern}': cannot read '{side[position:].strip()}'")
            position = found.end()
            if found[1] in "()":
                inside = found[1] == "("
                if inside:
                    groups.append([])
            elif inside:
                groups[-1] += [] if found[1] == "1" else [found[1]]
            else:
                groups.append([] if found[1] == "1" else [found[1]])
        if inside:
            raise ValueError(f"'{self.pattern}': a parenthesis is left open")
        return groups

    def to_ours(self, theirs: Tensor) -> Tensor:
        """See `TensorMap.to_ours`."""
        return self._move(theirs, *self._sides)

    def to_theirs(self, ours: Tensor) -> Tensor:
        """See `TensorMap.to_theirs`."""
        return self._move(ours, *reversed(self._sides))

    def _move(self, tensor: Tensor, source: list[list[str]], target: list[list[str]]) -> Tensor:
        if tensor.ndim != len(source):
            raise ValueError(f"has {tensor.ndim} axes, '{self.pattern}' needs {len(source)}")
        lengths = {}
        for group, length in zip(source, tensor.shape, strict=True):
            known = math.prod(self.sizes[axis] for axis in group if axis in self.sizes)
            free = [axis for axis in group if axis not in self.sizes]
            if (not free and length != known) or (free and length % known):
                what = f"{known}" if not free else f"a multiple of {known}"
                raise ValueError(f"axis ({' '.join(group)}) of '{self.pattern}' is {length} long, needed is {what}")
            lengths.update({axis: self.sizes[axis] for axis in group if axis in self.sizes} | dict.fromkeys(free, length // known))
        axes = [axis for group in source for axis in group]
        order = [axes.index(axis) for group in target for axis in group]
        single = tensor.reshape([lengths[axis] for axis in axes]).permute(order)
        return single.reshape([math.prod(lengths[axis] for axis in group) for group in target])


@dataclass(frozen=True)
class PermuteHeads(TensorMap):
    """Channels of each attention head from interleaved rotary pairs (2p, 2p + 1) to half-split pairs (p, p + D/2), D the head's width.

    ours[p] = theirs[2p], ours[p + D/2] = theirs[2p + 1]. For weights and biases of queries and keys and for the norms on them. Attention scores are
    sums over a head's channels, so what attention gives does not change.

    Args:
        num_heads: heads along `dim`; 1 for a norm whose weight all heads share.
        dim: the axis that holds the heads' channels.
    """

    num_heads: int
    dim: int = 0

    def to_ours(self, theirs: Tensor) -> Tensor:
        """See `TensorMap.to_ours`."""
        return self._move(theirs, (-1, 2))

    def to_theirs(self, ours: Tensor) -> Tensor:
        """See `TensorMap.to_theirs`."""
        return self._move(ours, (2, -1))

    def _move(self, tensor: Tensor, pairs: tuple[int, int]) -> Tensor:
        if not -tensor.ndim <= self.dim < tensor.ndim:
            raise ValueError(f"has {tensor.ndim} axes, so none is axis {self.dim} with the heads")
        dim = self.dim % tensor.ndim
        if tensor.shape[dim] % (2 * self.num_heads) or not tensor.shape[dim]:
            raise ValueError(f"axis {dim} is {tensor.shape[dim]} long, which does not divide into {self.num_heads} heads of even width")
        return tensor.unflatten(dim, (self.num_heads, *pairs)).transpose(dim + 1, dim + 2).flatten(dim, dim + 2)


# --- rules ------------------------------------------------------------------------------------------------------------------------------------------


class Rule(ABC):
    """Some tensors of theirs are some of ours.

    Attributes:
        theirs: templates of their names.
        ours: templates of our names; the same placeholders everywhere.
    """

    theirs: tuple[Template, ...] = ()
    ours: tuple[Template, ...] = ()

    @abstractmethod
    def to_ours(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        """Our tensors in the order of `ours`.

        Raises:
            ValueError: shapes or number types do not fit.
        """

    @abstractmethod
    def to_theirs(self, ours: Sequence[Tensor]) -> list[Tensor]:
        """Their tensors in the order of `theirs`.

        Raises:
            ValueError: as `to_ours`.
        """

    def _check_placeholders(self) -> None:
        first, *others = (*self.theirs, *self.ours)
        for other in others:
            if other.placeholders != first.placeholders:
                raise ValueError(f"'{first.text}' and '{other.text}' must have the same placeholders")


def _to_ours(tensor: Tensor, maps: Sequence[TensorMap]) -> Tensor:
    for change in maps:
        tensor = change.to_ours(tensor)
    return tensor


def _to_theirs(tensor: Tensor, maps: Sequence[TensorMap]) -> Tensor:
    for change in reversed(maps):
        tensor = change.to_theirs(tensor)
    return tensor


class Rename(Rule):
    """One tensor under another name, and perhaps in another layout.

    Args:
        theirs: template of their name.
        ours: template of our name.
        maps: from theirs to ours, applied in order.

    Raises:
        ValueError: the placeholders differ.
    """

    def __init__(self, theirs: str, ours: str, *maps: TensorMap) -> None:
        self.theirs = (Template(theirs),)
        self.ours = (Template(ours),)
        self.maps = maps
        self._check_placeholders()

    def to_ours(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        """See `Rule.to_ours`."""
        return [_to_ours(tensor, self.maps) for tensor in theirs]

    def to_theirs(self, ours: Sequence[Tensor]) -> list[Tensor]:
        """See `Rule.to_theirs`."""
        return [_to_theirs(tensor, self.maps) for tensor in ours]


class Part:
    """One of the tensors that another one is made of.

    Args:
        name: template of its name.
        maps: of the part, from theirs to ours, applied in order.
    """

    def __init__(self, name: str, *maps: TensorMap) -> None:
        self.name = name
        self.maps = maps


class _Division:
    """How one tensor is cut into parts along an axis, and joined of them.

    Args:
        dim: the axis.
        count: number of parts.
        sizes: length of each part along it; None: all are equally long.
    """

    def __init__(self, dim: int, count: int, sizes: Sequence[int] | None) -> None:
        self.dim = dim
        self.count = count
        self.sizes = None if sizes is None else list(sizes)
        if count < 1 or (sizes is not None and len(sizes) != count):
            raise ValueError(f"{count} parts with the sizes {self.sizes}: give one size for each of at least one part, or none")

    def cut(self, whole: Tensor) -> list[Tensor]:
        length = self._length(whole)
        sizes = self.sizes or [length // self.count] * self.count
        if sum(sizes) != length:
            raise ValueError(f"axis {self.dim} is {length} long and cannot be cut into {self.sizes or f'{self.count} equal parts'}")
        return [part.clone() for part in whole.split(sizes, self.dim)]  # a view would keep the whole in memory

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        lengths = [self._length(part) for part in parts]
        if lengths != (self.sizes or lengths[:1] * self.count):
            raise ValueError(f"the parts are {lengths} long along axis {self.dim}, needed is {self.sizes or 'the same for all'}")
        if len({(part.dtype, part.ndim, *part.movedim(self.dim, 0).shape[1:]) for part in parts}) > 1:
            described = ", ".join(f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}" for part in parts)
            raise ValueError(f"the parts {described} do not join along axis {self.dim}")
        return torch.cat(list(parts), self.dim)

    def _length(self, tensor: Tensor) -> int:
        if not -tensor.ndim <= self.dim < tensor.ndim:
            raise ValueError(f"a tensor of {tensor.ndim} axes has no axis {self.dim} to cut or to join along")
        return tensor.shape[self.dim]


class Stack(Rule):
    """Several tensors of theirs are one of ours, joined along an axis: queries, keys and values as one matrix.

    Args:
        theirs: their parts in order; a name stands for a part without maps.
        ours: template of our name.
        dim: the axis.
        sizes: length of each part along it; None: all are equally long.

    Raises:
        ValueError: the placeholders differ, or another number of sizes than of parts.
    """

    def __init__(self, theirs: Sequence[str | Part], ours: str, dim: int = 0, sizes: Sequence[int] | None = None) -> None:
        self.parts = _parts(theirs)
        self.theirs = tuple(Template(part.name) for part in self.parts)
        self.ours = (Template(ours),)
        self.division = _Division(dim, len(self.parts), sizes)
        self._check_placeholders()

    def to_ours(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        """See `Rule.to_ours`."""
        return [self.division.join([_to_ours(tensor, part.maps) for tensor, part in zip(theirs, self.parts, strict=True)])]

    def to_theirs(self, ours: Sequence[Tensor]) -> list[Tensor]:
        """See `Rule.to_theirs`."""
        (whole,) = ours
        return [_to_theirs(tensor, part.maps) for tensor, part in zip(self.division.cut(whole), self.parts, strict=True)]


class Split(Rule):
    """One tensor of theirs is several of ours, cut along an axis: `Stack` the other way round.

    Args:
        theirs: template of their name.
        ours: our parts in order; a name stands for a part without maps.
        dim: the axis.
        sizes: length of each part along it; None: all are equally long.

    Raises:
        ValueError: as `Stack`.
    """

    def __init__(self, theirs: str, ours: Sequence[str | Part], dim: int = 0, sizes: Sequence[int] | None = None) -> None:
        self.parts = _parts(ours)
        self.theirs = (Template(theirs),)
        self.ours = tuple(Template(part.name) for part in self.parts)
        self.division = _Division(dim, len(self.parts), sizes)
        self._check_placeholders()

    def to_ours(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        """See `Rule.to_ours`."""
        (whole,) = theirs
        return [_to_ours(tensor, part.maps) for tensor, part in zip(self.division.cut(whole), self.parts, strict=True)]

    def to_theirs(self, ours: Sequence[Tensor]) -> list[Tensor]:
        """See `Rule.to_theirs`."""
        return [self.division.join([_to_theirs(tensor, part.maps) for tensor, part in zip(ours, self.parts, strict=True)])]


def _parts(parts: Sequence[str | Part]) -> tuple[Part, ...]:
    return tuple(part if isinstance(part, Part) else Part(part) for part in parts)


class Constant(Rule):
    """A tensor of theirs that always has the same value, such as a table of frequencies: checked on import, written on export.

    Args:
        theirs: its name.
        value: what it holds, in the number type that it has there.

    Raises:
        ValueError: the name has placeholders.
    """

    def __init__(self, theirs: str, value: Tensor) -> None:
        self.theirs = (Template(theirs),)
        self.value = value
        if self.theirs[0].placeholders:
            raise ValueError(f"'{theirs}': a constant has one name, write one for each number")

    def to_ours(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        """See `Rule.to_ours`."""
        (tensor,) = theirs
        if tensor.shape != self.value.shape or tensor.dtype != self.value.dtype or not (tensor.is_meta or torch.equal(tensor, self.value)):
            raise ValueError(f"is not the {self.value.dtype} constant of shape {tuple(self.value.shape)} that this format expects")
        return []

    def to_theirs(self, ours: Sequence[Tensor]) -> list[Tensor]:
        """See `Rule.to_theirs`."""
        return [self.value]


class Ignored(Rule):
    """Tensors of theirs that mean nothing to us: left out on import and not written on export.

    Args:
        pattern: of their names, such as "*.num_batches_tracked".
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def to_ours(self, theirs: Sequence[Tensor]) -> list[Tensor]:
        """See `Rule.to_ours`."""
        return []

    def to_theirs(self, ours: Sequence[Tensor]) -> list[Tensor]:
        """See `Rule.to_theirs`."""
        return []
