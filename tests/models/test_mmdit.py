"""The denoiser's laws: memory never sees the stream, noise levels per frame, relative positions, prefixes."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given, settings
from hypothesis import strategies as st

from flowact import testing
from flowact.models.blocks import AudioCrossAttention
from flowact.models.embeddings import from_patches, level_code, sine_code, to_patches
from flowact.models.mmdit import MMDiT
from flowact.models.windowed import Window
from flowact.types import FULL_VISIBILITY, ConditionTokens, Visibility, WindowLayout

CHANNELS, TOKENS, AUDIO = 3, 2, 4
layout = testing.stream_layout


def make(**options):
    torch.manual_seed(0)
    model = MMDiT(**({"latent_channels": CHANNELS, "text_width": 5, "audio_width": 6, "width": 24, "num_heads": 2, "num_double_blocks": 1,
                      "num_single_blocks": 2, "mlp_ratio": 2.0} | options))  # fmt: skip
    with torch.no_grad():  # away from the zeros that modulation and output start with
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def drawn(layout, **options):
    return testing.random_window(make(), layout, audio_per_latent=AUDIO, num_tokens=TOKENS, **options)


def window(layout, **options):
    random = drawn(layout, **options)
    return random.latents_BFCHW, random.sigma_BF, random.conditions, random.layout


@contextmanager
def memory_features(model, layout):
    """Every block's output for the tokens of memory: text, audio (if it is in the joint attention) and visual."""
    seen = []

    def keep(module, arguments, output):
        text, *others = output[0]
        seen.extend([text[:, : layout.num_memory_segments].clone(), *(other[:, : layout.num_memory_frames].clone() for other in others)])

    handles = [block.register_forward_hook(keep) for block in model.blocks]
    yield seen
    for handle in handles:
        handle.remove()


def features(model, latents, sigma, conditions, layout):
    with memory_features(model, layout) as seen, torch.no_grad():
        model(latents, sigma, conditions, layout)
    return seen


causal_visibilities = st.builds(Visibility, stream=st.sampled_from(["bidirectional", "block_causal"]), memory=st.sampled_from(["full", "isolated"]))
audio_ways = st.sampled_from(["branch", "joint", "cross"])


chunk_lengths = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)
memories = st.integers(1, 3).map(lambda count: testing.MEMORY[-count:])


@settings(max_examples=25, deadline=None)
@given(chunk_lengths, causal_visibilities, memories, audio_ways, st.integers(1, 3), st.integers(0, 3))
def test_memory_never_sees_the_stream_at_any_depth(chunks, visibility, memory, audio, num_double, num_single):
    model = make(audio=audio, num_double_blocks=num_double, num_single_blocks=num_single, guidance_embedding=True)
    testing.check_memory_never_sees_the_stream(model, drawn(layout(chunks, memory, visibility)))


@settings(max_examples=15, deadline=None)
@given(chunk_lengths, causal_visibilities, audio_ways, st.sampled_from(["segment", "channels"]), memories)
def test_kept_memory_changes_nothing_but_the_time(chunks, visibility, audio, reference, memory):
    testing.check_kept_memory(make(audio=audio, reference=reference), drawn(layout(chunks, memory, visibility)), 1e-5)


def test_memory_is_the_same_in_front_of_a_longer_stream():
    short, long = layout((2,)), layout((2, 3))
    latents, sigma, conditions, _ = window(long)
    model = make()
    cut = ConditionTokens(conditions.text_BSLD[:, : len(short.segments)], conditions.audio_BFAD[:, : short.num_frames])
    frames = short.num_frames
    before, after = features(model, latents[:, :frames], sigma[:, :frames], cut, short), features(model, latents, sigma, conditions, long)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b)


def other_stream(window):
    other = window.with_another_stream()
    return other.latents_BFCHW, other.sigma_BF, other.conditions, other.layout


def test_memory_sees_the_stream_with_full_visibility():
    whole = layout(visibility=FULL_VISIBILITY)
    before, after = features(make(), *window(whole)), features(make(), *other_stream(drawn(whole)))
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


