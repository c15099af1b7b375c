"""A small causal video autoencoder of our own: temporal stride 4, spatial stride 16, convolutions over latent frames.

Legend: flowact/types.py; T pixel frames, F latent frames.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from flowact.autoencoders.base import Autoencoder
from flowact.errors import UserError

OVERSAMPLING = 16  # components more than are wanted, by which a randomised factorisation becomes accurate


class DecoderState(NamedTuple):
    """What streaming decode keeps between calls: the features of the last latent frame [B, 1, width, H, W]."""

    previous_BFDHW: Tensor


def zero_convolution(width: int, width_out: int, size: int = 1) -> nn.Conv2d:
    """A convolution that starts at zero."""
    convolution = nn.Conv2d(width, width_out, size, padding=size // 2)
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))); the branch starts at zero, so no normalisation is needed and a latent frame never sees batch statistics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = zero_convolution(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(nnf.silu(self.first(nnf.silu(x))))


class Downsample(nn.Module):
    """Halve height and width. A parameter-free shortcut (space to channels, averaged) helps short trainings (DC-AE, section 3.1)."""

    def __init__(self, width: int, width_out: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4 * width, width_out, 3, padding=1)
        self.width_out = width_out

    def forward(self, x: Tensor) -> Tensor:
        folded = nnf.pixel_unshuffle(x, 2)
        batch, channels, height, width = folded.shape
        shortcut = folded.view(batch, self.width_out, channels // self.width_out, height, width).mean(2)
        return self.convolution(folded) + shortcut


class Upsample(nn.Module):
    """Double height and width; the shortcut repeats channels (DC-AE, section 3.1)."""

    def __init__(self, width: int, width_out: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, 4 * width_out, 3, padding=1)
        self.repeats = 4 * width_out // width

    def forward(self, x: Tensor) -> Tensor:
        return nnf.pixel_shuffle(self.convolution(x) + x.repeat_interleave(self.repeats, dim=1), 2)


class CausalMix(nn.Module):
    """A convolution over a latent frame and the one before it. Before the first frame time stands still."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = zero_convolution(2 * width, width, 3)

    def forward(self, x_BFDHW: Tensor, previous_BFDHW: Tensor | None = None) -> Tensor:
        before = x_BFDHW[:, :1] if previous_BFDHW is None else previous_BFDHW
        shifted = torch.cat([before, x_BFDHW[:, :-1]], dim=1)
        both = torch.cat([x_BFDHW, shifted], dim=2)
        return x_BFDHW + self.convolution(nnf.silu(both.flatten(0, 1))).view_as(x_BFDHW)


