"""The reference picture: any picture file to the image latent that says who the character is.

Axes: B batch, C channels, H W height and width.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from flowact.errors import UserError

if TYPE_CHECKING:
    from flowact.autoencoders.base import Autoencoder

Picture = str | Path | Image.Image | np.ndarray
BACKGROUND = (128, 128, 128)  # shows through transparent parts: mid grey, 0 in [-1, 1]


def load_picture(path: str | Path, size: int | tuple[int, int]) -> Tensor:
    """A picture file as image_BCHW, B = 1, float32 in [-1, 1], turned upright, in RGB, its centre cropped to the target's shape and resized.

    Args:
        path: any still picture that Pillow reads; of an animation the first frame.
        size: height and width in pixels, or one number for a square.

    Raises:
        UserError: no such file, not a picture, broken, or too large to be a portrait.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no reference picture at {path}; give a PNG, JPEG or WebP file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return prepare_picture(image, size)
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not a picture that can be read; give a PNG, JPEG or WebP file") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{path} has more than {Image.MAX_IMAGE_PIXELS} pixels; crop it to the face and shoulders") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is a broken picture ({error}); save it again") from error


def prepare_picture(picture: Image.Image | np.ndarray, size: int | tuple[int, int]) -> Tensor:
    """A picture as image_BCHW, B = 1, float32 in [-1, 1]: turned upright, over grey where transparent, centre-cropped and resized.

    A picture that already has the target size keeps its pixels.

    Args:
        picture: a Pillow image of any mode, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or float in [0, 1].
        size: height and width in pixels, or one number for a square.

    Raises:
        UserError: the array's shape, type or values are none of these.
        ValueError: a size below 1.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"a picture has at least one pixel, got size {size}")
    image = Image.fromarray(_to_uint8(picture)) if isinstance(picture, np.ndarray) else ImageOps.exif_transpose(picture)
    image = _to_rgb(image)
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)
    from torchvision.transforms.v2.functional import pil_to_tensor  # here, so that those who encode text or sound do not wait for it

    return pil_to_tensor(image)[None].float() / 127.5 - 1.0


def _to_uint8(array: np.ndarray) -> np.ndarray:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise UserError(f"a picture array is (H, W), (H, W, 3) or (H, W, 4), got shape {array.shape}; put the channels last")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"a picture array is uint8 or float in [0, 1], got {array.dtype}; convert it first")
    if not (np.isfinite(array).all() and array.min() >= 0.0 and array.max() <= 1.0):
        raise UserError("a float picture array lies in [0, 1]; divide 0..255 values by 255, shift -1..1 values, and remove NaN")
    return np.round(array * 255.0).astype(np.uint8)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip it to 255
        levels = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((levels / (65_535.0 if levels.max() > 255 else 255.0) * 255.0).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", with_alpha.size, (*BACKGROUND, 255)), with_alpha).convert("RGB")
    return image.convert("RGB")


@final
class ReferenceLatent:
    """A picture of any size to the image latent of a character.

    Args:
        autoencoder: encodes a still picture, as `flowact.autoencoders.Autoencoder` does.
        size: height and width in pixels of the video to be made, or one number for a square.

    Raises:
        UserError: the size is not a multiple of the autoencoder's spatial stride.
    """

    def __init__(self, autoencoder: Autoencoder, size: int | tuple[int, int]) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        stride = autoencoder.spatial_stride
        if height % stride or width % stride:
            nearest = f"{_round(height, stride)} x {_round(width, stride)}"
            raise UserError(f"video size {height} x {width} is not a multiple of the autoencoder's stride {stride}; use {nearest}")
        self.autoencoder = autoencoder
        self.size = (height, width)

    @property
    def width(self) -> int:
        """Channels C of the latent."""
        return self.autoencoder.latent_channels

    @torch.no_grad()
    def encode(self, picture: Picture) -> Tensor:
        """The image latent_BFCHW, B = F = 1, on the autoencoder's device, of a file, a Pillow image or an array.

        Raises:
            UserError: as `load_picture` and `prepare_picture`.
        """
        image_BCHW = load_picture(picture, self.size) if isinstance(picture, str | Path) else prepare_picture(picture, self.size)
        like: Any = next(self.autoencoder.parameters(), image_BCHW)
        return self.autoencoder.encode_still(image_BCHW.to(device=like.device, dtype=like.dtype))


def _round(length: int, stride: int) -> int:
    return max(round(length / stride), 1) * stride
