"""With converted weights our denoisers compute what diffusers' classes compute."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as nnf
from flowact_hunyuan import HunyuanVideo15Denoiser, HunyuanVideo15Diffusers, HunyuanVideoDenoiser, HunyuanVideoDiffusers
from tiny import AUDIO, randomised

from flowact.models.translation import import_state
from flowact.types import FULL_VISIBILITY, ConditionTokens, Segment, WindowLayout

diffusers = pytest.importorskip("diffusers")

SIZES = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "num_refiner_layers": 2, "mlp_ratio": 2.5, "rope_axes_dim": [4, 6, 6],
         "out_channels": 3, "text_embed_dim": 12}  # fmt: skip
VIDEO = {**SIZES, "in_channels": 3, "num_single_layers": 2, "pooled_projection_dim": 5}
VIDEO15 = {**SIZES, "in_channels": 7, "text_embed_2_dim": 9, "image_embed_dim": 7}
BATCH, FRAMES, TOKENS = 2, 5, 4
CLIP = WindowLayout((Segment("stream", FRAMES, 0),), FULL_VISIBILITY)
LEVELS = torch.tensor([0.7, 0.2])
#: odd lengths of captions; the padding of the second sample is longer
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])


def pair(kind, config, **options):
    """diffusers' model with random weights, and ours with these weights."""
    video = kind == "video"
    form = (HunyuanVideoDiffusers if video else HunyuanVideo15Diffusers)()
    theirs = randomised(getattr(diffusers, form.class_name)(**config))
    full = form.complete(config)
    ours = (HunyuanVideoDenoiser if video else HunyuanVideo15Denoiser)(AUDIO, **form.arguments(full), **options)
    known, added = form.divide(ours.state_dict())
    ours.load_state_dict({**import_state(form.rules(full), theirs.state_dict(), known), **added})
    return theirs, ours.eval()


def contents(seed=0, **sizes):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


def sound():
    """Fresh ears hear nothing."""
    return contents(audio=(BATCH, FRAMES, 4, AUDIO))["audio"]


def pooled_row(pooled_BD, width):
    return nnf.pad(pooled_BD, (0, width - pooled_BD.shape[-1]))[:, None]


def video_inputs(channels=3):
    made = contents(latents=(BATCH, FRAMES, channels, 6, 10), text=(BATCH, TOKENS, 12), pooled=(BATCH, 5))
    rows = torch.cat([made["text"] * MASK[..., None], pooled_row(made["pooled"], 12)], dim=1)
    return made["latents"], made["text"], made["pooled"], rows


def their_video(model, latents, timestep, text, pooled, guidance=6.0):
    with torch.no_grad():
        out = model(latents.transpose(1, 2), timestep, text, MASK, pooled, guidance=torch.full((BATCH,), 1000.0 * guidance)).sample
    return out.transpose(1, 2)


@pytest.mark.parametrize("options", [{}, {"audio_every": 0}, {"attention": "flex"}])
@pytest.mark.parametrize("guidance_embeds", [True, False])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_hunyuan_video(guidance_embeds, options):
    theirs, ours = pair("video", {**VIDEO, "guidance_embeds": guidance_embeds}, **options)
    latents, text, pooled, rows = video_inputs()
    asked = torch.tensor([[4.5, 1.0]] * BATCH)
    for guidance, scales in ((6.0, None), (4.5, asked)):
        expected = their_video(theirs, latents, 1000 * LEVELS, text, pooled, guidance)
        with torch.no_grad():
            found = ours(latents, LEVELS[:, None].expand(-1, FRAMES), ConditionTokens(rows[:, None], sound(), scales), CLIP)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("guidance_embeds", [True, False])
def test_a_first_frame_that_is_given_as_tokens(guidance_embeds):
    """diffusers' `token_replace` is a clip whose first frame has level 0."""
    theirs, ours = pair("video", {**VIDEO, "image_condition_type": "token_replace", "guidance_embeds": guidance_embeds})
    latents, text, pooled, rows = video_inputs()
    sigma = LEVELS[:, None].repeat(1, FRAMES)
    sigma[:, 0] = 0
    with torch.no_grad():
        found = ours(latents, sigma, ConditionTokens(rows[:, None], sound()), CLIP)
    torch.testing.assert_close(found[:, 1:], their_video(theirs, latents, 1000 * LEVELS, text, pooled)[:, 1:], atol=1e-4, rtol=1e-4)


def laid_beside(latents, copies, mask):
    return torch.cat([latents, copies, mask[None, :, None, None, None].expand(BATCH, -1, 1, *latents.shape[3:])], dim=2)


