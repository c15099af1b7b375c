"""Rotary positions: only differences count."""

from __future__ import annotations

import pytest
import torch

from flowact.models.attention import TokenCounts, plan_attention
from flowact.models.rope import rotate, split_axes, window_rotation
from flowact.types import Segment, WindowLayout

COUNTS = TokenCounts(text=2, audio=4, visual=4)


def rotation(shift=0, head_width=16, **options):
    layout = WindowLayout((Segment("short", 1, shift - 1), Segment("stream", 3, shift)))
    return window_rotation(layout, COUNTS, (2, 2), split_axes(head_width), 256.0, torch.device("cpu"), **options)


@pytest.mark.parametrize("head_width", [2, 4, 16, 24, 48, 64, 128])
def test_the_axes_share_all_channels_in_pairs(head_width):
    widths = split_axes(head_width)
    assert sum(widths) == head_width
    assert all(width % 2 == 0 and width >= 0 for width in widths)
    cosine, sine = rotation(head_width=head_width)
    assert cosine.shape == sine.shape == (2 * 2 + 4 * 8, head_width // 2)


def test_a_rotation_keeps_lengths_and_products_depend_on_differences_of_positions():
    query, key = torch.randn(2, 1, 36, 3, 16, dtype=torch.float64).unbind(0)
    products = []
    for shift in (0, 41):
        turned_query, turned_key = (rotate(x, rotation(shift)) for x in (query, key))
        torch.testing.assert_close(turned_query.norm(dim=-1), query.norm(dim=-1), atol=1e-5, rtol=1e-5)
        products.append(torch.einsum("blnd,bmnd->bnlm", turned_query, turned_key))
    torch.testing.assert_close(*products, atol=1e-4, rtol=1e-4)


def test_audio_stands_around_its_latent_frame_and_text_in_the_middle_or_at_the_start_of_its_segment():
    """Angles of the first temporal channel are the positions themselves, as its frequency is 1. Memory's tokens stand first, then the stream's."""
    layout = WindowLayout((Segment("short", 1, -1), Segment("stream", 3, 0)))
    plan = plan_attention(layout, COUNTS)

    def positions(**options):
        cosine, sine = rotation(**options)
        return (part[0] for part in plan.part(torch.atan2(sine[:, 0], cosine[:, 0])[None]))

    text, audio, visual = positions()
    torch.testing.assert_close(text, torch.tensor([-1.0, -1.0, 1.0, 1.0]))
    torch.testing.assert_close(next(positions(text_at="start")), torch.tensor([-1.0, -1.0, 0.0, 0.0]))
    torch.testing.assert_close(audio[4:8], torch.tensor([-0.375, -0.125, 0.125, 0.375]))
    torch.testing.assert_close(visual, torch.tensor([-1.0, 0.0, 1.0, 2.0]).repeat_interleave(4))


def test_rotations_made_during_validation_serve_training():
    """Lightning validates in inference mode; what is cached there must not be an inference tensor."""
    window_rotation.cache_clear()
    with torch.inference_mode():
        rotation()
    x = torch.randn(1, 36, 3, 16, requires_grad=True)
    rotate(x, rotation()).sum().backward()
    assert x.grad is not None
