"""The plan of unmasked rectangles stands for the dense mask, for any layout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given, settings
from hypothesis import strategies as st

from flowact.models.attention import TokenCounts, attend, attention, dense_mask, plan_attention
from flowact.types import FULL_VISIBILITY, Segment, Visibility, WindowLayout

visibilities = st.builds(
    Visibility, causal=st.booleans(), stream=st.sampled_from(["bidirectional", "block_causal"]), memory=st.sampled_from(["full", "isolated"])
)


@st.composite
def layouts(draw):
    memory = [
        Segment(kind, draw(st.integers(1, 3)), -20 + 4 * i)
        for i, kind in enumerate(draw(st.lists(st.sampled_from(["reference", "long", "short"]), max_size=4)))
    ]
    stream = [Segment("stream", draw(st.integers(1, 3)), 3 * i) for i in range(draw(st.integers(1, 4)))]
    return WindowLayout((*memory, *stream), draw(visibilities))


counts = st.builds(TokenCounts, text=st.integers(0, 3), audio=st.integers(0, 2), visual=st.integers(1, 4))


def num_tokens(layout, counts):
    return len(layout.segments) * counts.text + layout.num_frames * (counts.audio + counts.visual)


def modalities(tokens, layout, counts):
    """Tokens [B, L, ...] in the order text, audio, visual, one tensor per modality that has any."""
    sizes = [len(layout.segments) * counts.text, layout.num_frames * counts.audio, layout.num_frames * counts.visual]
    return [part for part in tokens.split(sizes, dim=1) if part.shape[1]]


def planned(query_key, value, layout, counts, **options):
    plan = plan_attention(layout, counts, **options)
    query, key = plan.join(modalities(query_key, layout, counts)).unbind(2)
    return torch.cat(plan.part(attend(query, key, plan.join(modalities(value, layout, counts)), plan)), dim=1)


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
    for mixed in (planned(query_key, value, layout, counts), masked(query_key, value, layout, counts)):
        results.append((mixed, *torch.autograd.grad(mixed, (query_key, value), cotangent)))
    for found, dense in zip(*results, strict=True):
        torch.testing.assert_close(found, dense)


@settings(max_examples=30, deadline=None)
@given(layouts(), counts)
def test_a_plan_only_permutes_and_its_rectangles_cover_the_mask_exactly(layout, counts):
    plan = plan_attention(layout, counts)
    stored = torch.arange(num_tokens(layout, counts))[None]
    order = plan.join(modalities(stored, layout, counts))
    assert torch.equal(torch.cat(plan.part(order), dim=1), stored)
    assert torch.equal(order.sort().values, stored)
    grouped = torch.zeros(stored.numel(), stored.numel(), dtype=torch.bool)
    for start, end, ranges in plan.rectangles:
        for first, last in ranges:
            assert not grouped[start:end, first:last].any()
            grouped[start:end, first:last] = True
    assert torch.equal(grouped, dense_mask(layout, counts)[order[0]][:, order[0]])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=15, deadline=None)
@given(layouts(), counts)
def test_flex_attention_computes_the_same(layout, counts):
    generator = torch.Generator().manual_seed(0)
    length = num_tokens(layout, counts)
    query_key, value = torch.randn(2, length, 2, 2, 16, generator=generator), torch.randn(2, length, 2, 16, generator=generator)
    flexible = planned(query_key, value, layout, counts, backend="flex")
    torch.testing.assert_close(flexible, masked(query_key, value, layout, counts), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=30, deadline=None)
@given(layouts().filter(lambda layout: layout.visibility.causal), counts, st.sampled_from(["rectangles", "flex"]))
def test_the_stream_alone_in_front_of_kept_memory_is_the_end_of_the_whole(layout, counts, backend):
    generator = torch.Generator().manual_seed(0)
    whole = plan_attention(layout, counts)
    query, key, value = torch.randn(3, 1, whole.num_tokens, 2, 16, generator=generator)
    plan = plan_attention(layout, counts, kept_memory=True, backend=backend)
    assert plan.memory + plan.num_tokens == whole.num_tokens
    expected = attend(query, key, value, whole)[:, plan.memory :]
    torch.testing.assert_close(attend(query[:, plan.memory :], key, value, plan), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=20, deadline=None)
@given(layouts(), counts, st.integers(0, 50), st.sampled_from(["rectangles", "flex"]))
def test_a_key_mask_takes_the_same_keys_from_the_plan_as_from_the_dense_mask(layout, counts, seed, backend):
    generator = torch.Generator().manual_seed(seed)
    plan = plan_attention(layout, counts, backend=backend)
    query, key, value = torch.randn(3, 2, plan.num_tokens, 2, 16, generator=generator)
    allowed = torch.rand(2, plan.num_tokens, generator=generator) < 0.8
    order = plan.join(modalities(torch.arange(plan.num_tokens)[None], layout, counts))[0]
    mask = dense_mask(layout, counts)[order][:, order] & allowed[:, None]
    seen = mask.any(-1)  # a query that sees nothing is nobody's business
    expected = nnf.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)), attn_mask=mask[:, None]).transpose(1, 2)
    torch.testing.assert_close(attend(query, key, value, plan, allowed)[seen], expected[seen], atol=1e-5, rtol=1e-4)


def test_few_rectangles_are_computed():
    memory = (Segment("reference", 1, -9), Segment("long", 1, -4), Segment("short", 1, -1))
    stream = tuple(Segment("stream", 3, 3 * k) for k in range(3))
    tokens = TokenCounts(2, 4, 16)
    assert len(plan_attention(WindowLayout((*memory, *stream), FULL_VISIBILITY), tokens).rectangles) == 1
    assert len(plan_attention(WindowLayout((*memory, *stream)), tokens).rectangles) == 2
    assert len(plan_attention(WindowLayout((*memory, *stream), Visibility(stream="block_causal")), tokens).rectangles) == 4
    assert len(plan_attention(WindowLayout((*memory, *stream), Visibility(memory="isolated")), tokens).rectangles) == 4
    assert len(plan_attention(WindowLayout((*memory, *stream), Visibility(memory="isolated")), tokens, kept_memory=True).rectangles) == 1


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
