"""The plan of unmasked rectangles stands for the dense mask, for any layout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given, settings
from hypothesis import strategies as st

from flowact.models.attention import TokenCounts, attend, attention, dense_mask, plan_attention
from flowact.types import Segment, WindowLayout


@st.composite
def layouts(draw):
    memory = [
        Segment(kind, draw(st.integers(1, 3)), -20 + i)
        for i, kind in enumerate(draw(st.lists(st.sampled_from(["reference", "long", "short"]), max_size=4)))
    ]
    stream = [Segment("stream", draw(st.integers(1, 3)), 3 * i) for i in range(draw(st.integers(1, 4)))]
    return WindowLayout((*memory, *stream), draw(st.booleans()), draw(st.sampled_from(["bidirectional", "block_causal"])))


counts = st.builds(TokenCounts, text=st.integers(0, 3), audio=st.integers(0, 2), visual=st.integers(1, 4))


def num_tokens(layout, counts):
    return len(layout.segments) * counts.text + layout.num_frames * (counts.audio + counts.visual)


def masked(query_key, value, layout, counts):
    query, key = query_key.permute(2, 0, 3, 1, 4)
    return nnf.scaled_dot_product_attention(query, key, value.transpose(1, 2), attn_mask=dense_mask(layout, counts)).transpose(1, 2)


@settings(max_examples=60, deadline=None)
@given(layouts(), counts, st.integers(0, 100))
def test_the_plan_equals_the_dense_mask_and_so_do_its_gradients(layout, counts, seed):
    generator = torch.Generator().manual_seed(seed)
    length = num_tokens(layout, counts)
    query_key = torch.randn(2, length, 2, 2, 4, generator=generator, dtype=torch.float64).requires_grad_()
    value = torch.randn(2, length, 2, 4, generator=generator, dtype=torch.float64).requires_grad_()
    cotangent = torch.randn(2, length, 2, 4, generator=generator, dtype=torch.float64)
    results = []
    for mixed in (attend(query_key, value, plan_attention(layout, counts)), masked(query_key, value, layout, counts)):
        results.append((mixed, *torch.autograd.grad(mixed, (query_key, value), cotangent)))
    for planned, dense in zip(*results, strict=True):
        torch.testing.assert_close(planned, dense)


@settings(max_examples=40, deadline=None)
@given(layouts(), counts)
def test_a_plan_only_permutes_and_its_rectangles_cover_the_mask_exactly(layout, counts):
    plan = plan_attention(layout, counts)
    stored = torch.arange(num_tokens(layout, counts))[None]
    assert torch.equal(plan.scatter(plan.gather(stored)), stored)
    assert torch.equal(plan.gather(stored).sort().values, stored)
    grouped = torch.zeros(stored.numel(), stored.numel(), dtype=torch.bool)
    for start, end, ranges in plan.rectangles:
        for first, last in ranges:
            assert not grouped[start:end, first:last].any()
            grouped[start:end, first:last] = True
    order = plan.gather(stored)[0]
    assert torch.equal(grouped, dense_mask(layout, counts)[order][:, order])


def test_few_rectangles_are_computed():
    memory = (Segment("reference", 1, -9), Segment("long", 1, -4), Segment("short", 1, -1))
    stream = tuple(Segment("stream", 3, 3 * k) for k in range(3))
    tokens = TokenCounts(2, 4, 16)
    assert len(plan_attention(WindowLayout((*memory, *stream), causal=False), tokens).rectangles) == 1
    assert len(plan_attention(WindowLayout((*memory, *stream)), tokens).rectangles) == 2
    assert len(plan_attention(WindowLayout((*memory, *stream), stream_mask="block_causal"), tokens).rectangles) == 4


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_bfloat16_on_a_cpu_stays_near_float32(needs_gradient):
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 20, 8, generator=generator).unbind(0)
    expected = nnf.scaled_dot_product_attention(query, key, value)
    half = [x.bfloat16().requires_grad_(needs_gradient) for x in (query, key, value)]
    found = attention(*half)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=3e-2, rtol=3e-2)
    if needs_gradient:
        exact = [x.detach().float().requires_grad_() for x in half]
        cotangent = torch.randn(expected.shape, generator=generator)
        grads = torch.autograd.grad(found, half, cotangent.bfloat16())
        wanted = torch.autograd.grad(nnf.scaled_dot_product_attention(*exact), exact, cotangent)
        for got, want in zip(grads, wanted, strict=True):
            assert (got.float() - want).norm() / want.norm() < 2e-2
