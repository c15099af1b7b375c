"""A session with a small random network."""

from __future__ import annotations

import numpy as np
import torch

from flowact.autoencoders import CausalVideoAutoencoder
from flowact.conditioning import HashedText, LogMel
from flowact.memory import StructuredMemory
from flowact.models.mmdit import MMDiT
from flowact.sampling import StreamSession
from flowact.sampling.pipeline import Pipeline
from flowact.schedulers import Staircase

CHUNK_FRAMES = 8


class Recorded(StreamSession):
    """Keeps what it hands out."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.handed_out = []

    def hand_out(self, chunk):
        self.handed_out.append(super().hand_out(chunk))
        return self.handed_out[-1]


def small_session(num_chunks=3, **options):
    torch.manual_seed(0)
    audio = LogMel(num_mels=5)
    denoiser = MMDiT(latent_channels=3, text_width=16, audio_width=audio.width, width=16, num_heads=2).eval()
    autoencoder = CausalVideoAutoencoder(latent_channels=3, width=8).eval().requires_grad_(False)
    memory = StructuredMemory(long=1, short=1, chunk_frames=2)
    text = HashedText(num_tokens=4, buckets=16)
    size = {"chunk_frames": 2, "latent_size": (1, 2)}
    pipeline = Pipeline(denoiser, autoencoder, text, audio, memory, Staircase(num_chunks), **size, rest_caption="a person waits")
    return Recorded(pipeline, torch.zeros(3, 16, 32), **options)


def words(num_samples, seed=0):
    """Sound in which no sample is silent, so that each can be found again; int16."""
    rng = np.random.default_rng(seed)
    return (rng.integers(1_000, 9_000, num_samples) * rng.choice([-1, 1], num_samples)).astype(np.int16)
