"""Memory banks: what a stream remembers. Swappable by name. Legend: flowact/types.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from flowact.errors import UserError
from flowact.memory.entries import MemoryState, tail
from flowact.memory.records import Plain, finite_samples, fresh_identity, from_plain, only_finite, select, tensors_of, to_plain
from flowact.types import Chunk, MemoryView, TensorRecord

State = TypeVar("State", bound=TensorRecord)


class MemoryBank(ABC, Generic[State]):
    """A strategy without state of its own: state is a frozen record, every method returns a new one.

    A bank defines `reset`, `write` and `read`. It inherits swapping the reference, restarting some samples, saving and restoring, and, as long as its
    state is a `MemoryState`, replacing the short memory. Whatever it defines of `write`, `with_reference` and `with_short` is guarded: a sample that
    is not finite never enters, and leaves its sample of the state as it was.

    Shapes never depend on how much has been written, so one compiled graph serves a whole session. Every tensor of a state has the batch first.
    """

    #: latent frames of the chunks that the bank is made for; None if any will do
    chunk_frames: int | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # the law holds for every bank, whoever wrote it, and for every caller
        for name in ("write", "with_reference", "with_short"):
            if name in cls.__dict__:
                setattr(cls, name, only_finite(cls.__dict__[name]))

    @property
    @abstractmethod
    def num_frames(self) -> int:
        """Latent frames that `read` returns."""

    @property
    @abstractmethod
    def num_segments(self) -> int:
        """Segments that `read` returns."""

    @property
    @abstractmethod
    def history_chunks(self) -> int:
        """Chunks that must have been written until nothing older can be seen; training needs that much history."""

    @abstractmethod
    def reset(self, reference: Chunk) -> State:
        """State at the start of a stream. `reference` holds one image latent (F = 1) and its conditions."""

    @abstractmethod
    def write(self, state: State, chunk: Chunk) -> State:
        """State after a finished (clean) chunk left the denoising stream. Samples of it that are not finite change nothing."""

    @abstractmethod
    def read(self, state: State) -> MemoryView:
        """Latents, conditions and positioned segments, oldest first; positions are relative to the first stream frame (0)."""

    def with_reference(self, state: State, reference: Chunk) -> State:
        """State with another reference from now on; all that was remembered stays.

        Args:
            state: any state of this bank.
            reference: one image latent (F = 1) and its conditions, as for `reset`.

        Raises:
            UserError: the new reference has another shape, or the bank keeps its reference elsewhere than in a field `reference` and does not say
                how.
        """
        before = getattr(state, "reference", None)
        if not isinstance(before, Chunk):
            raise UserError(f"{type(self).__name__} cannot swap the reference: its state has no field `reference`; define with_reference")
        new = tail(reference, before.num_frames)
        for name, old_tensor, tensor in zip(("latents", "audio", "text"), tensors_of(before), tensors_of(new), strict=True):
            if tensor.shape != old_tensor.shape:
                got, want = tuple(tensor.shape), tuple(old_tensor.shape)
                raise UserError(f"the new reference's {name} is {got}, the stream's is {want}; make it of that size")
        latents, audio, text = (tensor.to(old_tensor) for tensor, old_tensor in zip(tensors_of(new), tensors_of(before), strict=True))
        taken = select(finite_samples(reference), Chunk(latents, audio, text), before)
        return replace(state, reference=replace(taken, identity=None if before.identity is None else fresh_identity(state)))  # type: ignore[call-arg, type-var]

    @only_finite
    def with_short(self, state: State, latents_BFCHW: Tensor) -> State:
        """State whose short memory has other latents; conditions and all else stay.

        Args:
            state: any state of this bank.
            latents_BFCHW: of all short frames that `read` returns, in order.

        Raises:
            UserError: there is no short memory, or the bank does not say how to replace it.
            ValueError: another shape.
        """
        lengths = self.short_lengths(state)
        entries = state.entries[-len(lengths) :] if isinstance(state, MemoryState) else ()
        if [entry.num_frames for entry in entries] != lengths:
            raise UserError(f"{type(self).__name__} does not say how its short memory is replaced; define with_short")
        replaced = changed_latents(state, entries, latents_BFCHW)
        return replace(state, entries=(*state.entries[: -len(entries)], *replaced))  # type: ignore[call-arg, attr-defined, type-var]

    def short_lengths(self, state: State) -> list[int]:
        """Latent frames of each segment of the short memory.

        Raises:
            UserError: there is none.
        """
        lengths = [segment.num_frames for segment in self.read(state).segments if segment.kind == "short"]
        if not lengths:
            raise UserError(f"{type(self).__name__} has no short memory; choose a bank that has one, such as StructuredMemory or SlidingWindowMemory")
        return lengths

    def restart(self, state: State, chosen_B: Tensor, reference: Chunk | None = None) -> State:
        """State in which some samples begin a new stream and the others go on.

        Args:
            state: any state of this bank.
            chosen_B: boolean mask of the samples that begin anew.
            reference: the reference of all samples; those of samples that go on, or that are not finite, are not looked at. None keeps the state's
                own.

        Raises:
            UserError: no mask of one boolean per sample, or no reference where the state has no field `reference`.
        """
        first = reference if reference is not None else getattr(state, "reference", None)
        if not isinstance(first, Chunk):
            raise UserError(f"{type(self).__name__} needs a reference to restart with: its state has no field `reference`")
        batch = first.latents_BFCHW.shape[0]
        if chosen_B.dtype != torch.bool or chosen_B.shape != (batch,):
            raise UserError(f"the samples to restart are a boolean mask of shape ({batch},), got {chosen_B.dtype} of shape {tuple(chosen_B.shape)}")
        merged = select(chosen_B & finite_samples(first), self.reset(first), state)
        before, now = getattr(state, "reference", None), getattr(merged, "reference", None)
        if isinstance(before, Chunk) and isinstance(now, Chunk) and before.identity is not None and now is not before:
            # mixed entries lose their numbers until others take their places; the reference stays, so it gets a new one
            merged = replace(merged, reference=replace(now, identity=fresh_identity(state)))  # type: ignore[call-arg, type-var]
        return merged

    def state_dict(self, state: State) -> dict[str, Plain]:
        """All of a state as tensors and plain values by name; `load_state_dict` gives it back exactly, in mid-stream too."""
        return to_plain(state)

    def load_state_dict(self, like: State, saved: Mapping[str, Plain]) -> State:
        """The state that was saved.

        Args:
            like: any state of this bank for the same characters, such as that of `reset`; the saved state comes to its device.
            saved: what `state_dict` gave.

        Raises:
            UserError: it was saved by another bank, with other options, or for other sizes.
        """
        return from_plain(like, saved)


def changed_latents(state: object, entries: tuple[Chunk, ...], latents_BFCHW: Tensor) -> list[Chunk]:
    """Entries of a state with other latents, in their own number type; where they had numbers they get new ones.

    Raises:
        ValueError: another shape than all entries together.
    """
    like = torch.Size((entries[0].latents_BFCHW.shape[0], sum(entry.num_frames for entry in entries), *entries[0].latents_BFCHW.shape[2:]))
    if latents_BFCHW.shape != like:
        raise ValueError(f"the short memory is {tuple(like)}, got latents of {tuple(latents_BFCHW.shape)}")
    runs = latents_BFCHW.to(entries[0].latents_BFCHW).split([entry.num_frames for entry in entries], dim=1)
    fresh = fresh_identity(state)
    return [
        replace(entry, latents_BFCHW=run, identity=None if entry.identity is None else fresh - i)
        for i, (entry, run) in enumerate(zip(entries, runs, strict=True))
    ]
