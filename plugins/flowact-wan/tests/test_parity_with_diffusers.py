"""With converted weights WanDenoiser computes what diffusers' WanTransformer3DModel computes."""

from __future__ import annotations

import pytest
import torch
from flowact_wan import WanDenoiser, WanDiffusers
from windows import nudged

from flowact.models.translation import import_state
from flowact.types import FULL_VISIBILITY, ConditionTokens, Segment, Visibility, WindowLayout

diffusers = pytest.importorskip("diffusers")

TEXT, AUDIO = 10, 6
#: latent channels, width, heads, blocks and MLP of the models that are published
PUBLISHED = {"1.3B": (16, 1536, 12, 30, 8960), "14B": (16, 5120, 40, 40, 13824), "5B": (48, 3072, 24, 30, 14336)}


def wan(channels=4, input_channels=None, width=24, heads=2, blocks=3, hidden=40, patch=2, text=TEXT, **options):
    sizes = {"patch_size": (1, patch, patch), "num_attention_heads": heads, "attention_head_dim": width // heads, "text_dim": text} | options
    return diffusers.WanTransformer3DModel(in_channels=input_channels or channels, out_channels=channels, ffn_dim=hidden, num_layers=blocks, **sizes)


def converted(base, **options):
    """The base model away from the zeros that it starts with, and a denoiser with its weights."""
    theirs, form = nudged(base.eval()), WanDiffusers()
    config = form.complete(base.config)
    torch.manual_seed(0)
    model = WanDenoiser(**form.arguments(config), audio_width=AUDIO, **options)
    known, added = form.divide(model.state_dict())
    report = model.load_state_dict(import_state(form.rules(config), theirs.state_dict(), known), strict=False)
    assert report.missing_keys == list(added)
    return base, model.eval()


def compute(base, latents, timestep, text):
    with torch.no_grad():
        return base(latents.transpose(1, 2), timestep, text).sample.transpose(1, 2)


def velocity(model, latents, sigma, text, segments):
    """Every segment has the text, and every frame is heard something."""
    audio = torch.randn(*latents.shape[:2], 4, AUDIO)
    conditions = ConditionTokens(text[:, None].expand(-1, len(segments), -1, -1), audio)
    with torch.no_grad():
        return model(latents, sigma, conditions, WindowLayout(tuple(segments), FULL_VISIBILITY))


@pytest.mark.parametrize(
    ("sizes", "size"),
    [({}, (6, 10)), ({"patch": 1}, (5, 3)), ({"patch": 3, "width": 36, "heads": 3, "channels": 5}, (3, 9)), ({"width": 64}, (2, 2))],
)
def test_one_level_for_all_frames(sizes, size):
    base, model = converted(wan(**sizes))
    latents = torch.randn(2, 3, base.config.out_channels, *size)
    text = torch.randn(2, 7, TEXT)
    text[0, 4:] = 0  # padding is looked at
    sigma = torch.tensor([0.3, 0.9])
    expected = compute(base, latents, 1000 * sigma, text)
    for segments in ([Segment("stream", 3, 0)], [Segment("stream", 1, -5), Segment("stream", 2, -4)]):
        found = velocity(model, latents, sigma[:, None].expand(2, 3), text, segments)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.1
    other = compute(base, latents, 1000 * sigma, text[:, :4])
    assert not torch.allclose(other[0], expected[0], atol=1e-3)


def test_a_level_per_frame_as_the_5b_model_has_it():
    """48 channels, and a clean first frame beside noisy ones: diffusers takes a timestep per token (`expand_timesteps`)."""
    base, model = converted(wan(channels=48))
    latents, text, sigma = torch.randn(2, 4, 48, 4, 6), torch.randn(2, 7, TEXT), torch.rand(2, 4)
    sigma[:, 0] = 0
    expected = compute(base, latents, 1000 * sigma.repeat_interleave(2 * 3, 1), text)
    found = velocity(model, latents, sigma, text, [Segment("reference", 1, -1), Segment("stream", 3, 0)])
    torch.testing.assert_close(found, expected[:, 1:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reference", ["segment", "channels"])
def test_image_to_video_takes_mask_and_clean_frames_beside_the_noisy_ones(reference):
    """As Wan's image-to-video pipeline lays them: latents, four mask channels, clean latents."""
    base, model = converted(wan(channels=3, input_channels=10), reference=reference)
    latents, text = torch.randn(2, 4, 3, 4, 6), torch.randn(2, 7, TEXT)
    sigma = torch.tensor([0.0, 0.0, 0.6, 0.6]).expand(2, 4)
    position = 0 if reference == "segment" else -9  # then its place does not count
    found = velocity(model, latents, sigma, text, [Segment("reference", 1, position), Segment("short", 1, 1), Segment("stream", 2, 2)])
    tokens = range(4) if reference == "segment" else range(1, 4)
    fill = latents[:, :1] if reference == "channels" else torch.zeros_like(latents[:, :1])
    clean = torch.cat([latents[:, :2], fill.expand(-1, 2, -1, -1, -1)], dim=1)
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0])[None, :, None, None, None].expand(2, 4, 4, 4, 6)
    planes = torch.cat([latents, mask, clean], dim=2)[:, tokens]
    expected = compute(base, planes, 1000 * sigma[:, tokens].repeat_interleave(2 * 3, 1), text)
    torch.testing.assert_close(found, expected[:, -2:], atol=1e-4, rtol=1e-4)


def test_wan_2_1_looks_at_a_picture_behind_the_text():
    """diffusers is handed the picture's features apart and counts 512 rows of text."""
    base, model = converted(wan(channels=3, input_channels=10, image_dim=8, added_kv_proj_dim=24))
    latents, sigma = torch.randn(2, 2, 3, 4, 6), torch.full((2, 2), 0.4)
    text, picture = torch.randn(2, 512, TEXT), torch.randn(2, 257, 8)
    rows = torch.cat([text, torch.nn.functional.pad(picture, (0, TEXT - 8))], dim=1)
    found = velocity(model, latents, sigma, rows, [Segment("stream", 2, 0)])
    planes = torch.cat([latents, torch.zeros(2, 2, 7, 4, 6)], dim=2)
    with torch.no_grad():
        expected = base(planes.transpose(1, 2), 1000 * sigma[:, 0], text, picture).sample.transpose(1, 2)
        without = base(planes.transpose(1, 2), 1000 * sigma[:, 0], text, 0 * picture).sample.transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, without, atol=1e-3)


