"""Laws of memory banks and corruptors. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowact.memory.base import MemoryBank
from flowact.memory.corruptors import Corruption, MemoryCorruptor, Offer
from flowact.testing.laws import ensure, refuses, same, seeded, tensors_of
from flowact.types import (
    Chunk,
    MemoryView,
    Segment,
    TensorRecord,
    WindowLayout,
)


def _chunk(num_frames: int, seed: int, batch: int = 2) -> Chunk:
    generator = seeded(seed)
    latents = torch.randn(batch, num_frames, 3, 4, 4, generator=generator)
    return Chunk(latents, torch.randn(batch, num_frames, 4, 5, generator=generator), torch.randn(batch, 6, 7, generator=generator))


def _stream(bank: MemoryBank, chunks: Sequence[Chunk], reference: Chunk) -> MemoryView:
    state = bank.reset(reference)
    for chunk in chunks:
        state = bank.write(state, chunk)
    return bank.read(state)


def check_memory_bank(bank: MemoryBank, *, chunk_frames: int = 3, keeps_first: int = 0) -> None:
    """The laws of `MemoryBank`.

    Args:
        bank: the bank, constructed for chunks of `chunk_frames`.
        chunk_frames: latent frames of the chunks that are written.
        keeps_first: chunks of the stream's beginning that the bank keeps for ever (attention sinks), to which forgetting does not apply.
    """
    reference = _chunk(1, seed=0)
    num_chunks = bank.history_chunks + keeps_first + 2
    chunks = [_chunk(chunk_frames, seed=1 + i) for i in range(num_chunks)]
    state = bank.reset(reference)
    ensure(isinstance(state, TensorRecord), bank, "the state is a TensorRecord, so that it moves between devices", type(state).__name__)
    first_segments = bank.read(state).segments
    for written, chunk in enumerate(chunks):
        _check_view(bank, bank.read(state), reference, f"after {written} chunks")
        ensure(bank.read(state).segments == first_segments, bank, "segments never depend on how much was written", f"after {written} chunks")
        before = [tensor.clone() for tensor in tensors_of((state, chunk))]
        following = bank.write(state, chunk)
        unchanged = all(same(a, b) for a, b in zip(before, tensors_of((state, chunk)), strict=True))
        ensure(unchanged, bank, "write changes neither the state nor the chunk it is given", f"chunk {written}")
        again = bank.read(bank.write(state, chunk))
        equal = all(same(a, b) for a, b in zip(tensors_of(bank.read(following)), tensors_of(again), strict=True))
        ensure(equal, bank, "the same writes give the same memory", f"chunk {written}")
        state = following
    _check_view(bank, bank.read(state), reference, f"after {num_chunks} chunks")

    for position in range(keeps_first, num_chunks - bank.history_chunks + keeps_first):
        other = [*chunks[:position], _chunk(chunk_frames, seed=1000 + position), *chunks[position + 1 :]]
        views = _stream(bank, chunks, reference), _stream(bank, other, reference)
        forgotten = all(same(a, b) for a, b in zip(tensors_of(views[0]), tensors_of(views[1]), strict=True))
        behind = num_chunks - 1 - position
        ensure(forgotten, bank, "nothing older than history_chunks is seen", f"a chunk {behind} chunks back changes the memory")

    rows = [_row(_stream(bank, chunks, reference), 0), _stream(bank, [_row(chunk, 0) for chunk in chunks], _row(reference, 0))]
    alone = all(same(a, b) for a, b in zip(tensors_of(rows[0]), tensors_of(rows[1]), strict=True))
    ensure(alone, bank, "streams of a batch do not see each other")
    moved = bank.read(state.to(torch.float64))
    ensure(moved.latents_BFCHW.dtype == torch.float64, bank, "a state that was moved reads as moved", str(moved.latents_BFCHW.dtype))


def _row(record: Any, index: int) -> Any:
    """One sample of a batch, with B = 1."""
    tensors = {f.name: getattr(record, f.name)[index : index + 1] for f in fields(record) if isinstance(getattr(record, f.name), Tensor)}
    return type(record)(**{**{f.name: getattr(record, f.name) for f in fields(record)}, **tensors})


def _check_view(bank: MemoryBank, view: MemoryView, reference: Chunk, when: str) -> None:
    batch, _, channels, height, width = reference.latents_BFCHW.shape
    frames, segments = bank.num_frames, bank.num_segments
    sizes = {
        "latents": (tuple(view.latents_BFCHW.shape), (batch, frames, channels, height, width)),
        "audio": (tuple(view.audio_BFAD.shape), (batch, frames, *reference.audio_BFAD.shape[2:])),
        "text": (tuple(view.text_BSLD.shape), (batch, segments, *reference.text_BLD.shape[1:])),
        "segments": (len(view.segments), segments),
        "frames of the segments": (sum(segment.num_frames for segment in view.segments), frames),
    }
    for name, (got, want) in sizes.items():
        ensure(got == want, bank, "read returns num_frames frames in num_segments segments", f"{name}: {got}, expected {want}, {when}")
    history = [segment for segment in view.segments if segment.kind != "reference"]  # a reference may be anchored anywhere
    ends = [segment.position + segment.num_frames for segment in history]
    starts = [*(segment.position for segment in history[1:]), 0]
    in_order = all(end <= start for end, start in zip(ends, starts, strict=bool(history)))
    ensure(in_order, bank, "history stands oldest first, apart from each other and before the stream (0)", f"{view.segments} {when}")
    ensure(len(view.identities) in (0, segments), bank, "identities are one per segment, or none", f"{view.identities} {when}")
    ensure(all(segment.is_memory for segment in view.segments), bank, "memory holds no stream segment", when)
    WindowLayout((*view.segments, Segment("stream", 1, 0)))
    first = 0
    for segment in view.segments:
        if segment.kind == "reference":
            kept = view.latents_BFCHW[:, first : first + segment.num_frames]
            expected = reference.latents_BFCHW.to(kept).expand_as(kept)
            ensure(same(kept, expected), bank, "a reference segment holds the reference for ever", when)
        first += segment.num_frames


def check_corruptor(corruptor: MemoryCorruptor, *, chunk_frames: int = 3, num_chunks: int = 3) -> None:
    """The laws of `MemoryCorruptor`."""
    history = [_chunk(chunk_frames, seed=i) for i in range(num_chunks)]
    before = [tensor.clone() for tensor in tensors_of(history)]
    weight = torch.ones((), requires_grad=True)
    calls: list[str] = []

    def regenerate(source: str, chunks: Sequence[Chunk], sigma_B: Tensor) -> list[Chunk]:
        calls.append(source)
        ensure(sigma_B.shape == (2,), corruptor, "regenerate is given one noise level per sample", str(tuple(sigma_B.shape)))
        ensure(((sigma_B >= 0) & (sigma_B <= 1)).all(), corruptor, "noise levels lie in [0, 1]")
        return [Chunk(weight * chunk.latents_BFCHW + 1, chunk.audio_BFAD, chunk.text_BLD) for chunk in chunks]

    def roll_out(chunks: Sequence[Chunk], streamed: int, micro_steps: int, shift: float) -> list[Chunk]:
        calls.append(f"rollout of {streamed}")
        ensure(1 <= streamed <= len(chunks), corruptor, "no more chunks are streamed than history has", str(streamed))
        return [Chunk(weight * chunk.latents_BFCHW + 1, chunk.audio_BFAD, chunk.text_BLD, identity=i) for i, chunk in enumerate(chunks)]

    def offer(shared: int) -> Offer:
        by = {source: partial(regenerate, source) for source in ("checkpoint", "average")}
        return Offer(**by, rollout=roll_out, step=1, total_steps=1, shared=seeded(shared))

    if "errors" in corruptor.needs:
        corruptor.observe(torch.randn(2, 8 * chunk_frames, 3, 4, 4, generator=seeded(1)), torch.linspace(0, 1, 8).expand(2, -1), seeded(2))
    state = corruptor.state()
    for seed in range(4):
        calls.clear()
        made = corruptor.corrupt(history, offer(seed), seeded(seed))
        evaluated = tuple(calls)
        _check_corruption(corruptor, history, made)
        again = corruptor.corrupt(history, offer(seed), seeded(seed))
        ensure(all(same(a, b) for a, b in zip(tensors_of(made), tensors_of(again), strict=True)), corruptor, "the generators alone decide")
        calls.clear()
        other = corruptor.corrupt(history, offer(seed), seeded(100 + seed))
        alike = (made.by, evaluated) == (other.by, tuple(calls))
        ensure(alike, corruptor, "what one process draws does not decide how often a model is evaluated", f"{evaluated} and {tuple(calls)}")
        corruptor.restore(state)
        again = corruptor.corrupt(history, offer(seed), seeded(seed))
        ensure(all(same(a, b) for a, b in zip(tensors_of(made), tensors_of(again), strict=True)), corruptor, "a restored state goes on exactly")
    ensure(all(same(a, b) for a, b in zip(before, tensors_of(history), strict=True)), corruptor, "the history it is given stays as it is")
    ensure(bool(state) == corruptor.has_state, corruptor, "has_state says whether there is a state", str(list(state)))
    if corruptor.needs - {"errors"}:
        tries = [lambda seed=seed: corruptor.corrupt(history, Offer(shared=seeded(seed)), seeded(0)) for seed in range(64)]
        refuses(lambda: [attempt() for attempt in tries], corruptor, "without a model it says so")


def _check_corruption(corruptor: MemoryCorruptor, history: Sequence[Chunk], made: Corruption) -> None:
    ensure(len(made.history) == len(history), corruptor, "as many chunks come out as go in", str(len(made.history)))
    ensure(made.by in corruptor.names, corruptor, "`by` is one of its names", made.by)
    ensure(made.chosen_B.shape == (2,) and made.chosen_B.dtype == torch.bool, corruptor, "chosen_B is one boolean per sample")
    for clean, changed in zip(history, made.history, strict=True):
        ensure(changed.latents_BFCHW.shape == clean.latents_BFCHW.shape, corruptor, "shapes are kept")
        conditions = same(changed.audio_BFAD, clean.audio_BFAD) and same(changed.text_BLD, clean.text_BLD)
        ensure(conditions, corruptor, "conditions are kept")
        ensure(torch.isfinite(changed.latents_BFCHW).all(), corruptor, "latents are finite")
        ensure(not changed.latents_BFCHW.requires_grad, corruptor, "no gradient flows into the result")
        ensure(changed.identity is None, corruptor, "changed chunks have no number of a stream", str(changed.identity))
        kept = ~made.chosen_B
        ensure(same(changed.latents_BFCHW[kept], clean.latents_BFCHW[kept]), corruptor, "samples that were not chosen stay clean")