class SharedText(WindowLayout):
    """The last memory segment stands for text that all segments share: everyone sees it and it sees everyone."""

    def visible(self, query, key):
        shared = sum(segment.is_memory for segment in self.segments) - 1
        return query == shared or key == shared or super().visible(query, key)


def test_shared_text_would_leak_the_stream_into_memory_after_two_blocks():
    """Why conditions are owned by segments: the mask alone forbids memory -> stream, yet the stream arrives through the shared tokens."""
    shared = SharedText(layout().segments)
    before, after = features(make(), *window(shared)), features(make(), *other_stream(drawn(shared)))
    others = 2  # reference and long: what stands before the shared segment
    visual = [(a[:, :others], b[:, :others]) for a, b in zip(before[2::3], after[2::3], strict=True)]
    assert torch.equal(*visual[0])
    assert not torch.equal(*visual[1])
    assert not torch.equal(*visual[2])


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
def test_block_causal_outputs_equal_those_of_a_prefix(prediction):
    testing.check_prefixes(make(prediction=prediction), drawn(layout((2, 1, 3), visibility=Visibility(stream="block_causal"))))


def test_bidirectional_chunks_see_later_chunks():
    model = make()
    latents, sigma, conditions, whole = window(layout((2, 2)))
    later = latents.clone()
    later[:, -2:] += 1
    with torch.no_grad():
        assert not torch.allclose(model(latents, sigma, conditions, whole)[:, :2], model(later, sigma, conditions, whole)[:, :2], atol=1e-4)


def test_a_level_per_frame_is_a_level_of_that_frame_alone():
    """Equal levels per frame are one level per sample: the frame's modulation depends on nothing but its own level, text, sound and kind."""
    model = make()
    latents, sigma, conditions, whole = window(layout())
    one = torch.full_like(sigma, 0.4)

    def vector_of(levels, tokens=conditions):
        return model.frame_vector(Window(latents, levels, tokens, whole))

    vector = vector_of(one)
    mixed = torch.where(torch.arange(sigma.shape[1]) == 3, one, sigma)
    torch.testing.assert_close(vector_of(mixed)[:, 3], vector[:, 3])
    assert not torch.allclose(vector_of(mixed)[:, 4], vector[:, 4])
    still = ConditionTokens(torch.zeros_like(conditions.text_BSLD), torch.zeros_like(conditions.audio_BFAD))
    stream = vector_of(one, still)[:, whole.num_memory_frames :]
    torch.testing.assert_close(stream, stream[:, :1].expand_as(stream))


def test_positions_are_relative():
    testing.check_positions(make(), drawn(layout()))


def test_samples_of_a_batch_may_be_permuted():
    testing.check_batch(make(absolute_positions=True), drawn(layout(), batch=4))


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_round_trip(patch):
    latents = torch.randn(2, 3, CHANNELS, 4, 8)
    tokens = to_patches(latents, patch)
    assert tokens.shape == (2, 3, 4 * 8 // patch**2, CHANNELS * patch**2)
    assert torch.equal(from_patches(tokens, latents.shape[-2:], patch), latents)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    "options",
    [
        {}, {"audio": "joint"}, {"audio": "cross"}, {"reference": "channels", "patch": 2}, {"attention": "flex", "width": 32},
        {"guidance_embedding": True}, {"patch": 2}, {"absolute_positions": True}, {"prediction": "sample"},
        {"activation": "silu", "query_key_norm": "layer", "initial_gate": 0.5}, {"num_single_blocks": 0}, {"num_double_blocks": 0},
        {"width": 12, "num_heads": 6},
    ],
)  # fmt: skip
def test_every_variant_keeps_the_laws_of_a_denoiser(options):
    testing.check_denoiser(make(**options))


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
def test_it_starts_as_no_velocity_or_no_picture(prediction):
    torch.manual_seed(0)
    model = MMDiT(CHANNELS, 5, 6, width=24, num_heads=2, prediction=prediction)
    latents, sigma, conditions, whole = window(layout())
    velocity = model(latents, sigma, conditions, whole)
    stream = whole.num_memory_frames
    expected = torch.zeros_like(velocity) if prediction == "velocity" else latents[:, stream:] / sigma[:, stream:, None, None, None].clamp(min=0.05)
    torch.testing.assert_close(velocity, expected)


