"""The laws of a denoiser over segments: memory never sees the stream, kept memory, prefixes, positions, ears, and what training needs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from flowact_wan import WanDenoiser
from flowact_wan.block import equal_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.profiler import ProfilerActivity, profile
from windows import drawn, fresh, layout, make, nudged, window

from flowact import testing
from flowact.models.embeddings import to_patches
from flowact.testing import MEMORY
from flowact.types import ConditionTokens, Visibility

causal_visibilities = st.builds(Visibility, stream=st.sampled_from(["bidirectional", "block_causal"]), memory=st.sampled_from(["full", "isolated"]))
BESIDE = {"clean_copies": True, "reference": "channels"}
chunk_lengths = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)


@settings(max_examples=20, deadline=None)
@given(chunk_lengths, causal_visibilities, st.integers(1, 3), st.integers(1, 4))
def test_memory_never_sees_the_stream_at_any_depth(chunks, visibility, num_memory, num_blocks):
    model = make(num_blocks=num_blocks, guidance_embedding=True)
    testing.check_memory_never_sees_the_stream(model, drawn(layout(chunks, MEMORY[-num_memory:], visibility)))


@settings(max_examples=15, deadline=None)
@given(chunk_lengths, causal_visibilities, st.sampled_from([{}, {"clean_copies": True}, BESIDE]), st.permutations(MEMORY), st.integers(1, 3))
def test_kept_memory_changes_nothing_but_the_time(chunks, visibility, options, memory, num_memory):
    testing.check_kept_memory(make(**options), drawn(layout(chunks, tuple(memory[-num_memory:]), visibility)), 1e-5)


def test_block_causal_outputs_equal_those_of_a_prefix_and_bidirectional_ones_do_not():
    model = make()
    testing.check_prefixes(model, drawn(layout((2, 1, 3), visibility=Visibility(stream="block_causal"))))
    whole = drawn(layout((2, 1, 3)))
    with torch.no_grad():
        assert not torch.allclose(whole.first(5).through(model), whole.through(model)[:, :3], atol=1e-3)


def test_positions_are_relative_and_samples_may_be_permuted():
    testing.check_positions(make(), drawn(layout()))
    testing.check_batch(make(), drawn(layout(), batch=4))


def test_a_segment_looks_at_its_own_text_only():
    """One block without self-attention's mixing: only the frames of the segment change whose text changed."""
    model = make(num_blocks=1)
    nn.init.zeros_(model.blocks[0].out.weight)
    latents, sigma, conditions, whole = window(layout((1, 2, 2, 1)))
    text = conditions.text_BSLD.clone()
    text[:, 5] += 1
    with torch.no_grad():
        velocities = [model(latents, sigma, tokens, whole) for tokens in (conditions, replace(conditions, text_BSLD=text))]
    changed = (velocities[0] - velocities[1]).abs().amax((0, 2, 3, 4)) > 1e-4
    assert changed.tolist() == [False, False, False, True, True, False]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_runs_tile_the_segments_and_are_as_few_as_possible(lengths):
    starts = tuple(sum(lengths[:i]) for i in range(len(lengths)))
    runs = list(equal_runs(starts, sum(lengths)))
    found = [[lengths[segments], frames.stop - frames.start] for segments, frames in runs]
    assert [length for run, _ in found for length in run] == lengths
    assert all(len(set(run)) == 1 and sum(run) == size for run, size in found)
    assert all(one[0][0] != next_one[0][0] for one, next_one in pairwise(found))


def test_ears_start_without_effect_and_then_each_frame_hears_its_own_sound_in_order():
    latents, sigma, conditions, whole = window(layout())
    model = fresh(num_blocks=1)
    nudged(model.out)
    deaf = fresh(num_blocks=1, audio_every=0)
    deaf.load_state_dict(model.state_dict(), strict=False)
    louder, turned = (replace(conditions, audio_BFAD=conditions.audio_BFAD.clone()) for _ in range(2))
    louder.audio_BFAD[:, 4] *= 3
    turned.audio_BFAD[:, 4] = turned.audio_BFAD[:, 4].flip(1)

    def velocities():
        with torch.no_grad():
            return [model(latents, sigma, tokens, whole) for tokens in (conditions, louder, turned)]

    expected = deaf(latents, sigma, conditions, whole)
    assert expected.abs().max() > 0.1
    assert all(torch.equal(velocity, expected) for velocity in velocities())
    model(latents, sigma, conditions, whole).sum().backward()
    assert model.blocks[0].audio.out.weight.grad.any()
    nudged(model.blocks[0].audio)
    before, *others = velocities()
    for other in others:
        changed = (before - other).abs().amax((0, 2, 3, 4)) > 1e-5
        assert changed.tolist() == [frame == 1 for frame in range(4)]  # frame 4 of the window is frame 1 of the stream


