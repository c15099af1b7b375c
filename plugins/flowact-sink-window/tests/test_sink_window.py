from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from flowact_sink_window import SinkWindowMemory

from flowact.memory.entries import tail
from flowact.testing import check_constructor, check_memory_bank
from flowact.types import Chunk


def chunk(value: float, num_frames: int = 3) -> Chunk:
    """A chunk whose latents, audio and text all hold `value`."""
    return Chunk(torch.full((1, num_frames, 2, 2, 2), value), torch.full((1, num_frames, 4, 2), value), torch.full((1, 3, 2), value))


def values(bank: SinkWindowMemory, num_chunks: int) -> tuple[list[int], list[int]]:
    """Which chunk (0: reference) each frame's latents and each segment's text come from, after chunks 1, 2, ..."""
    state = bank.reset(chunk(0, 1))
    for value in range(1, num_chunks + 1):
        state = bank.write(state, chunk(value))
    view = bank.read(state)
    assert torch.equal(view.latents_BFCHW[0, :, 0, 0, 0], view.audio_BFAD[0, :, 0, 0])
    return view.latents_BFCHW[0, :, 0, 0, 0].int().tolist(), view.text_BSLD[0, :, 0, 0].int().tolist()


@pytest.mark.parametrize(("sinks", "recent", "chunk_frames"), [(1, 3, 3), (1, 1, 3), (2, 4, 3), (1, 2, 1), (3, 7, 2)])
def test_laws_of_a_memory_bank(sinks, recent, chunk_frames):
    check_memory_bank(SinkWindowMemory(sinks, recent, chunk_frames), chunk_frames=chunk_frames, keeps_first=sinks)


def test_constructor_is_documented():
    check_constructor(SinkWindowMemory)


def test_first_chunks_stay_and_the_window_moves():
    bank = SinkWindowMemory(sinks=2, recent=4)
    assert values(bank, 0) == ([0] * 11, [0] * 7)
    assert values(bank, 1)[0] == [0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1]
    assert values(bank, 9) == ([0, 1, 1, 1, 2, 2, 2, 8, 9, 9, 9], [0, 1, 2, 8, 9, 9, 9])


def test_each_sample_fills_its_own_sinks():
    """A sample whose first chunk is damaged takes the second for its sink; one that restarts takes the next."""
    both = [chunk(float(number)) for number in range(5)]
    both = [Chunk(*(torch.cat([tensor] * 2) for tensor in (c.latents_BFCHW, c.audio_BFAD, c.text_BLD))) for c in both]
    damaged = replace(both[1], latents_BFCHW=both[1].latents_BFCHW.clone())
    damaged.latents_BFCHW[0, 0, 0, 0, 0] = float("nan")
    bank = SinkWindowMemory(sinks=1, recent=1)
    state = bank.write(bank.write(bank.reset(tail(both[0], 1)), damaged), both[2])
    assert state.entries[0].latents_BFCHW[:, 0, 0, 0, 0].tolist() == [2, 1]
    state = bank.write(bank.restart(bank.write(state, both[3]), torch.tensor([False, True])), both[4])
    assert state.entries[0].latents_BFCHW[:, 0, 0, 0, 0].tolist() == [2, 4]
    assert bank.read(state).latents_BFCHW[:, -1, 0, 0, 0].tolist() == [4, 4]


def test_positions_do_not_grow_with_the_stream():
    bank = SinkWindowMemory(sinks=1, recent=2, gap=5)
    positions = [(s.kind, s.position) for s in bank.read(bank.reset(chunk(0, 1))).segments]
    assert positions == [("reference", -16), ("long", -10), ("short", -2), ("short", -1)]


@pytest.mark.parametrize("wrong", [{"sinks": 0}, {"recent": 0}, {"chunk_frames": 0}, {"gap": -1}])
def test_sizes_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
        SinkWindowMemory(**wrong)


def test_chunks_of_another_length_are_refused():
    bank = SinkWindowMemory(chunk_frames=3)
    with pytest.raises(ValueError, match="chunks of 3 latent frames, got 2"):
        bank.write(bank.reset(chunk(0, 1)), chunk(1, 2))
