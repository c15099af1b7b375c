"""Denoisers. Legend: flowact/types.py."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from flowact.types import ConditionTokens, WindowLayout


class Denoiser(nn.Module, ABC):
    """A network that predicts the velocity v = eps - x0 of the stream's frames, each at its own noise level."""

    latent_channels: int
    text_width: int
    audio_width: int

    @abstractmethod
    def forward(self, latents_BFCHW: Tensor, sigma_BF: Tensor, conditions: ConditionTokens, layout: WindowLayout) -> Tensor:
        """Velocity [B, stream frames, C, H, W].

        Args:
            latents_BFCHW: the whole window in layout order; memory frames are clean.
            sigma_BF: noise level of each frame in [0, 1], float32 whatever the latents are; 0 for memory.
            conditions: text per segment and audio per frame of the layout.
            layout: the window's geometry.

        Raises:
            ValueError: latents, levels or conditions do not fit the layout.
        """


def check_window(latents_BFCHW: Tensor, sigma_BF: Tensor, conditions: ConditionTokens, layout: WindowLayout) -> None:
    """Refuse a window whose parts disagree about the geometry.

    Raises:
        ValueError: names the part, its size and the size that the layout asks for.
    """
    num_frames, num_segments = layout.num_frames, len(layout.segments)
    sizes = {
        "latents frames": (latents_BFCHW.shape[1], num_frames),
        "noise levels": (sigma_BF.shape[1], num_frames),
        "audio frames": (conditions.audio_BFAD.shape[1], num_frames),
        "text segments": (conditions.text_BSLD.shape[1], num_segments),
    }
    wrong = [f"{name}: {got}, layout has {want}" for name, (got, want) in sizes.items() if got != want]
    if wrong:
        raise ValueError(f"the window does not fit its layout ({', '.join(s.kind for s in layout.segments)}): {'; '.join(wrong)}")
