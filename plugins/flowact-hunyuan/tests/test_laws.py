"""What FlowAct adds to the base models: memory that never sees the stream, kept memory, padding per segment, sound, guidance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as nnf
from flowact_hunyuan import HunyuanVideo15Denoiser, HunyuanVideoDenoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import BARE, drawn, fresh, layout, make, window

from flowact import testing
from flowact.models.embeddings import from_patches, to_patches
from flowact.models.windowed import Window
from flowact.testing import MEMORY
from flowact.types import Visibility

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
NAMES = sorted(BARE)
names = st.sampled_from(NAMES)
CONCAT = {"image_condition": "latent_concat"}
references = {"video": [{}, CONCAT, CONCAT | {"reference": "channels"}], "video15": [{}, {"reference": "channels"}]}
models = st.one_of(*(st.tuples(st.just(name), st.sampled_from(choices)) for name, choices in references.items()))
chunks = st.lists(st.integers(1, 3), min_size=1, max_size=3)
visibilities = st.builds(Visibility, stream=st.sampled_from(["bidirectional", "block_causal"]), memory=st.sampled_from(["full", "isolated"]))


@settings(max_examples=20, deadline=None)
@given(names, chunks, visibilities, st.integers(1, 3), st.integers(1, 3), st.integers(0, 2))
def test_memory_never_sees_the_stream_at_any_depth(name, chunks, visibility, num_memory, num_double, num_single):
    depth = {"num_single_blocks": num_single} if name == "video" else {}
    model = make(name, num_double_blocks=num_double, guidance_embedding=True, **depth)
    testing.check_memory_never_sees_the_stream(model, drawn(layout(tuple(chunks), MEMORY[-num_memory:], visibility)))


@settings(max_examples=20, deadline=None)
@given(models, chunks, visibilities, st.integers(1, 3))
def test_kept_memory_changes_nothing_but_the_time(model, chunks, visibility, num_memory):
    name, options = model
    testing.check_kept_memory(make(name, **options), drawn(layout(tuple(chunks), MEMORY[-num_memory:], visibility)))


@pytest.mark.parametrize("name", NAMES)
def test_prefixes_positions_and_samples(name):
    testing.check_prefixes(make(name), drawn(layout((2, 1, 3), visibility=Visibility(stream="block_causal"))))
    testing.check_positions(make(name), drawn(layout()))
    testing.check_batch(make(name), drawn(layout(), batch=4))


@pytest.mark.parametrize("name", NAMES)
def test_a_level_per_frame_reaches_that_frame_alone(name):
    model = make(name)
    latents, sigma, conditions, whole = window(layout())
    other = sigma.clone()
    other[:, 4] = 0.5
    vectors = [model.frame_vector(Window(latents, levels, conditions, whole)) for levels in (sigma, other)]
    changed = (vectors[0] - vectors[1]).abs().amax((0, 2)) > 1e-4
    assert changed.tolist() == [frame == 4 for frame in range(7)]


# --- text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("more", "attention"), [(0, "rectangles"), (1, "rectangles"), (3, "rectangles"), (1, "flex")])
def test_padding_is_seen_by_nobody(name, more, attention):
    """More rows of zeros change nothing, in the whole window as in front of kept memory."""
    latents, sigma, conditions, whole = window(layout())
    model, text = make(name, attention=attention), conditions.text_BSLD
    # padding stands before the rows whose place has a meaning: CLIP's pooled vector, or glyphs
    own = 1 if name == "video" else model.glyph_tokens
    longer = torch.cat([text[:, :, :-own], text.new_zeros(2, text.shape[1], more, text.shape[3]), text[:, :, -own:]], dim=2)
    padded = replace(conditions, text_BSLD=longer)
    with torch.no_grad():
        velocity = make(name)(latents, sigma, conditions, whole)
        torch.testing.assert_close(model(latents, sigma, padded, whole), velocity, atol=1e-5, rtol=1e-4)
        kept = model.encode_memory(latents[:, :3], padded.part(slice(3), slice(3)), whole.memory)
        kept = kept.to(torch.float64).to(torch.float32)
        stream = padded.part(slice(3, None), slice(3, None))
        torch.testing.assert_close(model(latents[:, 3:], sigma[:, 3:], stream, whole, kept), velocity, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_segment_reads_its_own_caption_and_the_order_of_its_tokens_is_free(name):
    model = make(name)
    latents, sigma, conditions, whole = window(layout(visibility=Visibility(stream="block_causal", memory="isolated")), batch=1)
    text = conditions.text_BSLD.clone()
    text[:, -1] = 1.0  # the last segment's, which nobody else may see
    shuffled = conditions.text_BSLD[:, :, [1, 0, 2, 3, 4]]
    with torch.no_grad():
        velocity = model(latents, sigma, conditions, whole)
        other = model(latents, sigma, replace(conditions, text_BSLD=text), whole)
        torch.testing.assert_close(model(latents, sigma, replace(conditions, text_BSLD=shuffled), whole), velocity, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other[:, :2], velocity[:, :2], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(other[:, 2:], velocity[:, 2:], atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_no_tokens_and_nothing_becomes_infinite(name):
    """Classifier-free guidance zeroes text: then the pictures see each other alone, whatever the caption's rows."""
    model = fresh(name)
    latents, sigma, conditions, whole = window(layout())
    nothing = conditions.drop(text_B=torch.tensor([True, True]))
    fewer = replace(nothing, text_BSLD=nothing.text_BSLD[:, :, :3])
    velocity = model(latents, sigma, nothing, whole)
    velocity.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(model(latents, sigma, fewer, whole), velocity, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model(latents, sigma, conditions, whole), velocity, atol=1e-3)


