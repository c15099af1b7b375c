"""The small causal autoencoder: the rule of lengths, causality, streaming, the closed-form start, its folder."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowact.autoencoders import CausalVideoAutoencoder, latent_space, load_autoencoder, save_autoencoder
from flowact.errors import UserError
from flowact.testing import check_autoencoder

ARGUMENTS = {"latent_channels": 6, "width": 8, "num_blocks": 1}


def tiny(**options):
    torch.manual_seed(0)
    model = CausalVideoAutoencoder(**(ARGUMENTS | options))
    with torch.no_grad():  # away from the zeros of its residual branches
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
        model.latent_mean.normal_()
        model.latent_std.uniform_(0.5, 2.0)
    return model.eval()


def smooth_clips(batch=48, num_frames=5, size=32):
    """Clips of a few drifting waves: correlated in space and time as videos are."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    frequency, phase = torch.randn(2, batch, 3, 3, 4, generator=generator).unbind(0)
    time = torch.arange(num_frames)[None, None, :, None, None] / 8
    waves = torch.zeros(batch, 3, num_frames, size, size)
    for k in range(4):
        fx, fy, ft = (0.8 * frequency[:, :, axis, k, None, None, None] for axis in range(3))
        waves += 0.2 * torch.sin(6.28 * (fx * rows + fy * columns + ft * time) + 3 * phase[:, :, 0, k, None, None, None])
    return waves + 0.02 * torch.randn(waves.shape, generator=generator)


def test_it_keeps_the_laws_of_an_autoencoder():
    check_autoencoder(tiny(), num_latents=5)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4))
@torch.no_grad()
def test_streaming_decode_equals_batch_decode_for_any_split(lengths):
    model, latents = tiny(), torch.randn(1, sum(lengths), 6, 2, 2)
    pieces, state = [], None
    for run in latents.split(lengths, dim=1):
        frames, state = model.decode_stream(run, state)
        assert frames.shape[2] == 4 * run.shape[1] - (3 if not pieces else 0)
        pieces.append(frames)
    torch.testing.assert_close(torch.cat(pieces, dim=2), model.decode(latents), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changed", range(1, 4))
@torch.no_grad()
def test_the_future_does_not_reach_the_past(changed):
    model, frames, latents = tiny(), torch.randn(1, 3, 13, 16, 16), torch.randn(1, 4, 6, 1, 1)
    other = frames.clone()
    other[:, :, 4 * changed - 3 :] += 1  # the frames of latent `changed` and all after
    before, after = model.encode(frames), model.encode(other)
    torch.testing.assert_close(before[:, :changed], after[:, :changed])
    assert not torch.allclose(before[:, changed], after[:, changed], atol=1e-3)
    later = latents.clone()
    later[:, changed:] += 1
    before, after = model.decode(latents), model.decode(later)
    torch.testing.assert_close(before[:, :, : 4 * changed - 3], after[:, :, : 4 * changed - 3])
    assert not torch.allclose(before[:, :, 4 * changed - 3 :], after[:, :, 4 * changed - 3 :], atol=1e-3)


@pytest.mark.parametrize(("num_frames", "words"), [(0, "use 1 or 5"), (2, "use 1 or 5"), (8, "use 5 or 9"), (12, "use 9 or 13")])
def test_lengths_that_break_the_rule_are_told_the_next_ones(num_frames, words):
    model = tiny()
    with pytest.raises(ValueError, match=words):
        model.num_latents(num_frames)
    with pytest.raises(ValueError, match=words):
        model.encode(torch.zeros(1, 3, num_frames, 16, 16))


def test_lengths_round_trip():
    model = tiny()
    assert [model.num_frames(n) for n in (1, 2, 5)] == [1, 5, 17]
    assert all(model.num_latents(model.num_frames(n)) == n for n in range(1, 9))


def test_a_picture_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"16x24.*stride 16"):
        tiny().encode(torch.zeros(1, 3, 1, 16, 24))


@torch.no_grad()
def test_a_still_picture_is_one_image_latent_and_motion_latents_that_stand_still():
    model, image = tiny(), torch.randn(2, 3, 16, 32)
    still = model.encode_still(image, 3)
    assert still.shape == (2, 4, 6, 1, 2)
    torch.testing.assert_close(still[:, :1], model.encode_still(image))
    torch.testing.assert_close(still[:, 2], still[:, 3])


class Fine(CausalVideoAutoencoder):
    """Patches of 8 x 8 pixels have 768 components, which are found in a moment."""

    spatial_stride, patch = 8, 2


@torch.no_grad()
def test_principal_components_are_centred_of_unit_variance_and_more_of_them_keep_more():
    clips, channels = smooth_clips(batch=120), (1, 4, 16)
    model = Fine(latent_channels=channels[-1], width=8).eval()
    kept = model.start_from_principal_components(clips)
    latents = model.encode(clips)
    moving = latents[:, 1:].transpose(0, 2).flatten(1)
    torch.testing.assert_close(moving.mean(1), torch.zeros(channels[-1]), atol=1e-2, rtol=0)
    torch.testing.assert_close(moving @ moving.T / moving.shape[1], torch.eye(channels[-1]), atol=2e-2, rtol=0)

    def error(count):
        first = latents * (torch.arange(channels[-1]) < count)[:, None, None]
        return float((model.decode(first) - clips)[:, :, 1:].square().mean())

    errors = [error(count) for count in channels]
    assert errors[0] > errors[1] > errors[2]
    grouped = clips[:, :, 1:].flatten(1, 2)
    patches = torch.nn.functional.pixel_unshuffle(grouped, 8).permute(0, 2, 3, 1).flatten(0, 2)
    variance = float((patches - patches.mean(0)).square().mean())
    assert errors[2] / variance == pytest.approx(1 - kept, abs=1e-3)
    assert 0.5 < kept < 1


def test_too_few_patches_for_components_are_refused():
    with pytest.raises(UserError, match=r"4 patches .* too few for \d+ principal components; .*principal_clips=0"):
        CausalVideoAutoencoder(**ARGUMENTS).start_from_principal_components(torch.zeros(1, 3, 5, 32, 32))


@torch.no_grad()
def test_statistics_that_were_followed_normalise_the_latents():
    model, clips = tiny(), smooth_clips(batch=8)
    mean, _ = model.posterior(clips)
    model.follow_statistics(mean, momentum=1.0)
    values = model.encode(clips).transpose(0, 2).flatten(1)
    torch.testing.assert_close(values.mean(1), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.std(1), torch.ones(6), atol=1e-3, rtol=0)


def test_save_then_load_is_the_same_and_the_folder_names_its_latent_space(tmp_path):
    model = tiny()
    save_autoencoder(model, model.spec, tmp_path / "one")
    save_autoencoder(model, model.spec, tmp_path / "same")
    again = load_autoencoder(tmp_path / "one")
    frames = torch.randn(1, 3, 5, 16, 16)
    assert torch.equal(again.encode(frames), model.encode(frames))
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert latent_space(tmp_path / "one") == latent_space(tmp_path / "same")
    with torch.no_grad():
        model.latent_mean[0] += 1
    save_autoencoder(model, model.spec, tmp_path / "other")
    assert latent_space(tmp_path / "one") != latent_space(tmp_path / "other")


def test_a_folder_without_an_autoencoder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"autoencoder\.json and autoencoder\.safetensors"):
        load_autoencoder(tmp_path)
