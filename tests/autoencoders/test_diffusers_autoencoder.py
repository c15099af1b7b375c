"""The frozen autoencoders of diffusers, on tiny models with random weights saved to a folder."""

from __future__ import annotations

import sys

import pytest
import torch

from flowact.autoencoders import load_autoencoder, save_autoencoder
from flowact.autoencoders.diffusers import DiffusersAutoencoder
from flowact.errors import UserError
from flowact.testing import check_autoencoder


def wan(folder, **options):
    diffusers = pytest.importorskip("diffusers", reason="pip install 'flowact[hf]'")
    torch.manual_seed(0)
    shape = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "temperal_downsample": [True, True]}
    statistics = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 1.0, 2.0, 1.5]}
    diffusers.AutoencoderKLWan(**(shape | statistics | options)).save_pretrained(folder)
    return "AutoencoderKLWan", str(folder)


def hunyuan(folder):
    diffusers = pytest.importorskip("diffusers", reason="pip install 'flowact[hf]'")
    torch.manual_seed(0)
    blocks = 3
    diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * blocks,
        up_block_types=("HunyuanVideoUpBlock3D",) * blocks,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.5,
        spatial_compression_ratio=4,
    ).save_pretrained(folder)
    return "AutoencoderKLHunyuanVideo", str(folder)


def wan22(folder):
    """The form of Wan 2.2's 5B model: pixels in patches of two, residual blocks, 48 channels, 4 x 16 x 16, a wider decoder."""
    statistics = {"latents_mean": torch.linspace(-1, 1, 48).tolist(), "latents_std": torch.linspace(0.5, 2, 48).tolist()}
    shape = {"z_dim": 48, "dim_mult": [1, 2, 2, 2], "temperal_downsample": [False, True, True], "decoder_base_dim": 12}
    return wan(folder, patch_size=2, in_channels=12, out_channels=12, is_residual=True, **shape, **statistics)


def hunyuan15(folder):
    diffusers = pytest.importorskip("diffusers", reason="pip install 'flowact[hf]'")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 16, 16, 32), layers_per_block=1, spatial_compression_ratio=8, scaling_factor=1.25
    )
    for layer in (model.encoder.mid_block.attentions[0], model.decoder.mid_block.attentions[0]):
        layer.to_v.weight.data *= 20  # at random weights attention hardly speaks, and a wrong cache of it would not be seen
        layer.proj_out.weight.data *= 20
    model.save_pretrained(folder)
    return "AutoencoderKLHunyuanVideo15", str(folder)


@pytest.mark.parametrize(("make", "spatial_stride", "channels"), [(wan, 4, 4), (wan22, 16, 48), (hunyuan, 4, 4), (hunyuan15, 8, 4)])
def test_models_of_diffusers_keep_the_laws_of_an_autoencoder(make, spatial_stride, channels, tmp_path):
    autoencoder = DiffusersAutoencoder(*make(tmp_path), context=2)
    assert (autoencoder.temporal_stride, autoencoder.spatial_stride, autoencoder.latent_channels) == (4, spatial_stride, channels)
    check_autoencoder(autoencoder, num_latents=5)


@pytest.mark.parametrize("make", [wan, wan22])
@torch.no_grad()
def test_wan_gives_what_diffusers_gives(make, tmp_path):
    autoencoder = DiffusersAutoencoder(*make(tmp_path))
    frames = 2 * torch.rand(2, 3, 13, 16, 16) - 1
    latents = autoencoder.encode(frames)
    raw = autoencoder.model.encode(frames).latent_dist.mode()
    config = autoencoder.model.config
    mean, std = (torch.tensor(values)[:, None, None, None] for values in (config.latents_mean, config.latents_std))
    torch.testing.assert_close(latents, ((raw - mean) / std).transpose(1, 2))
    torch.testing.assert_close(autoencoder.decode(latents), autoencoder.model.decode(raw).sample)


@torch.no_grad()
def test_hunyuan_scales_as_diffusers_does_and_a_short_clip_is_the_same(tmp_path):
    autoencoder = DiffusersAutoencoder(*hunyuan(tmp_path))
    picture = 2 * torch.rand(2, 3, 1, 8, 8) - 1
    raw = autoencoder.model.encode(picture).latent_dist.mode()
    torch.testing.assert_close(autoencoder.encode(picture), 0.5 * raw.transpose(1, 2))
    torch.testing.assert_close(autoencoder.decode(0.5 * raw.transpose(1, 2)), autoencoder.model.decode(raw).sample.clamp(-1, 1))


