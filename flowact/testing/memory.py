"""Laws of memory banks and corruptors. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowact.memory.base import MemoryBank
from flowact.memory.corruptors import Corruption, MemoryCorruptor, Offer
from flowact.memory.records import tensors_of as every_tensor_of
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
    for tensor in every_tensor_of(state):
        ensure(tensor.ndim > 0 and len(tensor) == 2, bank, "tensors of a state have the batch first", str(tuple(tensor.shape)))
    _check_only_finite(bank, chunks, reference)
    _check_restart(bank, chunks, reference)
    _check_reference(bank, state, chunks[0])
    _check_short(bank, state)
    _check_saving(bank, state, chunks[0], reference)


def _check_only_finite(bank: MemoryBank, chunks: Sequence[Chunk], reference: Chunk) -> None:
    state = bank.reset(reference)
    for chunk in chunks[:-1]:
        state = bank.write(state, chunk)
    before, after = bank.read(state), bank.read(bank.write(state, chunks[-1]))
    for field, value in (("latents_BFCHW", float("nan")), ("latents_BFCHW", float("inf")), ("audio_BFAD", -float("inf")), ("text_BLD", float("nan"))):
        damaged = getattr(chunks[-1], field).clone()
        damaged[0].view(-1)[-1] = value
        view = bank.read(bank.write(state, replace(chunks[-1], **{field: damaged})))
        held = _equal(_row(view, 0), _row(before, 0))
        ensure(held, bank, "a sample of a chunk that is not finite leaves its sample of the memory as it was", f"{value} in {field}")
        ensure(_equal(_row(view, 1), _row(after, 1)), bank, "finite samples are written beside one that is not", f"{value} in {field}")


def _check_restart(bank: MemoryBank, chunks: Sequence[Chunk], reference: Chunk) -> None:
    going, fresh, new = bank.reset(reference), bank.reset(_chunk(1, seed=99)), _chunk(1, seed=99)
    for chunk in chunks[:2]:
        going = bank.write(going, chunk)
    state = bank.restart(going, torch.tensor([True, False]), new)
    for written in range(len(chunks) + 1):
        if written:
            state, going, fresh = (bank.write(each, chunks[written - 1]) for each in (state, going, fresh))
        ensure(_equal(_row(bank.read(state), 0), _row(bank.read(fresh), 0)), bank, "a sample that restarts is like one of a new stream")
        ensure(_equal(_row(bank.read(state), 1), _row(bank.read(going), 1)), bank, "a sample that does not restart goes on")


def _check_reference(bank: MemoryBank, state: Any, chunk: Chunk) -> None:
    new = _chunk(1, seed=77)
    for now, then in ((state, bank.with_reference(state, new)), (bank.write(state, chunk), bank.write(bank.with_reference(state, new), chunk))):
        _check_view(bank, bank.read(then), new, "after the reference was swapped")
        for a, b in _segments_of(bank.read(now), bank.read(then), "reference"):
            ensure(_equal(a, b), bank, "a swapped reference changes nothing else")


def _check_short(bank: MemoryBank, state: Any) -> None:
    view = bank.read(state)
    num_frames = sum(segment.num_frames for segment in view.segments if segment.kind == "short")
    if not num_frames:
        refuses(lambda: bank.with_short(state, view.latents_BFCHW[:, :0]), bank, "without a short memory with_short says so")
        return
    new = torch.randn(2, num_frames, 3, 4, 4, generator=seeded(55))
    refined = bank.read(bank.with_short(state, new))
    ensure(same(_latents_of(refined, "short"), new), bank, "with_short replaces the latents of the short memory")
    for a, b in _segments_of(view, refined, "short"):
        ensure(_equal(a, b), bank, "with_short changes nothing but the short memory")
    ensure(same(refined.audio_BFAD, view.audio_BFAD) and same(refined.text_BSLD, view.text_BSLD), bank, "with_short keeps all conditions")
    refuses(lambda: bank.with_short(state, new[:, :, :1]), bank, "with_short refuses latents of another shape")


def _check_saving(bank: MemoryBank, state: Any, chunk: Chunk, reference: Chunk) -> None:
    saved = bank.state_dict(state)
    plain = all(value is None or isinstance(value, (Tensor, int, float, str)) for value in saved.values())
    ensure(plain and all(type(key) is str for key in saved), bank, "a saved state is tensors and plain values by name")
    restored = bank.load_state_dict(bank.reset(reference), saved)
    for a, b in ((state, restored), (bank.write(state, chunk), bank.write(restored, chunk))):
        ensure(_equal(bank.read(a), bank.read(b)), bank, "a restored state goes on exactly")
    ensure(bank.read(state).identities == bank.read(restored).identities, bank, "a restored state has the numbers it had")


def _equal(a: object, b: object) -> bool:
    return all(same(x, y) for x, y in zip(tensors_of(a), tensors_of(b), strict=True))


def _segments_of(a: MemoryView, b: MemoryView, but: str) -> list[tuple[MemoryView, MemoryView]]:
    """The segments of two views, pair by pair, without those of one kind."""
    return [(a.entries([i]), b.entries([i])) for i, segment in enumerate(a.segments) if segment.kind != but]


def _latents_of(view: MemoryView, kind: str) -> Tensor:
    kinds = [segment.kind for segment in view.segments for _ in range(segment.num_frames)]
    return view.latents_BFCHW[:, [i for i, k in enumerate(kinds) if k == kind]]


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
