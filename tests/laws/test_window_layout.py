"""Records that cross rooms: geometry of a window, and records that move."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowact.memory import StructuredMemory
from flowact.types import Chunk, ConditionTokens, Segment, Visibility, WindowLayout, concatenate_chunks

kinds = st.lists(st.tuples(st.sampled_from(["reference", "long", "short"]), st.integers(1, 3)), max_size=4)
lengths = st.lists(st.integers(1, 3), min_size=1, max_size=4)


visibilities = st.builds(
    Visibility, causal=st.booleans(), stream=st.sampled_from(["bidirectional", "block_causal"]), memory=st.sampled_from(["full", "isolated"])
)


@given(kinds, lengths, visibilities)
def test_a_layout_counts_its_frames_and_memory_never_sees_the_stream(memory, stream, visibility):
    segments = [Segment(kind, length, -30 + 5 * i) for i, (kind, length) in enumerate(memory)]
    segments += [Segment("stream", length, 5 * i) for i, length in enumerate(stream)]
    layout = WindowLayout(tuple(segments), visibility)
    causal = visibility.causal
    assert layout.num_memory_frames == sum(length for _, length in memory)
    assert layout.num_stream_frames == sum(stream)
    assert layout.num_frames == len(layout.frame_positions) == len(layout.frame_segments)
    for i, query in enumerate(segments):
        assert layout.visible(i, i)
        for j, key in enumerate(segments):
            if causal and query.is_memory:
                assert layout.visible(i, j) == (i == j or (key.is_memory and visibility.memory == "full"))
            if not causal or (not query.is_memory and key.is_memory):
                assert layout.visible(i, j)
            if causal and visibility.stream == "block_causal" and not (query.is_memory or key.is_memory):
                assert layout.visible(i, j) == (j <= i)


@pytest.mark.parametrize("kinds", [("stream", "short"), ("reference", "stream", "long", "stream")])
def test_memory_behind_the_stream_is_refused(kinds):
    with pytest.raises(ValueError, match="memory segments stand before stream"):
        WindowLayout(tuple(Segment(kind, 1, i) for i, kind in enumerate(kinds)))


def test_a_window_has_segments_and_no_two_frames_stand_at_one_position():
    with pytest.raises(ValueError, match="at least one segment"):
        WindowLayout(())
    with pytest.raises(ValueError, match=r"stream at position 0 with 3 frames overlaps reference at 2.*behind the whole stream"):
        WindowLayout((Segment("reference", 1, 2), Segment("stream", 3, 0)))
    assert WindowLayout((Segment("reference", 1, 3), Segment("stream", 3, 0))).frame_positions == (3, 0, 1, 2)


def test_memory_of_a_layout_is_its_memory_segments_in_order():
    layout = WindowLayout((Segment("reference", 1, -9), Segment("short", 2, -2), Segment("stream", 3, 0)), Visibility(memory="isolated"))
    assert layout.memory == WindowLayout(layout.segments[:2], layout.visibility)
    assert layout.memory.num_stream_frames == 0
    assert layout.num_memory_segments == 2


def test_an_unknown_visibility_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"visibility\.memory is 'some'; it is full or isolated"):
        Visibility(memory="some")


def test_dropping_conditions_touches_the_masked_samples_only():
    tokens = ConditionTokens(torch.ones(2, 3, 4, 5), torch.ones(2, 6, 4, 5))
    first = torch.tensor([True, False])
    dropped = tokens.drop(text_B=first)
    assert torch.equal(dropped.text_BSLD.flatten(1).sum(1), torch.tensor([0.0, 60.0]))
    assert torch.equal(dropped.audio_BFAD, tokens.audio_BFAD)
    assert not tokens.drop(text_B=first, audio_B=~first).audio_BFAD[1].any()


def test_records_move_whole_and_integers_keep_their_type():
    chunk = Chunk(torch.zeros(1, 2, 3, 4, 4), torch.zeros(1, 2, 4, 5), torch.zeros(1, 6, 7))
    assert {t.dtype for t in vars(chunk.to(torch.float64)).values() if t is not None} == {torch.float64}
    state = StructuredMemory().reset(Chunk(chunk.latents_BFCHW[:, :1], chunk.audio_BFAD[:, :1], chunk.text_BLD)).to(torch.bfloat16)
    assert all(entry.latents_BFCHW.dtype == torch.bfloat16 for entry in (state.reference, *state.entries))


def test_chunks_side_by_side():
    chunks = [Chunk(torch.full((1, n, 1, 1, 1), float(n)), torch.full((1, n, 4, 2), float(n)), torch.full((1, 3, 2), float(n))) for n in (1, 3)]
    latents, audio, text = concatenate_chunks(chunks)
    assert latents.flatten().tolist() == [1, 3, 3, 3]
    assert audio.shape == (1, 4, 4, 2)
    assert text.shape == (1, 2, 3, 2)