def test_glyphs_and_pictures_are_read_at_their_own_width():
    model = make("video15", image_tokens=1)
    latents, sigma, conditions, whole = window(layout())
    text = conditions.text_BSLD + 1.0
    narrow = text.clone()
    narrow[:, :, 2:4, model.glyph_width :] = 0
    narrow[:, :, 4:, model.image_width :] = 0
    with torch.no_grad():
        velocity, same = (model(latents, sigma, replace(conditions, text_BSLD=rows), whole) for rows in (text, narrow))
        without = model(latents, sigma, replace(conditions, text_BSLD=text * torch.tensor([1.0, 1, 1, 1, 0])[:, None]), whole)
    torch.testing.assert_close(same, velocity)
    assert not torch.allclose(without, velocity, atol=1e-3)


# --- sound and guidance


@pytest.mark.parametrize("name", NAMES)
def test_sound_starts_without_effect_and_can_be_learnt(name):
    inputs = latents, sigma, conditions, whole = window(layout())
    deaf, hearing = fresh(name, audio_every=0), fresh(name)
    with torch.no_grad():
        for block in hearing.blocks:
            torch.nn.init.zeros_(block.audio.out.weight)  # as a fresh model has them
            torch.nn.init.zeros_(block.audio.out.bias)
    hearing.load_state_dict(deaf.state_dict(), strict=False)
    velocity = hearing(*inputs)
    torch.testing.assert_close(velocity, deaf(*inputs))
    velocity.square().sum().backward()
    assert all(block.audio.out.weight.grad.any() for block in hearing.blocks)
    with torch.no_grad():
        for block in hearing.blocks:
            block.audio.out.weight.sub_(0.1 * block.audio.out.weight.grad.sign())
    louder = replace(conditions, audio_BFAD=2 * conditions.audio_BFAD)
    turned = replace(conditions, audio_BFAD=conditions.audio_BFAD.flip(2))
    heard = hearing(latents, sigma, louder, whole)
    for other in (hearing(*inputs), hearing(latents, sigma, turned, whole)):
        assert not torch.allclose(heard, other, atol=1e-3)
    assert not torch.allclose(hearing(latents, sigma, turned, whole), hearing(*inputs), atol=1e-4)  # the order within a frame is heard
    heard.square().sum().backward()
    assert all(parameter.grad.any() for parameter in hearing.audio_in.parameters())


@pytest.mark.parametrize(("every", "hear"), [(0, [0, 0, 0, 0, 0]), (1, [1, 1, 1, 1, 1]), (2, [1, 0, 1, 0, 1]), (3, [1, 0, 0, 1, 0])])
def test_one_in_so_many_blocks_hears(every, hear):
    model = BARE["video"](num_double_blocks=2, num_single_blocks=3, audio_every=every)
    assert [block.audio is not None for block in model.blocks] == hear
    guided = BARE["video15"](audio_every=every, guidance_embedding=True)
    assert list(guided.guidance_in) == (["text", "audio"] if every else ["text"])


@pytest.mark.parametrize("name", NAMES)
def test_guidance_scales_are_read_one_by_one(name):
    model = fresh(name, guidance_embedding=True)
    latents, sigma, conditions, whole = window(layout())

    def asked(*scales):
        return model(latents, sigma, replace(conditions, guidance_BG=torch.tensor([scales] * 2)), whole)

    with torch.no_grad():
        assert not torch.allclose(asked(2.0, 1.0), asked(1.0, 2.0), atol=1e-3)
        assert not torch.allclose(asked(2.0, 1.0), asked(2.0, 3.0), atol=1e-3)
        unasked = model(latents, sigma, conditions, whole)
        torch.nn.init.zeros_(model.guidance_in["audio"][-1].weight)
        torch.nn.init.zeros_(model.guidance_in["audio"][-1].bias)
        if name == "video":  # distilled weights cannot do without a scale
            assert torch.equal(asked(6.0, 1.0), unasked)
        else:
            torch.nn.init.zeros_(model.guidance_in["text"][-1].weight)
            torch.nn.init.zeros_(model.guidance_in["text"][-1].bias)
            assert torch.equal(asked(6.0, 1.0), unasked)


