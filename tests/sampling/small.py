"""A pipeline of a small random network, with pictures and sounds for it."""

from __future__ import annotations

import numpy as np
import torch

from flowact.autoencoders import CausalVideoAutoencoder
from flowact.conditioning import HashedText, LogMel
from flowact.memory import StructuredMemory
from flowact.models.mmdit import MMDiT
from flowact.sampling.pipeline import Pipeline
from flowact.schedulers import Staircase

TEXT = {"num_tokens": 4, "buckets": 16}
AUDIO = {"num_mels": 5}
SHAPE = {"latent_channels": 3, "text_width": 16, "audio_width": LogMel(**AUDIO).width, "width": 16, "num_heads": 2}
AUTOENCODER = {"latent_channels": 3, "width": 8}
SAMPLES_PER_CHUNK = 2 * 4 * 640


def denoiser(seed=0):
    torch.manual_seed(seed)
    model = MMDiT(**SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():  # away from the zeros that modulation and output start with
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def autoencoder():
    torch.manual_seed(0)
    model = CausalVideoAutoencoder(**AUTOENCODER)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval().requires_grad_(False)


def small_pipeline(**options):
    memory = StructuredMemory(long=1, short=1, chunk_frames=2)
    given = {"staircase": Staircase(), "chunk_frames": 2, "latent_size": (1, 2), "rest_caption": "a person waits"} | options
    return Pipeline(denoiser(), autoencoder(), HashedText(**TEXT), LogMel(**AUDIO), memory, **given)


def picture(seed=0):
    return 2 * torch.rand(3, 16, 32, generator=torch.Generator().manual_seed(seed)) - 1


def sound(num_samples, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)
