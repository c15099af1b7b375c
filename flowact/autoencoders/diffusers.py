"""Frozen video autoencoders of the `diffusers` library, read from a local folder. Legend: flowact/types.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowact.autoencoders.base import Autoencoder
from flowact.autoencoders.hunyuan15 import FeatureCache, decode_next, encode_next
from flowact.errors import UserError, did_you_mean


class StreamState(NamedTuple):
    """What streaming decode keeps between calls.

    Attributes:
        features: feature cache, one entry per layer that looks back (`CachedCodec`, `Hunyuan15Codec`), else empty.
        past_BCFHW: the last raw latent frames (`WindowedCodec`), else None.
    """

    features: tuple[Any, ...] = ()
    past_BCFHW: Tensor | None = None


class Codec(ABC):
    """How one family of models encodes and decodes raw latents [B, C, F, H, W], frame by frame.

    Args:
        model: the model.
        context: see `DiffusersAutoencoder`.

    Attributes:
        default_context: `context` where the user states none.
    """

    default_context = 4

    def __init__(self, model: nn.Module, context: int) -> None:
        self.model: Any = model
        self.context = context

    @abstractmethod
    def geometry(self) -> tuple[int, int, int]:
        """Temporal stride, spatial stride and latent channels."""

    @abstractmethod
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [C] of raw latents."""

    @abstractmethod
    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        """Raw latents (the posterior's mean)."""

    @abstractmethod
    def decode_next(self, raw_BC1HW: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        """Frames of the next latent frame, one for the first and `temporal stride` for the others."""


class CachedCodec(Codec):
    """Wan: every layer is causal and keeps its last inputs, so a stream costs what a batch costs and equals it.

    The model's own cache belongs to one clip at a time; here the cache is the stream's state, handed in and out.
    """

    def geometry(self) -> tuple[int, int, int]:
        """See `Codec.geometry`."""
        config = self.model.config
        halvings = len(config.dim_mult) - 1
        return 2 ** sum(config.temperal_downsample), 2**halvings * (config.patch_size or 1), config.z_dim

    def statistics(self) -> tuple[Tensor, Tensor]:
        """See `Codec.statistics`."""
        return torch.tensor(self.model.config.latents_mean), torch.tensor(self.model.config.latents_std)

    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        """See `Codec.encode`."""
        return self.model.encode(frames_BCTHW).latent_dist.mode()

    def decode_next(self, raw_BC1HW: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        """See `Codec.decode_next`."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        if state is None:
            self.model.clear_cache()
        # the decoder puts new tensors into the list and changes none in place, so a copy of the list keeps the old state whole
        features = list(self.model._feat_map if state is None else state.features)
        latent = self.model.post_quant_conv(raw_BC1HW)
        frames = self.model.decoder(latent, feat_cache=features, feat_idx=[0], first_chunk=state is None)
        if self.model.config.patch_size is not None:
            frames = unpatchify(frames, patch_size=self.model.config.patch_size)
        return frames, StreamState(features=tuple(features))


class HunyuanCodec(Codec):
    """What the two generations of HunyuanVideo have in common: how their configuration states geometry and scale."""

    def geometry(self) -> tuple[int, int, int]:
        """See `Codec.geometry`."""
        config = self.model.config
        return config.temporal_compression_ratio, config.spatial_compression_ratio, config.latent_channels

    def statistics(self) -> tuple[Tensor, Tensor]:
        """See `Codec.statistics`."""
        channels = self.model.config.latent_channels
        return torch.zeros(channels), torch.full((channels,), 1 / self.model.config.scaling_factor)


class Hunyuan15Codec(HunyuanCodec):
    """HunyuanVideo-1.5: every layer is causal, so a stream costs what a batch costs and equals it (see `hunyuan15`).

    Its attention sees all latent frames of the past, which a stream without end cannot keep; here it sees `context` of them. Clips of up to
    `context + 1` latent frames are what diffusers makes of them; 31 is the length that the model generates.
    """

    default_context = 30

    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        """See `Codec.encode`."""
        stride = self.model.config.temporal_compression_ratio
        past, latents = None, []
        for frames in (frames_BCTHW[:, :, :1], *frames_BCTHW[:, :, 1:].split(stride, dim=2)):
            if frames.shape[2]:
                cache = FeatureCache(past, self.context)
                latents.append(encode_next(self.model.encoder, frames, cache).chunk(2, dim=1)[0])
                past = cache.kept
        return torch.cat(latents, dim=2)

    def decode_next(self, raw_BC1HW: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        """See `Codec.decode_next`."""
        cache = FeatureCache(None if state is None else state.features, self.context)
        frames = decode_next(self.model.decoder, raw_BC1HW, cache)
        return frames, StreamState(features=tuple(cache.kept))


class WindowedCodec(HunyuanCodec):
    """HunyuanVideo: group norms and attention over the whole clip, so neither causal nor cheap to stream as it is.

    Each latent frame is encoded and decoded at the end of a window of its own, with up to `context` latent frames before it, and the rest of the
    window's result is dropped. Then no frame depends on a later one and streams equal batches, at `context + 1` times the cost.
    """

    def __init__(self, model: nn.Module, context: int) -> None:
        super().__init__(model, context)
        self.model.use_framewise_encoding = self.model.use_framewise_decoding = False  # blends tiles of time, which would see the future

    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        """See `Codec.encode`."""
        stride = self.model.config.temporal_compression_ratio
        latents = []
        for last in range((frames_BCTHW.shape[2] - 1) // stride + 1):
            first = max(last - self.context, 0)
            window = frames_BCTHW[:, :, first * stride : last * stride + 1]
            latents.append(self.model.encode(window).latent_dist.mode()[:, :, -1:])
        return torch.cat(latents, dim=2)

    def decode_next(self, raw_BC1HW: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        """See `Codec.decode_next`."""
        stride = self.model.config.temporal_compression_ratio
        window = raw_BC1HW if state is None else torch.cat([state.past_BCFHW, raw_BC1HW], dim=2)  # type: ignore[list-item]
        frames = self.model.decode(window).sample
        return frames if state is None else frames[:, :, -stride:], StreamState(past_BCFHW=window[:, :, -self.context :])


CODECS: dict[str, type[Codec]] = {
    "AutoencoderKLWan": CachedCodec,
    "AutoencoderKLHunyuanVideo": WindowedCodec,
    "AutoencoderKLHunyuanVideo15": Hunyuan15Codec,
}


class DiffusersAutoencoder(Autoencoder):
    """A pretrained video autoencoder of `diffusers`, frozen: a latent space for large runs.

    Latents are normalised with the statistics in the model's own configuration. Wan and HunyuanVideo-1.5 stream through a feature cache at no extra
    cost; HunyuanVideo sees a window of `context + 1` latent frames for each latent frame, which costs that many times as much (see `WindowedCodec`).
    To encode shards with it, write its folder once: `save_autoencoder(autoencoder, autoencoder.spec, "my_autoencoder")`. That folder names `path`,
    which must stay where it is.

    Args:
        class_name: class in diffusers: AutoencoderKLWan (2.1 and 2.2), AutoencoderKLHunyuanVideo or AutoencoderKLHunyuanVideo15.
        path: local folder of the model, with config.json and safetensors weights. Nothing is downloaded.
        context: latent frames of the past that a latent frame is encoded and decoded with: in a window (HunyuanVideo, 4 unless stated) or in
            attention (HunyuanVideo-1.5, 30 unless stated). Wan needs none.

    Raises:
        UserError: diffusers is not installed, the class is not known here, or the folder is missing or holds another class.
    """

    def __init__(self, class_name: str, path: str, context: int | None = None) -> None:
        super().__init__()
        if context is not None and context < 1:
            raise UserError(f"context is {context}; a latent frame needs at least 1 latent frame of the past")
        self.class_name = class_name
        self.path = path
        model = _load(class_name, path)
        codec = CODECS[class_name]
        self.context = codec.default_context if context is None else context
        self._codec = codec(model, self.context)
        self.temporal_stride, self.spatial_stride, self.latent_channels = self._codec.geometry()
        self.model = model.eval().requires_grad_(False)
        self.latent_mean: Tensor
        self.latent_std: Tensor
        mean_C, std_C = self._codec.statistics()
        # from the configuration, not from the weights: another file of weights must not change them
        self.register_buffer("latent_mean", mean_C[:, None, None, None].float(), persistent=False)
        self.register_buffer("latent_std", std_C[:, None, None, None].float(), persistent=False)

    @property
    def spec(self) -> dict[str, object]:
        """{class_path, init_args} that builds the same autoencoder."""
        return {"class_path": type(self).__name__, "init_args": {"class_name": self.class_name, "path": self.path, "context": self.context}}

    def train(self, mode: bool = True) -> DiffusersAutoencoder:
        """Stays in evaluation mode: it is frozen."""
        return super().train(False)

    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        """See `Autoencoder.encode`: the posterior mean, normalised.

        Raises:
            ValueError: the clip breaks T = stride * n + 1, or height or width is not a multiple of the spatial stride.
        """
        self.num_latents(frames_BCTHW.shape[2])
        height, width = frames_BCTHW.shape[-2:]
        if height % self.spatial_stride or width % self.spatial_stride:
            raise ValueError(f"frames of {height}x{width} pixels do not divide by the spatial stride {self.spatial_stride}; resize or crop them")
        raw = self._codec.encode(frames_BCTHW.to(self.model.dtype))
        return ((raw.to(frames_BCTHW) - self.latent_mean) / self.latent_std).transpose(1, 2)

    def decode(self, latents_BFCHW: Tensor) -> Tensor:
        """See `Autoencoder.decode`."""
        return self.decode_stream(latents_BFCHW)[0]

    def decode_stream(self, latents_BFCHW: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState | None]:
        """See `Autoencoder.decode_stream`."""
        raw_BCFHW = (latents_BFCHW.transpose(1, 2) * self.latent_std + self.latent_mean).to(self.model.dtype)
        frames = []
        for raw_BC1HW in raw_BCFHW.split(1, dim=2):
            piece, state = self._codec.decode_next(raw_BC1HW, state)
            frames.append(piece)
        return torch.cat(frames, dim=2).to(latents_BFCHW).clamp(-1.0, 1.0), state


def _load(class_name: str, path: str) -> Any:
    if class_name not in CODECS:
        raise UserError(f"class_name {class_name!r} is not a video autoencoder that is known here.{did_you_mean(class_name, CODECS)}")
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a folder of a diffusers model: config.json is not there. Download the model and give its `vae` folder.")
    try:
        import diffusers
    except ImportError:
        raise UserError("DiffusersAutoencoder needs the diffusers library: pip install 'flowact[hf]'") from None
    cls = getattr(diffusers, class_name)
    found = cls.load_config(str(folder), local_files_only=True).get("_class_name")
    if found != class_name:
        raise UserError(f"{folder} holds a model of class {found}, class_name is {class_name}; give the class of the folder")
    if torch.get_default_device().type == "meta":  # its shape is asked for (`flowact plan`), and the weights may not be there yet
        return cls.from_config(cls.load_config(str(folder), local_files_only=True))
    return cls.from_pretrained(str(folder), local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False)
