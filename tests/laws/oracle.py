"""Denoisers whose answer is known, and windows for them."""

from __future__ import annotations

import torch
from torch import nn

from flowact.autoencoders import CausalVideoAutoencoder
from flowact.models.base import Denoiser, check_window
from flowact.models.mmdit import MMDiT
from flowact.types import Batch, Chunk

CHANNELS, SIZE = 2, 2
AUDIO, AUDIO_WIDTH = 4, 2  # a latent frame's sound holds as many numbers as its latents
TOKENS, TEXT_WIDTH = 3, 3


class KnowingDenoiser(Denoiser):
    """Reads a picture from the sound of each frame: the tests write there what it has to know."""

    latent_channels, text_width, audio_width = CHANNELS, TEXT_WIDTH, AUDIO_WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))
        self.evaluations = 0
        self.levels: list[torch.Tensor] = []

    def forward(self, latents_BFCHW, sigma_BF, conditions, layout):
        check_window(latents_BFCHW, sigma_BF, conditions, layout)
        self.evaluations += 1
        stream = layout.num_memory_frames
        assert not sigma_BF[:, :stream].any(), "memory is clean"
        self.levels.append(sigma_BF[:, stream:])
        known = conditions.audio_BFAD[:, stream:].reshape(latents_BFCHW[:, stream:].shape)
        return self.velocity(latents_BFCHW[:, stream:], sigma_BF[:, stream:, None, None, None], known) + self.bias

    def velocity(self, latents, sigma, known):
        raise NotImplementedError


class PerfectDenoiser(KnowingDenoiser):
    """Knows the clean latents: v = (x - x0) / sigma, the same everywhere on the straight line from x0 to the noise."""

    def velocity(self, latents, sigma, known):
        return (latents - known) / sigma


class ConstantDenoiser(KnowingDenoiser):
    """A velocity that depends on neither place nor level."""

    def velocity(self, latents, sigma, known):
        return known


def learning_denoiser(**options) -> MMDiT:
    """A small MMDiT away from its zeros."""
    torch.manual_seed(0)
    shape = {"width": 16, "num_heads": 2, "num_double_blocks": 1, "num_single_blocks": 1, "mlp_ratio": 2.0}
    model = MMDiT(CHANNELS, TEXT_WIDTH, AUDIO_WIDTH, **(shape | options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def sound_of(latents_BFCHW):
    """The sound in which a `KnowingDenoiser` finds these latents."""
    return latents_BFCHW.reshape(*latents_BFCHW.shape[:2], AUDIO, AUDIO_WIDTH)


def knowing_chunk(clean_BFCHW, latents_BFCHW=None, seed=0) -> Chunk:
    """A chunk with the given latents (noise by default) whose sound tells the clean ones."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(clean_BFCHW.shape, generator=generator) if latents_BFCHW is None else latents_BFCHW
    text = torch.randn(clean_BFCHW.shape[0], TOKENS, TEXT_WIDTH, generator=generator)
    return Chunk(noise, sound_of(clean_BFCHW), text)


def clean_chunks(count, num_frames=3, batch=2, seed=7):
    """Clean latents of consecutive chunks."""
    return list(torch.randn(count, batch, num_frames, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)))


def knowing_batch(num_frames, batch=2, captions=2, seed=0) -> Batch:
    """A batch whose sound tells its latents. Caption n has features n everywhere; the caption changes every two frames."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, num_frames, CHANNELS, SIZE, SIZE, generator=generator)
    text = torch.arange(captions).float()[None, :, None, None].expand(batch, -1, TOKENS, TEXT_WIDTH).clone()
    index = (torch.arange(num_frames) // 2 % captions).expand(batch, -1)
    reference = torch.randn(batch, 1, CHANNELS, SIZE, SIZE, generator=generator)
    return Batch(latents, reference, sound_of(latents).clone(), text, index, tuple(f"{seed}@{i}" for i in range(batch)))


def small_autoencoder() -> CausalVideoAutoencoder:
    """An autoencoder for these latents, away from its zeros."""
    torch.manual_seed(0)
    model = CausalVideoAutoencoder(latent_channels=CHANNELS, width=8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.eval()
