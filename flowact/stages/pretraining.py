"""Base pretraining: flow matching under full visibility (FlowAct-R1, Figure 2, first panel; SD3 for levels). Legend: flowact/types.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowact.memory.none import NoMemory
from flowact.memory.structured import reference_chunk
from flowact.models.base import Denoiser
from flowact.sampling.window import gaussian, predict_velocity
from flowact.schedulers.base import NoiseScheduler
from flowact.schedulers.flow import LogitNormalLevel
from flowact.stages.base import DenoiserStage
from flowact.types import FULL_VISIBILITY, Batch, Chunk


class FlowMatchingPretraining(DenoiserStage):
    """The base model: a clip at one noise level, every frame sees every frame, the reference among them.

        x_sigma = (1 - sigma) x0 + sigma eps,   loss = | v(x_sigma, sigma) - (eps - x0) |^2

    Some steps may train on pictures instead of clips, as video models are usually pretrained: a picture is the image latent alone, with a caption,
    without sound, in front of an empty reference.

    Args:
        denoiser: the trained network.
        levels: one level per sample; the default is logit normal.
        num_chunks: chunks of a clip.
        pictures: share of training steps on pictures, drawn per step and the same on every process.
        options: the other arguments of `DenoiserStage`.

    Raises:
        ValueError: a share of pictures outside [0, 1].
    """

    name = "pretraining"

    def __init__(
        self, denoiser: Denoiser, levels: NoiseScheduler | None = None, *, num_chunks: int = 4, pictures: float = 0.0, **options: Any
    ) -> None:
        if not 0 <= pictures <= 1:
            raise ValueError(f"pictures is a share of the training steps in [0, 1], got {pictures}")
        levels = levels or LogitNormalLevel()
        super().__init__(denoiser, NoMemory(), levels, num_chunks=num_chunks, visibility=FULL_VISIBILITY, **options)
        self.pictures = pictures

    def velocity_error(self, batch: Batch, sigma_BK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `DenoiserStage.velocity_error`; in some training steps of the batch's pictures."""
        if self.training and float(torch.rand((), generator=self.shared_generator("pictures"))) < self.pictures:
            return self.picture_error(batch, sigma_BK[:, :1])
        return super().velocity_error(batch, sigma_BK)

    def picture_error(self, batch: Batch, sigma_B1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`velocity_error` of the reference pictures as clips of one latent frame."""
        clean, (like, *_) = batch.reference_BFCHW, self.stream(batch)
        sigma_B1, noise = sigma_B1.to(clean), gaussian(clean)
        sigma = sigma_B1[:, :, None, None, None]
        empty = self.memory.read(self.memory.reset(reference_chunk(torch.zeros_like(clean), like)))
        picture = Chunk((1 - sigma) * clean + sigma * noise, torch.zeros_like(like.audio_BFAD[:, :1]), like.text_BLD)
        drop = tuple(mask.to(clean.device) for mask in self.dropout.masks(len(clean)))
        velocity = predict_velocity(self.denoiser, empty, [picture], sigma_B1, visibility=self.visibility, drop=(drop[0], drop[1]))
        return velocity - (noise - clean), clean, sigma_B1