class CausalVideoAutoencoder(Autoencoder):
    """Patches of 4 frames x 4 x 4 pixels, then convolutions per latent frame, mixed with the frame before it.

    The stride (4, 16, 16) is the one that Seedance 1.0 reports (arXiv 2506.09113); sizes are ours.

    Args:
        latent_channels: C of the latents.
        width: channels at a quarter of the resolution; doubled at each halving.
        num_blocks: residual blocks at each of the three resolutions.
    """

    temporal_stride = 4
    spatial_stride = 16
    patch = 4

    def __init__(self, latent_channels: int = 48, width: int = 64, num_blocks: int = 1) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.width = width
        self.num_blocks = num_blocks
        patch_width = 3 * self.temporal_stride * self.patch**2
        self.cells = (self.spatial_stride // self.patch) ** 2
        widths = (width, 2 * width, 4 * width)

        def blocks(size: int) -> list[nn.Module]:
            return [ResidualBlock(size) for _ in range(num_blocks)]

        self.encoder = nn.Sequential(
            nn.Conv2d(patch_width, widths[0], 1),
            *blocks(widths[0]),
            Downsample(widths[0], widths[1]),
            *blocks(widths[1]),
            Downsample(widths[1], widths[2]),
            *blocks(widths[2]),
        )
        self.encoder_mix = CausalMix(widths[2])
        self.encoder_out = zero_convolution(widths[2], 2 * latent_channels)
        self.encoder_linear = nn.Conv2d(patch_width * self.cells, latent_channels, 1)
        self.decoder_in = nn.Conv2d(latent_channels, widths[2], 3, padding=1)
        self.decoder_mix = CausalMix(widths[2])
        self.decoder = nn.Sequential(
            *blocks(widths[2]),
            Upsample(widths[2], widths[1]),
            *blocks(widths[1]),
            Upsample(widths[1], widths[0]),
            *blocks(widths[0]),
            zero_convolution(widths[0], patch_width),
        )
        self.decoder_linear = nn.Conv2d(latent_channels, patch_width * self.cells, 1)
        self.latent_mean: Tensor
        self.latent_std: Tensor
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))

    @property
    def spec(self) -> dict[str, object]:
        """{class_path, init_args} that builds an autoencoder of this shape."""
        arguments = {"latent_channels": self.latent_channels, "width": self.width, "num_blocks": self.num_blocks}
        return {"class_path": type(self).__name__, "init_args": arguments}

    @torch.no_grad()
    def follow_statistics(self, mean_BFCHW: Tensor, momentum: float = 0.02) -> None:
        """Move the latents' statistics towards those of a batch of posterior means, so that `encode` gives zero mean and unit variance."""
        values = mean_BFCHW.detach().float().transpose(0, 2).flatten(1)
        self.latent_mean.lerp_(values.mean(1), momentum)
        self.latent_std.lerp_(values.std(1).clamp(min=1e-3), momentum)

    def posterior(self, frames_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance [B, F, C, H, W] of the latents, not normalised.

        Raises:
            ValueError: the clip breaks T = 4 n + 1, or height or width is not a multiple of 16.
        """
        batch, _, num_frames, height, width = frames_BCTHW.shape
        num_latents = self.num_latents(num_frames)
        if height % self.spatial_stride or width % self.spatial_stride:
            raise ValueError(f"frames of {height}x{width} pixels do not divide by the spatial stride {self.spatial_stride}; resize or crop them")
        first = frames_BCTHW[:, :, :1].expand(-1, -1, self.temporal_stride - 1, -1, -1)
        frames = torch.cat([first, frames_BCTHW], dim=2).unflatten(2, (num_latents, self.temporal_stride))
        grouped = frames.permute(0, 2, 1, 3, 4, 5).reshape(batch * num_latents, 3 * self.temporal_stride, height, width)
        patches = nnf.pixel_unshuffle(grouped, self.patch).contiguous(memory_format=torch.channels_last)
        mixed = self.encoder_mix(self.encoder(patches).unflatten(0, (batch, num_latents)))
        correction, log_variance = self.encoder_out(mixed.flatten(0, 1)).chunk(2, dim=1)
        mean = self.encoder_linear(self._fold(patches)) + correction
        return mean.unflatten(0, (batch, num_latents)), log_variance.unflatten(0, (batch, num_latents)).sub(4.0).clamp(-20.0, 4.0)

    def reconstruct(self, raw_BFCHW: Tensor, previous_BFDHW: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Frames of every latent frame, [B, 3, 4 F, H, W], from latents that are not normalised, and the features of the last latent frame."""
        batch, num_latents = raw_BFCHW.shape[:2]
        features = self.decoder_in(raw_BFCHW.flatten(0, 1)).unflatten(0, (batch, num_latents))
        mixed = self.decoder_mix(features, previous_BFDHW)
        linear = nnf.pixel_shuffle(self.decoder_linear(raw_BFCHW.flatten(0, 1)), self.spatial_stride // self.patch)
        patches = linear + self.decoder(mixed.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        frames = nnf.pixel_shuffle(patches, self.patch).unflatten(0, (batch, num_latents)).unflatten(2, (3, self.temporal_stride))
        return frames.permute(0, 2, 1, 3, 4, 5).flatten(2, 3), features[:, -1:]

    def _fold(self, patches: Tensor) -> Tensor:
        return nnf.pixel_unshuffle(patches, self.spatial_stride // self.patch)

    @torch.no_grad()
    def start_from_principal_components(self, frames_BCTHW: Tensor) -> float:
        """Set the linear path to the principal components of space-time patches, a closed-form start that training then improves on.

        Latent channels come out centred and in order of variance, each with unit variance over these frames.

        Args:
            frames_BCTHW: a few hundred clips of the training set, in [-1, 1]; a handful does, with components that fit these clips only.

        Returns:
            the share of the patches' variance that the latents keep.

        Raises:
            UserError: fewer patches than components.
        """
        num_frames, height, width = frames_BCTHW.shape[-3:]
        moving = frames_BCTHW[:, :, 1:].unflatten(2, (self.num_latents(num_frames) - 1, self.temporal_stride))
        grouped = moving.permute(0, 2, 1, 3, 4, 5).reshape(-1, 3 * self.temporal_stride, height, width)
        patches = self._fold(nnf.pixel_unshuffle(grouped, self.patch)).permute(0, 2, 3, 1).flatten(0, 2)
        num_components = self.latent_channels + OVERSAMPLING
        if len(patches) < num_components:
            raise UserError(
                f"{len(patches)} patches of the training clips are too few for {num_components} principal components; give more or longer clips,"
                " or start from random weights: model.init_args.principal_clips=0"
            )
        mean = patches.mean(0)
        with torch.random.fork_rng(devices=[]):  # a randomised factorisation: the same components on every process
            torch.manual_seed(0)
            _, singular, components = torch.svd_lowrank(patches - mean, q=num_components, niter=4)
        basis = components[:, : self.latent_channels]
        variance = singular[: self.latent_channels].square() / len(patches)
        scale = variance.clamp(min=1e-8).sqrt()
        analysis, synthesis = basis / scale, basis * scale
        self.encoder_linear.load_state_dict({"weight": analysis.T[:, :, None, None], "bias": -(mean @ analysis)})
        self.decoder_linear.load_state_dict({"weight": synthesis[:, :, None, None], "bias": mean})
        return float(variance.sum() / (patches - mean).square().mean(0).sum())

    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        """See `Autoencoder.encode`: the posterior mean, normalised."""
        mean, _ = self.posterior(frames_BCTHW)
        return (mean - self._per_channel(self.latent_mean)) / self._per_channel(self.latent_std)

    def decode(self, latents_BFCHW: Tensor) -> Tensor:
        """See `Autoencoder.decode`."""
        return self.decode_stream(latents_BFCHW)[0]

    def decode_stream(self, latents_BFCHW: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        """See `Autoencoder.decode_stream`."""
        raw = latents_BFCHW * self._per_channel(self.latent_std) + self._per_channel(self.latent_mean)
        frames, previous = self.reconstruct(raw, None if state is None else state.previous_BFDHW)
        if state is None:  # the first latent describes one frame
            frames = frames[:, :, self.temporal_stride - 1 :]
        return frames, DecoderState(previous)

    @staticmethod
    def _per_channel(value_C: Tensor) -> Tensor:
        return value_C[:, None, None]