# --- as a component


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("video", {}), ("video", CONCAT), ("video", CONCAT | {"reference": "channels"}), ("video", {"guidance_embedding": False}),
        ("video", {"audio_every": 0, "patch": 1}), ("video15", {}), ("video15", {"reference": "channels"}),
        ("video15", {"use_meanflow": True, "guidance_embedding": True}), ("video15", {"image_tokens": 1, "glyph_tokens": 0, "patch": 2}),
    ],
)  # fmt: skip
def test_every_variant_keeps_the_laws_of_a_denoiser(name, options):
    testing.check_denoiser(make(name, **options))


@pytest.mark.parametrize("cls", [HunyuanVideoDenoiser, HunyuanVideo15Denoiser])
def test_constructors_are_documented(cls):
    testing.check_constructor(cls)


@pytest.mark.parametrize("name", NAMES)
def test_it_starts_as_no_velocity(name):
    assert not BARE[name]()(*window(layout())).any()


@pytest.mark.parametrize(("name", "options"), [("video", CONCAT | {"reference": "channels"}), ("video15", {"image_tokens": 1, "use_meanflow": True})])
def test_every_parameter_gets_a_gradient(name, options):
    model = fresh(name, guidance_embedding=True, **options)
    latents, sigma, conditions, whole = window(layout())
    tokens = replace(conditions, text_BSLD=conditions.text_BSLD + 0.1, guidance_BG=torch.tensor([[2.0, 1.0], [4.0, 3.0]]))
    model(latents, sigma, tokens, whole).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # nothing comes after the last double block of 1.5 that would look at its text
    last = [f"double_blocks.1.towers.text.{layer}.{kind}" for layer in ("out", "mlp_in", "mlp_out") for kind in ("weight", "bias")]
    assert without == (last if name == "video15" else [])


def test_weights_for_pictures_wait_untrained_where_there_are_none():
    assert [name for name, p in make("video15").named_parameters() if not p.requires_grad] == [
        f"image_in.{layer}.{kind}" for layer in (0, 1, 3, 4) for kind in ("weight", "bias")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_activation_checkpointing_changes_nothing_but_what_is_kept(name):
    testing.check_checkpointing(lambda choice: fresh(name, checkpointing=choice), drawn(layout()))


@pytest.mark.parametrize("name", NAMES)
def test_it_computes_in_bfloat16(name):
    testing.check_number_types(lambda: fresh(name), drawn(layout()))


@pytest.mark.parametrize("name", NAMES)
def test_blocks_compile_whole_and_once_for_a_stream(name):
    testing.check_compilation(lambda: fresh(name), [drawn(layout(), seed=seed) for seed in range(4)])


def test_patches_are_those_of_a_convolution():
    model = make("video")
    latents = torch.randn(2, 3, 3, 4, 6)
    kernel = model.visual_in.weight.view(32, 3, 1, 2, 2)
    expected = nnf.conv3d(latents.transpose(1, 2), kernel, model.visual_in.bias, stride=(1, 2, 2)).flatten(3).permute(0, 2, 3, 1)
    torch.testing.assert_close(model.visual_in(to_patches(latents, model.patch)), expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(from_patches(to_patches(latents, model.patch), latents.shape[-2:], model.patch), latents)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"width 32 with 2 heads and rotary channels \(16, 56, 56\).*sum up to a head's width"):
        BARE["video"](rope_axes=(16, 56, 56))
    with pytest.raises(ValueError, match="needs an input with channels for clean copies"):
        BARE["video"](reference="channels")
    with pytest.raises(ValueError, match="audio_every is -1"):
        BARE["video"](audio_every=-1)
    with pytest.raises(ValueError, match="pooled vector of 13 channels"):
        BARE["video"](pooled_width=13)
    with pytest.raises(ValueError, match=r"13 \(glyphs\)"):
        BARE["video15"](glyph_width=13)
    with pytest.raises(ValueError, match="has 5 rows, of which 4 are for glyphs and 1 for an image"):
        make("video15", glyph_tokens=4, image_tokens=1)(*window(layout()))
    latents, *others = window(layout())
    with pytest.raises(ValueError, match="4x5 cells"):
        make("video")(latents[..., :5], *others)
