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


def patched(folder):
    return wan(folder, patch_size=2, in_channels=12, out_channels=12, is_residual=True)


@pytest.mark.parametrize(("make", "spatial_stride"), [(wan, 4), (patched, 8), (hunyuan, 4)])
def test_models_of_diffusers_keep_the_laws_of_an_autoencoder(make, spatial_stride, tmp_path):
    autoencoder = DiffusersAutoencoder(*make(tmp_path), context=2)
    assert (autoencoder.temporal_stride, autoencoder.spatial_stride, autoencoder.latent_channels) == (4, spatial_stride, 4)
    check_autoencoder(autoencoder, num_latents=5)


@pytest.mark.parametrize("make", [wan, patched])
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


def test_two_streams_side_by_side_do_not_disturb_each_other(tmp_path):
    autoencoder = DiffusersAutoencoder(*wan(tmp_path))
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
