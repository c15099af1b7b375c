"""Records that cross rooms: geometry of a window, and records that move."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowact.memory import StructuredMemory
from flowact.types import Chunk, ConditionTokens, Segment, WindowLayout, concatenate_chunks

kinds = st.lists(st.tuples(st.sampled_from(["reference", "long", "short"]), st.integers(1, 3)), max_size=4)
lengths = st.lists(st.integers(1, 3), min_size=1, max_size=4)


@given(kinds, lengths, st.booleans(), st.sampled_from(["bidirectional", "block_causal"]))
def test_a_layout_counts_its_frames_and_memory_never_sees_the_stream(memory, stream, causal, stream_mask):
    segments = [Segment(kind, length, -30 + 5 * i) for i, (kind, length) in enumerate(memory)]
    segments += [Segment("stream", length, 5 * i) for i, length in enumerate(stream)]
    layout = WindowLayout(tuple(segments), causal, stream_mask)
    assert layout.num_memory_frames == sum(length for _, length in memory)
    assert layout.num_stream_frames == sum(stream)
    assert layout.num_frames == len(layout.frame_positions) == len(layout.frame_segments)
    for i, query in enumerate(segments):
        assert layout.visible(i, i)
        for j, key in enumerate(segments):
            if causal and query.is_memory:
                assert layout.visible(i, j) == key.is_memory
            if not causal or (not query.is_memory and key.is_memory):
                assert layout.visible(i, j)
            if causal and stream_mask == "block_causal" and not (query.is_memory or key.is_memory):
                assert layout.visible(i, j) == (j <= i)


@pytest.mark.parametrize("kinds", [(), ("short",), ("stream", "short"), ("reference", "stream", "long", "stream")])
def test_a_window_without_stream_or_with_memory_behind_it_is_refused(kinds):
    with pytest.raises(ValueError, match="stream"):
        WindowLayout(tuple(Segment(kind, 1, 0) for kind in kinds))


def test_dropping_conditions_touches_the_masked_samples_only():
    tokens = ConditionTokens(torch.ones(2, 3, 4, 5), torch.ones(2, 6, 4, 5))
    first = torch.tensor([True, False])
    dropped = tokens.drop(text_B=first)
    assert torch.equal(dropped.text_BSLD.flatten(1).sum(1), torch.tensor([0.0, 60.0]))
    assert torch.equal(dropped.audio_BFAD, tokens.audio_BFAD)
    assert not tokens.drop(text_B=first, audio_B=~first).audio_BFAD[1].any()


def test_records_move_whole_and_integers_keep_their_type():
    chunk = Chunk(torch.zeros(1, 2, 3, 4, 4), torch.zeros(1, 2, 4, 5), torch.zeros(1, 6, 7))
    assert {t.dtype for t in vars(chunk.to(torch.float64)).values()} == {torch.float64}
    state = StructuredMemory().reset(Chunk(chunk.latents_BFCHW[:, :1], chunk.audio_BFAD[:, :1], chunk.text_BLD)).to(torch.bfloat16)
    assert all(entry.latents_BFCHW.dtype == torch.bfloat16 for entry in (state.reference, *state.entries))


def test_chunks_side_by_side():
    chunks = [Chunk(torch.full((1, n, 1, 1, 1), float(n)), torch.full((1, n, 4, 2), float(n)), torch.full((1, 3, 2), float(n))) for n in (1, 3)]
    latents, audio, text = concatenate_chunks(chunks)
    assert latents.flatten().tolist() == [1, 3, 3, 3]
    assert audio.shape == (1, 4, 4, 2)
    assert text.shape == (1, 2, 3, 2)
