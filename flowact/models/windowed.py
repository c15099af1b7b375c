"""What denoisers over windows share: the window that an evaluation computes, and memory that is encoded before. Legend: flowact/types.py."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowact.models.attention import KeyValue
from flowact.models.base import Denoiser, check_memory_layout, check_window
from flowact.models.blocks import Geometry
from flowact.models.embeddings import level_code
from flowact.types import ConditionTokens, MemoryFeatures, Segment, WindowLayout

Reference = Literal["segment", "channels"]


@dataclass(frozen=True)
class Window:
    """What one evaluation computes: the whole window, or the stream alone in front of memory that was encoded before.

    Attributes:
        latents_BFCHW: of the computed frames.
        sigma_BF: of the computed frames.
        conditions: of the computed segments and frames.
        layout: of the whole window.
        memory: what was encoded before, or None.
        reference_BFCHW: the reference that is laid beside every frame, or None.
    """

    latents_BFCHW: Tensor
    sigma_BF: Tensor
    conditions: ConditionTokens
    layout: WindowLayout
    memory: MemoryFeatures | None = None
    reference_BFCHW: Tensor | None = None

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The computed segments."""
        return self.layout.segments if self.memory is None else self.layout.segments[self.layout.num_memory_segments :]

    @property
    def frame_segments(self) -> list[int]:
        """Index into `segments` of each computed frame."""
        return [i for i, segment in enumerate(self.segments) for _ in range(segment.num_frames)]

    def guidance(self, embeddings: Iterable[nn.Module]) -> Tensor:
        """Modulation [B, F, D] by the guidance scales that are asked for, one embedding per scale; zero for memory, and where none is asked for."""
        embeddings = list(embeddings)
        dtype = next(embeddings[0].parameters()).dtype
        scales_BG = self.conditions.guidance_BG
        if scales_BG is None:
            return torch.zeros((), dtype=dtype, device=self.sigma_BF.device)
        # a scale of 10 stands where noise level 1 stands: the code tells apart what lies between
        codes = [embed(level_code(scale_B / 10.0).to(dtype)) for embed, scale_B in zip(embeddings, scales_BG.unbind(1), strict=True)]
        streaming_F = torch.tensor([not self.segments[s].is_memory for s in self.frame_segments], device=self.sigma_BF.device)
        return torch.stack(codes).sum(0)[:, None] * streaming_F[:, None]

    @property
    def input_BFCHW(self) -> Tensor:
        """What the first layer sees: latents, and beside them the clean copy and the mask if there is a reference to lay there."""
        if self.reference_BFCHW is None:
            return self.latents_BFCHW
        clean = torch.tensor([self.segments[s].is_memory for s in self.frame_segments], device=self.latents_BFCHW.device)[:, None, None, None]
        copy_BFCHW = torch.where(clean, self.latents_BFCHW, self.reference_BFCHW)
        mask = clean.to(copy_BFCHW.dtype).expand_as(copy_BFCHW[:, :, :1])
        return torch.cat([self.latents_BFCHW, copy_BFCHW, mask], dim=2)

    def with_reference_beside(self) -> Window:
        """The window whose reference segment became channels beside all other frames; zeros where there is none."""
        kinds = [self.segments[s].kind for s in self.frame_segments]
        others = [i for i, kind in enumerate(kinds) if kind != "reference"]
        own = [i for i, kind in enumerate(kinds) if kind == "reference"]
        reference = self.latents_BFCHW[:, own[-1:]] if own else torch.zeros_like(self.latents_BFCHW[:, :1])
        if self.memory is not None and self.memory.reference_BFCHW is not None:
            reference = self.memory.reference_BFCHW[:, -1:]
        texts = [i for i, segment in enumerate(self.segments) if segment.kind != "reference"]
        conditions = replace(self.conditions, text_BSLD=self.conditions.text_BSLD[:, texts], audio_BFAD=self.conditions.audio_BFAD[:, others])
        layout = replace(self.layout, segments=tuple(segment for segment in self.layout.segments if segment.kind != "reference"))
        return Window(self.latents_BFCHW[:, others], self.sigma_BF[:, others], conditions, layout, self.memory, reference)