def test_fake_causal_visibility_is_something_else():
    model = converted(wan())[1]
    latents, text, sigma = torch.randn(1, 4, 4, 4, 6), torch.randn(1, 7, TEXT), torch.tensor([[0.0, 0.5, 0.5, 0.5]])
    segments = (Segment("reference", 1, -1), Segment("stream", 3, 0))
    conditions = ConditionTokens(text[:, None].expand(-1, 2, -1, -1), torch.zeros(1, 4, 4, AUDIO))
    full, causal = (model(latents, sigma, conditions, WindowLayout(segments, v)) for v in (FULL_VISIBILITY, Visibility()))
    assert not torch.allclose(full, causal, atol=1e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_exactly_the_published_parameters(name):
    channels, width, heads, blocks, hidden = PUBLISHED[name]
    with torch.device("meta"):
        base = wan(channels, None, width, heads, blocks, hidden, text=4096)
        model = WanDenoiser(channels, 4096, 768, width, heads, blocks, hidden, audio_every=0)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in base.parameters())


def test_its_scheduler_takes_the_output_for_our_velocity():
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    scheduler.set_timesteps(10)
    scheduler._step_index = 4
    sigma, clean, noise = scheduler.sigmas[4], torch.randn(5), torch.randn(5)
    assert scheduler.timesteps[4] == int(1000 * sigma)
    torch.testing.assert_close(scheduler.convert_model_output(noise - clean, sample=(1 - sigma) * clean + sigma * noise), clean)
