"""Training the small causal video autoencoder. Legend: flowact/types.py."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from flowact.autoencoders import SPEC
from flowact.autoencoders.causal import CausalVideoAutoencoder
from flowact.stages.base import AdamW, Stage
from flowact.types import FrameBatch


class AutoencoderTraining(Stage):
    """Reconstruction with a light Kullback-Leibler term; starts from the principal components of the data.

        loss = mean |y - x| + squared_weight * mean (y - x)^2 + kl_weight * KL(q(z | x) || N(0, 1))

    Args:
        autoencoder: the trained autoencoder.
        kl_weight: weight of the divergence, a mean over latent numbers.
        squared_weight: weight of the squared error.
        latent_noise: largest noise on the latents that the decoder learns to forgive, in standard deviations of their channels. Each clip draws
            its own strength below that, so clean latents stay sharp and what a denoiser gets a little wrong does not show as blocks.
        principal_clips: clips that the closed-form start looks at; 0 starts from random weights.
        optimizer: optimizer and schedule.
    """

    name = "autoencoder"
    weights_name = "autoencoder.safetensors"

    def __init__(
        self,
        autoencoder: CausalVideoAutoencoder,
        kl_weight: float = 1e-4,
        squared_weight: float = 2.0,
        latent_noise: float = 0.0,
        principal_clips: int = 128,
        optimizer: AdamW | None = None,
    ) -> None:
        super().__init__(optimizer)
        self.autoencoder = autoencoder
        self.kl_weight = kl_weight
        self.squared_weight = squared_weight
        self.latent_noise = latent_noise
        self.principal_clips = principal_clips
        self.variance_kept: float | None = None
        self._rights: dict[str, Any] = {}

    def trained_module(self) -> CausalVideoAutoencoder:
        """See `Stage.trained_module`."""
        return self.autoencoder

    def documents(self) -> dict[str, str]:
        """The specification with which `load_autoencoder` rebuilds the network."""
        return {SPEC: json.dumps(self.autoencoder.spec, indent=2, sort_keys=True) + "\n"}

    def lineage(self) -> dict[str, Any]:
        """See `Stage.lineage`."""
        return {"stage": self.name, "ancestors": self.ancestors, "autoencoder": self.autoencoder.spec, **self._rights}

    def setup(self, stage: str) -> None:
        """Start from principal components, on every rank from the same clips; here, since an engine copies the weights when it is made."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is not None:
            self._rights = {name: value for name, value in data.lineage.items() if name == "training_data"}
        if stage != "fit" or not self.principal_clips or self.trainer.ckpt_path or self.ancestors:
            return
        frames: list[Tensor] = []
        found = 0
        for batch in self.trainer.datamodule.loader("train"):  # type: ignore[attr-defined]  # rank 0's clips, whatever this rank is
            if frames and batch.frames_BCTHW.shape[3:] != frames[0].shape[3:]:
                continue  # components are of pictures of one size
            frames.append(batch.frames_BCTHW)
            found += frames[-1].shape[0]
            if found >= self.principal_clips:
                break
        self.variance_kept = self.autoencoder.start_from_principal_components(torch.cat(frames).to(self.device))

    def on_train_start(self) -> None:
        if self.logger is not None and self.variance_kept is not None:
            self.logger.log_metrics({"start/variance_kept": self.variance_kept}, step=0)

    def reconstruction(self, batch: FrameBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstructed frames, mean and log variance, in float32."""
        mean, log_variance = (x.float() for x in self.autoencoder.posterior(batch.frames_BCTHW))
        latents = mean
        if self.training:
            strength = self.latent_noise * torch.rand(mean.shape[0], 1, 1, 1, 1, device=mean.device)
            spread = (0.5 * log_variance).exp() + strength * self.autoencoder.latent_std[:, None, None]
            latents = mean + spread * torch.randn_like(mean)
        frames, _ = self.autoencoder.reconstruct(latents)
        return frames[:, :, self.autoencoder.temporal_stride - 1 :].float(), mean, log_variance

    def training_step(self, batch: FrameBatch, batch_index: int) -> Tensor:
        frames, mean, log_variance = self.reconstruction(batch)
        self.autoencoder.follow_statistics(mean)
        error = frames - batch.frames_BCTHW
        absolute, squared = error.abs().mean(), error.square().mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = absolute + self.squared_weight * squared + self.kl_weight * divergence
        self.log_dict({"train/loss": loss, "train/absolute": absolute, "train/psnr": psnr(squared), "train/kl": divergence}, prog_bar=False)
        return loss

    def validation_step(self, batch: FrameBatch, batch_index: int) -> Tensor:
        frames, _, _ = self.reconstruction(batch)
        squared = (frames - batch.frames_BCTHW).square().mean()
        self.log("val/psnr", psnr(squared), sync_dist=True, batch_size=frames.shape[0])
        return squared


def psnr(squared_error: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB of frames in [-1, 1]."""
    return -10 * torch.log10(squared_error / 4)
