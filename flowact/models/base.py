"""Denoisers. Legend: flowact/types.py."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from flowact.types import ConditionTokens, MemoryFeatures, WindowLayout


class Denoiser(nn.Module, ABC):
    """A network that predicts the velocity v = eps - x0 of the stream's frames, each at its own noise level.

    Memory never sees the stream, so its keys and values may be computed once and handed to any number of evaluations. Law: what is handed in
    changes nothing but the time.
    """

    latent_channels: int
    text_width: int
    audio_width: int
    #: audio features of a latent frame that the network is made for; None if any number will do
    audio_per_latent: int | None = None
    #: patterns of the names of parameters that nothing but sound passes through
    audio_parameters: tuple[str, ...] = ("audio_in.*", "pooled_audio_in.*", "*.audio.*")
    #: whether `encode_memory` works
    reuses_memory: bool = False
    #: whether `ConditionTokens.guidance_BG` has an effect, or can learn to have one
    takes_guidance: bool = False

    @abstractmethod
    def forward(
        self, latents_BFCHW: Tensor, sigma_BF: Tensor, conditions: ConditionTokens, layout: WindowLayout, memory: MemoryFeatures | None = None
    ) -> Tensor:
        """Velocity [B, stream frames, C, H, W].

        Args:
            latents_BFCHW: the whole window in layout order, memory frames clean; with `memory` the stream's frames alone.
            sigma_BF: noise level of each of these frames in [0, 1], float32 whatever the latents are; 0 for memory.
            conditions: text per segment and audio per frame, of the same segments and frames.
            layout: the geometry of the whole window.
            memory: what `encode_memory` made of the layout's memory segments; None computes memory with the stream.

        Raises:
            ValueError: latents, levels or conditions do not fit the layout.
        """

    def encode_memory(self, latents_BFCHW: Tensor, conditions: ConditionTokens, layout: WindowLayout) -> MemoryFeatures:
        """Features of clean memory for any number of evaluations in front of it.

        Args:
            latents_BFCHW: clean latents of all memory frames.
            conditions: text per segment and audio per frame.
            layout: memory segments only. With isolated visibility the features of several layouts may be joined in the order of their segments.

        Raises:
            NotImplementedError: this denoiser keeps nothing (`reuses_memory` is False).
            ValueError: the layout holds a stream segment, or the parts do not fit it.
        """
        raise NotImplementedError(f"{type(self).__name__} computes memory anew with each evaluation")


def check_window(
    latents_BFCHW: Tensor,
    sigma_BF: Tensor,
    conditions: ConditionTokens,
    layout: WindowLayout,
    kept_memory: bool = False,
    denoiser: Denoiser | None = None,
) -> None:
    """Refuse a window whose parts disagree about the geometry, or do not fit the network.

    Args:
        latents_BFCHW: see `Denoiser.forward`.
        sigma_BF: see `Denoiser.forward`.
        conditions: see `Denoiser.forward`.
        layout: see `Denoiser.forward`.
        kept_memory: the parts cover the stream only.
        denoiser: whose channels and widths are compared too; None compares the geometry alone.

    Raises:
        ValueError: names the part, its size and the size that the layout asks for.
    """
    num_frames, num_segments = layout.num_frames, len(layout.segments)
    if kept_memory:
        num_frames, num_segments = layout.num_stream_frames, num_segments - layout.num_memory_segments
    sizes = {
        "latents frames": (latents_BFCHW.shape[1], num_frames),
        "noise levels": (sigma_BF.shape[1], num_frames),
        "audio frames": (conditions.audio_BFAD.shape[1], num_frames),
        "text segments": (conditions.text_BSLD.shape[1], num_segments),
    }
    wrong = [f"{name}: {got}, layout has {want}" for name, (got, want) in sizes.items() if got != want]
    if denoiser is not None:
        audio_per_latent = conditions.audio_BFAD.shape[2]
        made_for = {
            "latent channels": (latents_BFCHW.shape[2], denoiser.latent_channels),
            "text width": (conditions.text_BSLD.shape[-1], denoiser.text_width),
            "audio width": (conditions.audio_BFAD.shape[-1], denoiser.audio_width),
            "audio features per latent frame": (audio_per_latent, denoiser.audio_per_latent or audio_per_latent),
        }
        wrong += [f"{name}: {got}, {type(denoiser).__name__} was made for {want}" for name, (got, want) in made_for.items() if got != want]
    if kept_memory and not layout.visibility.causal:
        wrong.append("memory features were handed in, but with full visibility memory depends on the stream")
    if wrong:
        raise ValueError(f"the window does not fit its layout ({', '.join(s.kind for s in layout.segments)}): {'; '.join(wrong)}")


def check_memory_layout(latents_BFCHW: Tensor, conditions: ConditionTokens, layout: WindowLayout) -> None:
    """Refuse a memory whose parts disagree, or a layout with stream segments; see `Denoiser.encode_memory`.

    Raises:
        ValueError: as `check_window`, or the layout holds a stream segment.
    """
    if layout.num_stream_frames or not layout.visibility.causal:
        raise ValueError("memory alone can be encoded only under a causal layout of memory segments; use layout.memory of a causal layout")
    check_window(latents_BFCHW, latents_BFCHW.new_zeros(latents_BFCHW.shape[:2]), conditions, layout)
