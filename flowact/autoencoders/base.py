"""Autoencoders: pixels to latents and back, whole clips or as a stream. Legend: flowact/types.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Autoencoder(nn.Module, ABC):
    """A causal video autoencoder.

    The rule T = stride * n + 1: the first latent frame describes one pixel frame (a picture), each later one `temporal_stride` frames.
    So a picture is a clip of one frame, and a stream decodes its reference picture first and then `temporal_stride` frames per latent.
    """

    temporal_stride: int
    spatial_stride: int
    latent_channels: int

    def num_latents(self, num_frames: int) -> int:
        """Latent frames of a clip of `num_frames`.

        Raises:
            ValueError: `num_frames` breaks the rule T = stride * n + 1.
        """
        if num_frames < 1 or (num_frames - 1) % self.temporal_stride:
            stride = self.temporal_stride
            below = max((num_frames - 1) // stride * stride + 1, 1)
            raise ValueError(f"{num_frames} frames break the rule T = {stride} n + 1 of a causal video autoencoder; use {below} or {below + stride}")
        return (num_frames - 1) // self.temporal_stride + 1

    def num_frames(self, num_latents: int) -> int:
        """Pixel frames of a clip of `num_latents` latent frames."""
        return (num_latents - 1) * self.temporal_stride + 1

    @abstractmethod
    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        """Normalised latents_BFCHW (zero mean, unit variance per channel over the training set) of frames in [-1, 1]."""

    @abstractmethod
    def decode(self, latents_BFCHW: Tensor) -> Tensor:
        """Frames [B, 3, stride * (F - 1) + 1, H, W], nominally in [-1, 1], of a clip that starts with an image latent."""

    @abstractmethod
    def decode_stream(self, latents_BFCHW: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Decode the next latent frames of a clip.

        Args:
            latents_BFCHW: any number of further latent frames.
            state: None at the start of a clip, else what the previous call returned.

        Returns:
            frames_BCTHW, and the state for the next call. Law: concatenated, the frames equal `decode` of all latents.
        """

    @torch.no_grad()
    def encode_still(self, image_BCHW: Tensor, num_latents: int = 0) -> Tensor:
        """Latents of a picture, followed by `num_latents` motion latents of the same picture standing still."""
        num_frames = 1 + num_latents * self.temporal_stride
        return self.encode(image_BCHW[:, :, None].expand(-1, -1, num_frames, -1, -1))