@torch.no_grad()
def test_hunyuan15_gives_what_diffusers_gives(tmp_path):
    autoencoder = DiffusersAutoencoder(*hunyuan15(tmp_path))
    assert autoencoder.context == 30
    frames = 2 * torch.rand(1, 3, 17, 16, 24) - 1  # one clip: diffusers' mask of its attention fits no other batch
    raw = autoencoder.model.encode(frames).latent_dist.mode()
    latents = autoencoder.encode(frames)
    torch.testing.assert_close(latents, 1.25 * raw.transpose(1, 2), atol=1e-5, rtol=1e-4)
    decoded = autoencoder.model.decode(latents.transpose(1, 2) / 1.25).sample.clamp(-1, 1)
    torch.testing.assert_close(autoencoder.decode(latents), decoded, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_attention_of_hunyuan15_forgets_what_is_older_than_its_context_and_its_state_does_not_grow(tmp_path):
    make = hunyuan15(tmp_path)
    short, long = DiffusersAutoencoder(*make, context=1), DiffusersAutoencoder(*make)
    latents = 2 * torch.randn(1, 5, 4, 2, 2)
    torch.testing.assert_close(short.decode(latents[:, :2]), long.decode(latents[:, :2]))
    assert not torch.allclose(short.decode(latents), long.decode(latents), atol=1e-3)
    states = [short.decode_stream(latents[:, :length])[1] for length in (2, 5)]
    sizes = [[tuple(t.shape) for kept in state.features for t in (kept if isinstance(kept, tuple) else (kept,))] for state in states]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("make", [wan, hunyuan15])
def test_two_streams_side_by_side_do_not_disturb_each_other(make, tmp_path):
    autoencoder = DiffusersAutoencoder(*make(tmp_path))
    first, second = torch.randn(2, 1, 3, 4, 4, 4).unbind(0)
    states, pieces = [None, None], [[], []]
    for frame in range(3):
        for which, latents in enumerate((first, second)):
            piece, states[which] = autoencoder.decode_stream(latents[:, frame : frame + 1], states[which])
            pieces[which].append(piece)
    for latents, parts in zip((first, second), pieces, strict=True):
        torch.testing.assert_close(torch.cat(parts, dim=2), autoencoder.decode(latents))


def test_it_is_frozen_and_stays_in_evaluation_mode(tmp_path):
    autoencoder = DiffusersAutoencoder(*wan(tmp_path)).train()
    assert not any(parameter.requires_grad for parameter in autoencoder.parameters())
    assert not any(module.training for module in autoencoder.modules())


def test_save_then_load(tmp_path):
    autoencoder = DiffusersAutoencoder(*wan(tmp_path / "model"))
    save_autoencoder(autoencoder, autoencoder.spec, tmp_path / "saved")
    again = load_autoencoder(tmp_path / "saved")
    latents = torch.randn(1, 2, 4, 4, 4)
    assert torch.equal(again.decode(latents), autoencoder.decode(latents))


def test_errors_name_what_is_wrong(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="AutoencoderKLWan"):
        DiffusersAutoencoder("AutoencoderKLWam", str(tmp_path))
    with pytest.raises(UserError, match=r"config\.json"):
        DiffusersAutoencoder("AutoencoderKLWan", str(tmp_path))
    with pytest.raises(UserError, match="context is 0"):
        DiffusersAutoencoder("AutoencoderKLWan", str(tmp_path), context=0)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKLMochi"}')
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "diffusers", None)
        with pytest.raises(UserError, match=r"flowact\[hf\]"):
            DiffusersAutoencoder("AutoencoderKLWan", str(tmp_path))
    pytest.importorskip("diffusers", reason="pip install 'flowact[hf]'")
    with pytest.raises(UserError, match="class AutoencoderKLMochi, class_name is AutoencoderKLWan"):
        DiffusersAutoencoder("AutoencoderKLWan", str(tmp_path))
    with pytest.raises(ValueError, match="10x8"):
        DiffusersAutoencoder(*wan(tmp_path / "model")).encode(torch.zeros(1, 3, 5, 10, 8))
