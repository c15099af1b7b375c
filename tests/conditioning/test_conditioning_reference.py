from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flowact.autoencoders.base import Autoencoder
from flowact.conditioning import ReferenceLatent, load_picture, prepare_picture
from flowact.errors import UserError


class Pooling(Autoencoder):
    """Latents are 4 x 4 block means, so a reference latent can be computed by hand."""

    temporal_stride, spatial_stride, latent_channels = 4, 4, 3

    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool3d(frames_BCTHW[:, :, ::4], (1, 4, 4)).transpose(1, 2)

    def decode(self, latents_BFCHW: Tensor) -> Tensor:
        raise NotImplementedError

    def decode_stream(self, latents_BFCHW: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        raise NotImplementedError


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def test_a_picture_of_the_right_size_keeps_its_pixels(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image_BCHW = load_picture(tmp_path / "a.png", 16)
    assert image_BCHW.shape == (1, 3, 16, 16)
    assert image_BCHW.dtype == torch.float32
    restored = ((image_BCHW[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(restored, pixels)
    torch.testing.assert_close(prepare_picture(pixels, 16), image_BCHW)
    torch.testing.assert_close(prepare_picture((pixels / 255).astype(np.float32), 16), image_BCHW)


def test_the_centre_is_cropped_to_the_target_shape():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20, 0] = 255
    image_BCHW = prepare_picture(wide, 10)
    assert (image_BCHW[0, 0] == 1).all()
    assert prepare_picture(wide, (8, 12)).shape == (1, 3, 8, 12)


def test_a_turned_photo_is_put_upright(tmp_path):
    upright = np.zeros((12, 12, 3), np.uint8)
    upright[:6] = 255
    stored = Image.fromarray(np.rot90(upright).copy())  # turned left; orientation 6 says "turn right to see"
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "photo.png", exif=exif)
    image_BCHW = load_picture(tmp_path / "photo.png", 12)
    assert (image_BCHW[0, :, :6] == 1).all()
    assert (image_BCHW[0, :, 6:] == -1).all()


def test_transparent_parts_become_mid_grey_not_black():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, :4] = (255, 0, 0, 255)
    image_BCHW = prepare_picture(rgba, 8)
    assert image_BCHW[0, :, :, 4:].abs().max() < 0.01
    torch.testing.assert_close(image_BCHW[0, :, 0, 0], torch.tensor([1.0, -1.0, -1.0]))


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "LA", "1", "I;16"])
def test_any_colour_mode_becomes_rgb(tmp_path, mode):
    grey = Image.fromarray(np.full((8, 8), 255, np.uint8))
    image = Image.fromarray(np.full((8, 8), 65_535, np.uint16)) if mode == "I;16" else grey.convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    torch.testing.assert_close(load_picture(path, 8), torch.ones(1, 3, 8, 8))


def test_the_latent_is_the_image_latent_of_the_prepared_picture(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    encoder = ReferenceLatent(Pooling(), 16)
    latent_BFCHW = encoder.encode(tmp_path / "a.png")
    assert latent_BFCHW.shape == (1, 1, encoder.width, 4, 4)
    expected = pixels.reshape(4, 4, 4, 4, 3).mean(axis=(1, 3)).transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(latent_BFCHW[0, 0].numpy(), expected, atol=1e-5)
    assert torch.equal(encoder.encode(Image.fromarray(pixels)), latent_BFCHW)
    assert torch.equal(encoder.encode(pixels), latent_BFCHW)
    with pytest.raises(UserError, match=r"stride 4; use 16 x 20"):
        ReferenceLatent(Pooling(), (17, 19))


def test_bad_files_are_user_errors(tmp_path, monkeypatch, pixels):
    with pytest.raises(UserError, match="no reference picture"):
        load_picture(tmp_path / "absent.png", 8)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(UserError, match="not a picture"):
        load_picture(tmp_path / "text.png", 8)
    Image.fromarray(pixels.repeat(20, axis=0)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:600])
    with pytest.raises(UserError, match="broken picture"):
        load_picture(tmp_path / "cut.png", 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(UserError, match="more than 3000 pixels"):
        load_picture(tmp_path / "whole.png", 8)


@pytest.mark.parametrize(
    "array",
    [np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8, 3), np.int64), np.full((8, 8, 3), 2.0), np.full((8, 8), np.nan), np.zeros((0, 8, 3), np.uint8)],
)
def test_bad_arrays_are_user_errors(array):
    with pytest.raises(UserError, match="picture array"):
        prepare_picture(array, 8)