class WindowDenoiser(Denoiser):
    """A denoiser that turns windows into tokens and runs blocks over them; a subclass says how.

    Attributes:
        reference: the reference picture is a memory segment of its own tokens ("segment"), or is laid beside every frame ("channels").
        blocks: the transformer blocks, in order.
        clean_copies: memory frames have their own clean copy beside them even where the reference is a segment; stream frames have zeros.
    """

    reuses_memory = True
    reference: Reference
    blocks: Any
    clean_copies: bool = False

    def compile_blocks(self, **options: Any) -> None:
        """Compile each block by itself at its first use: whole, and for fixed shapes.

        Args:
            options: of torch.compile.
        """
        for block in self.blocks:
            block.compile(fullgraph=True, dynamic=False, **options)

    @property
    @abstractmethod
    def kept_shape(self) -> tuple[int, int, int]:
        """Attention layers, heads and head width: what is kept of a token of memory."""

    @abstractmethod
    def frame_vector(self, window: Window) -> Tensor:
        """The modulation vector [B, F, D] of each computed latent frame."""

    @abstractmethod
    def transform(self, window: Window, vector_BFD: Tensor, keep: bool = False) -> tuple[Tensor, list[KeyValue], Geometry]:
        """Visual tokens [B, F, L, D] after all blocks; with `keep` also each layer's keys and values; and what the blocks shared."""

    @abstractmethod
    def velocity(self, visual_BFLD: Tensor, vector_BFD: Tensor, latents_BFCHW: Tensor, sigma_BF: Tensor) -> Tensor:
        """Velocity [B, F, C, H, W], float32, of the stream's frames from their tokens."""

    def lay_beside(self, window: Window) -> Window:
        """The window with what lies beside its latents."""
        if self.reference == "channels":
            return window.with_reference_beside()
        return replace(window, reference_BFCHW=torch.zeros_like(window.latents_BFCHW[:, :1])) if self.clean_copies else window

    def forward(
        self, latents_BFCHW: Tensor, sigma_BF: Tensor, conditions: ConditionTokens, layout: WindowLayout, memory: MemoryFeatures | None = None
    ) -> Tensor:
        """See `Denoiser.forward`. Latents and conditions may be of another number type than the weights; the velocity is float32."""
        check_window(latents_BFCHW, sigma_BF, conditions, layout, memory is not None, self)
        window = self.lay_beside(Window(latents_BFCHW, sigma_BF, conditions, layout, memory))
        vector_BFD = self.frame_vector(window)
        visual_BFLD, _, _ = self.transform(window, vector_BFD)
        stream = slice(-layout.num_stream_frames, None)
        return self.velocity(visual_BFLD[:, stream], vector_BFD[:, stream], latents_BFCHW[:, stream], sigma_BF[:, stream])

    def encode_memory(self, latents_BFCHW: Tensor, conditions: ConditionTokens, layout: WindowLayout) -> MemoryFeatures:
        """See `Denoiser.encode_memory`."""
        check_memory_layout(latents_BFCHW, conditions, layout)
        reference = None
        if self.reference == "channels":
            frames = [i for i, segment in enumerate(layout.frame_segments) if layout.segments[segment].kind == "reference"]
            reference = latents_BFCHW[:, frames] if frames else None
            if len(frames) == layout.num_frames:  # they have no tokens
                layers, *heads = self.kept_shape
                nothing = (latents_BFCHW.new_zeros(latents_BFCHW.shape[0], 0, *heads),) * layers
                return MemoryFeatures(nothing, nothing, reference, None, (0,) * len(layout.segments))
        clean = latents_BFCHW.new_zeros(latents_BFCHW.shape[:2], dtype=torch.float32)
        window = self.lay_beside(Window(latents_BFCHW, clean, conditions, layout))
        _, kept, geometry = self.transform(window, self.frame_vector(window), keep=True)
        lengths = geometry.entry_lengths(layout.segments, self.reference == "channels")
        return MemoryFeatures(tuple(key for key, _ in kept), tuple(value for _, value in kept), reference, geometry.key_mask_BL, lengths)