@pytest.mark.parametrize("audio", ["branch", "joint", "cross"])
@pytest.mark.parametrize("reference", ["segment", "channels"])
def test_every_parameter_gets_a_gradient(audio, reference):
    model = make(patch=2, absolute_positions=True, audio=audio, reference=reference, guidance_embedding=True)
    latents, sigma, conditions, whole = window(layout())
    model(latents, sigma, replace(conditions, guidance_BG=torch.tensor([[2.0, 1.0], [4.0, 3.0]])), whole).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_it_computes_in_bfloat16():
    testing.check_number_types(make, drawn(layout()))


def test_it_computes_where_bfloat16_is_the_default(monkeypatch):
    """As under Lightning's bf16-true."""
    latents, sigma, conditions, whole = window(layout())
    half = make().bfloat16()
    found = half(latents.bfloat16(), sigma, conditions.to(torch.bfloat16), whole)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(half(latents.bfloat16(), sigma, conditions.to(torch.bfloat16), whole), found)
    finally:
        torch.set_default_dtype(torch.float32)


class AddsBiasInPlace(torch.autograd.Function):
    """A linear map as DeepSpeed's ZeRO-3 puts it in the place of torch's."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        out = x.matmul(weight.t())
        return out if bias is None else out.add_(bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        return gradient.matmul(weight), rows.t().matmul(x.flatten(0, -2)), rows.sum(0)


def in_place_linear(x, weight, bias=None):
    if bias is None:
        bias = torch.zeros(weight.shape[0])
    return AddsBiasInPlace.apply(x, weight, bias)


@pytest.mark.parametrize("linear", [nnf.linear, in_place_linear])
def test_activation_checkpointing_changes_nothing_but_what_is_kept(linear, monkeypatch):
    monkeypatch.setattr(nnf, "linear", linear)
    testing.check_checkpointing(lambda choice: make(checkpointing=choice), drawn(layout()))


def test_guidance_scales_start_without_effect_and_reach_the_stream_only():
    latents, sigma, conditions, whole = window(layout())
    asked = replace(conditions, guidance_BG=torch.tensor([[2.0, 1.0], [5.0, 3.0]]))
    torch.manual_seed(0)
    fresh = MMDiT(CHANNELS, 5, 6, width=24, num_heads=2, guidance_embedding=True, initial_gate=0.5)
    with torch.no_grad():
        fresh.out.weight.normal_()
        assert torch.equal(fresh(latents, sigma, asked, whole), fresh(latents, sigma, conditions, whole))
    model = make(guidance_embedding=True)
    before, after = features(model, latents, sigma, conditions, whole), features(model, latents, sigma, asked, whole)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with torch.no_grad():
        velocities = [model(latents, sigma, tokens, whole) for tokens in (conditions, asked)]
        swapped = model(latents, sigma, replace(asked, guidance_BG=asked.guidance_BG.flip(1)), whole)
    assert not torch.allclose(*velocities, atol=1e-3)
    assert not torch.allclose(velocities[1], swapped, atol=1e-3)


def test_audio_by_cross_attention_starts_without_effect_and_each_frame_hears_its_own_sound():
    latents, sigma, conditions, whole = window(layout())
    louder = replace(conditions, audio_BFAD=conditions.audio_BFAD.clone())
    louder.audio_BFAD[:, 4] *= 3
    torch.manual_seed(0)
    visual = torch.randn(2, 7, 16, 24)
    heard = torch.randn(2, 7, AUDIO, 24)
    block = AudioCrossAttention(24, 2)
    assert torch.equal(block(visual, heard), visual)
    with torch.no_grad():
        block.out.weight.normal_()
        other = heard.clone()
        other[:, 4] += 1
        changed = (block(visual, heard) - block(visual, other)).abs().amax((0, 2, 3)) > 1e-4
    assert changed.tolist() == [frame == 4 for frame in range(7)]
    model = make(audio="cross")
    with torch.no_grad():
        assert not torch.allclose(model(latents, sigma, conditions, whole), model(latents, sigma, louder, whole), atol=1e-4)


def test_a_reference_beside_every_frame_is_seen_by_the_stream_and_has_no_tokens():
    model = make(reference="channels")
    latents, sigma, conditions, whole = window(layout())
    beside = Window(latents, sigma, conditions, whole).with_reference_beside()
    assert [segment.kind for segment in beside.segments] == ["long", "short", "stream", "stream"]
    planes, copies, mask = beside.input_BFCHW.split([CHANNELS, CHANNELS, 1], dim=2)
    assert torch.equal(planes, latents[:, 1:])
    assert torch.equal(copies[:, :2], latents[:, 1:3])
    assert torch.equal(copies[:, 2:], latents[:, :1].expand(-1, 4, -1, -1, -1))
    assert mask.amax((0, 2, 3, 4)).tolist() == mask.amin((0, 2, 3, 4)).tolist() == [1, 1, 0, 0, 0, 0]
    other = latents.clone()
    other[:, 0] += 1
    with torch.no_grad():
        assert not torch.allclose(model(latents, sigma, conditions, whole), model(other, sigma, conditions, whole), atol=1e-3)
        without = layout(memory=testing.MEMORY[1:])
        cut = conditions.part(slice(1, None), slice(1, None))
        assert torch.isfinite(model(latents[:, 1:], sigma[:, 1:], cut, without)).all()


def test_blocks_compile_whole_and_once_for_a_stream():
    testing.check_compilation(lambda: make(num_double_blocks=2), [drawn(layout(), seed=seed) for seed in range(5)])


def test_validation_in_inference_mode_leaves_nothing_behind_that_training_cannot_use():
    model, inputs = make(), window(layout((1, 2, 1)))
    with torch.inference_mode():
        model(*inputs)
    model(*inputs).sum().backward()


def test_level_codes_tell_near_levels_apart_and_bfloat16_would_not():
    near = torch.tensor([0.9300, 0.9305])
    assert not torch.allclose(*level_code(near), atol=1e-2)
    assert torch.equal(*near.bfloat16())
    assert sine_code(torch.arange(5.0), 7).shape == (5, 7)


def test_a_window_that_does_not_fit_names_the_sizes():
    model, (latents, sigma, conditions, whole) = make(), window(layout())
    with pytest.raises(ValueError, match=r"latents frames: 6, layout has 7.*"):
        model(latents[:, 1:], sigma, conditions, whole)
    with pytest.raises(ValueError, match="noise levels: 3, layout has 7"):
        model(latents, sigma[:, :3], conditions, whole)
    short = ConditionTokens(conditions.text_BSLD[:, :2], conditions.audio_BFAD[:, :1])
    with pytest.raises(ValueError, match="audio frames: 1, layout has 7; text segments: 2, layout has 5"):
        model(latents, sigma, short, whole)


def test_conditions_of_other_widths_or_rates_name_both_numbers():
    model, (latents, sigma, conditions, whole) = make(), window(layout())
    wide = ConditionTokens(torch.zeros(2, 5, TOKENS, 9), torch.zeros(2, 7, 8, 6))
    with pytest.raises(ValueError, match="text width: 9, MMDiT was made for 5; audio features per latent frame: 8, MMDiT was made for 4"):
        model(latents, sigma, wide, whole)
    with pytest.raises(ValueError, match="latent channels: 2, MMDiT was made for 3"):
        model(latents[:, :, :2], sigma, conditions, whole)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple of 8"):
        MMDiT(CHANNELS, 5, 6, width=20, num_heads=4)
    with pytest.raises(ValueError, match=r"4x4.*patch"):
        make(patch=3)(*window(layout()))