@pytest.mark.parametrize(("audio_every", "hearing"), [(0, []), (1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (9, [0])])
def test_some_blocks_hear(audio_every, hearing):
    blocks = fresh(num_blocks=5, audio_every=audio_every).blocks
    assert [i for i, block in enumerate(blocks) if block.audio is not None] == hearing


def test_guidance_scales_start_without_effect_and_are_then_heard():
    latents, sigma, conditions, whole = window(layout())
    asked = replace(conditions, guidance_BG=torch.tensor([[2.0, 1.0], [5.0, 3.0]]))
    model = fresh(guidance_embedding=True)
    nudged(model.out)
    with torch.no_grad():
        assert torch.equal(model(latents, sigma, asked, whole), model(latents, sigma, conditions, whole))
        nudged(model)
        assert not torch.allclose(model(latents, sigma, asked, whole), model(latents, sigma, conditions, whole), atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"audio_every": 0},
        {"clean_copies": True},
        BESIDE,
        {"patch": 1},
        {"patch": 4},
        {"attention": "flex", "width": 32},
        {"guidance_embedding": True},
        {"image_tokens": 1, "image_width": 4},
    ],
)
def test_every_variant_keeps_the_laws_of_a_denoiser(options):
    testing.check_denoiser(make(**options))


def test_the_constructor_is_documented():
    testing.check_constructor(WanDenoiser)


@pytest.mark.parametrize("options", [{}, BESIDE, {"image_tokens": 1, "image_width": 4}])
def test_every_parameter_gets_a_gradient(options):
    model = make(guidance_embedding=True, **options)
    latents, sigma, conditions, whole = window(layout())
    model(latents, sigma, replace(conditions, guidance_BG=torch.tensor([[2.0, 1.0], [4.0, 3.0]])), whole).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_every_linear_map_is_called_as_a_module_so_that_adapters_can_stand_in_for_it():
    model, called = make(guidance_embedding=True), set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, a, o, name=name: called.add(name))
    latents, sigma, conditions, whole = window(layout())
    model(latents, sigma, replace(conditions, guidance_BG=torch.ones(2, 2)), whole)
    assert called == {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    matrices = {name for name, p in model.named_parameters() if p.ndim == 2} - {f"{name}.weight" for name in called}
    assert {name.rpartition(".")[2] for name in matrices} == {"modulation", "query_key_norm", "out_modulation"}


def test_activation_checkpointing_changes_nothing():
    testing.check_checkpointing(lambda choice: make(checkpointing=choice), drawn(layout((3, 3)), batch=4))


def kept_bytes(checkpointing):
    """What a training step's forward pass leaves behind."""
    model = make(checkpointing=checkpointing, width=48, hidden=240).train()
    inputs = window(layout((3, 3)), batch=4)
    model(*inputs)  # tables of angles are made once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        velocity = model(*inputs)
    assert velocity.requires_grad
    return sum(event.self_cpu_memory_usage for event in measured.key_averages())


def test_activation_checkpointing_keeps_less():
    kept = [kept_bytes(choice) for choice in ("none", "selective", "full")]
    assert kept[2] < 0.5 * kept[1]
    assert kept[1] < 0.8 * kept[0]


def test_it_computes_in_bfloat16():
    testing.check_number_types(make, drawn(layout()))


def test_blocks_compile_whole_and_once_for_a_stream():
    testing.check_compilation(make, [drawn(layout(), seed=seed) for seed in range(5)])


def test_a_reference_beside_every_frame_stands_in_wans_order_and_has_no_tokens():
    model = make(**BESIDE, mask_channels=2)
    latents, sigma, conditions, whole = window(layout())
    seen = []
    model.visual_in.register_forward_hook(lambda m, arguments, o: seen.append(arguments[0]))
    with torch.no_grad():
        model(latents, sigma, conditions, whole)
    planes, mask, clean = seen[0].unflatten(-1, (-1, 4)).split([3, 2, 3], dim=3)
    assert planes.shape[1] == 6  # long, short and four frames of the stream
    assert torch.equal(clean[:, :2], planes[:, :2])
    assert torch.equal(clean[:, 2:], to_patches(latents[:, :1], model.patch).unflatten(-1, (-1, 4)).expand(-1, 4, -1, -1, -1))
    assert mask.amax((0, 2, 3, 4)).tolist() == mask.amin((0, 2, 3, 4)).tolist() == [1, 1, 0, 0, 0, 0]
    assert torch.isfinite(model(latents[:, 1:], sigma[:, 1:], conditions.part(slice(1, None), slice(1, None)), layout(memory=MEMORY[1:]))).all()


def test_it_starts_as_no_velocity():
    assert not fresh()(*window(layout())).any()


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="multiple of 8"):
        fresh(width=20, num_heads=4)
    with pytest.raises(ValueError, match="audio_every must be 0"):
        fresh(audio_every=-1)
    with pytest.raises(ValueError, match="set clean_copies"):
        fresh(reference="channels")
    with pytest.raises(ValueError, match=r"rows of 5 channels .* cannot hold image features of 6"):
        fresh(image_tokens=1, image_width=6)
    with pytest.raises(ValueError, match="2 rows; needed are rows of text and then 2 of a picture"):
        fresh(image_tokens=2, image_width=5)(*window(layout()))
    with pytest.raises(ValueError, match="4x4 cells do not divide into patches of side 3"):
        fresh(patch=3)(*window(layout()))
    latents, sigma, conditions, whole = window(layout())
    with pytest.raises(ValueError, match="audio frames: 1, layout has 7"):
        make()(latents, sigma, ConditionTokens(conditions.text_BSLD, conditions.audio_BFAD[:, :1]), whole)