@pytest.mark.parametrize("kind", ["video", "video15"])
def test_a_reference_in_further_channels(kind):
    """A memory frame carries its own copy and mask 1 ("segment"), or the reference lies beside every stream frame with mask 0 ("channels")."""
    config = {**VIDEO, "in_channels": 7, "image_condition_type": "latent_concat", "guidance_embeds": False} if kind == "video" else VIDEO15
    latents, text, pooled, rows = video_inputs()
    layout = WindowLayout((Segment("reference", 1, 0), Segment("stream", FRAMES - 1, 1)), FULL_VISIBILITY)
    nothing = torch.zeros_like(rows)
    if kind == "video":
        nothing[:, -1] = rows[:, -1]
    first = torch.arange(FRAMES) == 0

    def theirs_of(model, latents, timestep):
        if kind == "video":
            return their_video(model, latents, timestep, text, pooled)
        return their_video15(model, latents, timestep, text, torch.zeros(BATCH, 1, 9), torch.zeros(BATCH, 1), torch.zeros(BATCH, 2, 7))

    options = {} if kind == "video" else {"glyph_tokens": 1}  # the last row, here of zeros
    if kind == "video15":
        rows = torch.cat([rows[:, :-1], torch.zeros_like(rows[:, :1])], dim=1)
    theirs, ours = pair(kind, config, **options)
    copies = torch.where(first[None, :, None, None, None], latents, 0.0)
    expected = theirs_of(theirs, laid_beside(latents, copies, first.float()), torch.zeros(BATCH))
    # all text stands with the reference, where their clip begins; at level 0 it makes no difference that ours is a segment of its own
    with torch.no_grad():
        found = ours(latents, torch.zeros(BATCH, FRAMES), ConditionTokens(torch.stack([rows, nothing], dim=1), sound()), layout)
    torch.testing.assert_close(found, expected[:, 1:], atol=1e-4, rtol=1e-4)

    beside = type(ours)(AUDIO, reference="channels", **arguments_of(kind, config), **options).eval()
    beside.load_state_dict(ours.state_dict())
    copies = latents[:, :1].expand(-1, FRAMES - 1, -1, -1, -1)
    expected = theirs_of(theirs, laid_beside(latents[:, 1:], copies, torch.zeros(FRAMES - 1)), 1000 * LEVELS)
    sigma = torch.cat([torch.zeros(BATCH, 1), LEVELS[:, None].expand(-1, FRAMES - 1)], dim=1)
    with torch.no_grad():
        found = beside(latents, sigma, ConditionTokens(torch.stack([nothing, rows], dim=1), sound()), layout)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def arguments_of(kind, config):
    form = HunyuanVideoDiffusers() if kind == "video" else HunyuanVideo15Diffusers()
    return form.arguments(form.complete(config))


def their_video15(model, latents, timestep, text, glyphs, glyph_mask, image, meanflow=False):
    with torch.no_grad():
        out = model(
            latents.transpose(1, 2), timestep, text, MASK, timestep_r=timestep if meanflow else None, encoder_hidden_states_2=glyphs,
            encoder_attention_mask_2=glyph_mask, image_embeds=image,
        ).sample  # fmt: skip
    return out.transpose(1, 2)


@pytest.mark.parametrize("meanflow", [False, True])
@pytest.mark.parametrize("image_tokens", [0, 2])
def test_hunyuan_video_15(meanflow, image_tokens):
    theirs, ours = pair("video15", {**VIDEO15, "use_meanflow": meanflow}, glyph_tokens=3, image_tokens=image_tokens)
    made = contents(latents=(BATCH, FRAMES, 3, 5, 7), text=(BATCH, TOKENS, 12), glyphs=(BATCH, 3, 9), image=(BATCH, 2, 7))
    glyph_mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    latents, glyphs, image = made["latents"], made["glyphs"], made["image"] * bool(image_tokens)
    planes = laid_beside(latents, torch.zeros_like(latents), torch.zeros(FRAMES))
    expected = their_video15(theirs, planes, 1000 * LEVELS, made["text"], glyphs, glyph_mask, image, meanflow)
    parts = [made["text"] * MASK[..., None], nnf.pad(glyphs * glyph_mask[..., None], (0, 3)), nnf.pad(image, (0, 5))[:, :image_tokens]]
    with torch.no_grad():
        found = ours(latents, LEVELS[:, None].expand(-1, FRAMES), ConditionTokens(torch.cat(parts, dim=1)[:, None], sound()), CLIP)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
