"""Distillation of classifier-free guidance into a student that takes the scales as inputs (FlowAct-R1, distillation). Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowact.conditioning.dropout import ConditionDropout
from flowact.memory.base import MemoryBank
from flowact.models.base import Denoiser
from flowact.sampling.window import gaussian, predict_velocity, split_frames
from flowact.schedulers.base import NoiseScheduler
from flowact.stages.self_forcing import SelfForcing
from flowact.types import Batch, Chunk, MemoryView


class CFGDistillation(SelfForcing):
    """The student learns in one evaluation what the guided teacher needs three for; one scale per condition, each an input of the student.

        w_text ~ U[text],  w_audio ~ U[audio]                                   per sample
        v_w = v(none) + w_text (v(text) - v(none)) + w_audio (v(text, audio) - v(text))       by the teacher, no gradient
        loss = | v_student(x, sigma, text, audio; w_text, w_audio) - v_w |^2

    The convention: a scale multiplies the whole difference, so 1 is no guidance and 0 leaves the condition out; code that writes
    v(with) + s (v(with) - v(without)) means w = 1 + s. The order: text first, then audio given text. With w_text = w_audio = w the middle terms
    cancel and v_w is what `Guidance(w)` extrapolates. Which order and which ranges FlowAct-R1 uses is not stated.

    Args:
        denoiser: the student; it takes guidance scales as inputs (`guidance_embedding: true`), which start without effect. Teacher and student start
            from the checkpoint of `init_from`, whose network need not have them. With a LoRA, `train_also` names the embedding ("guidance_in.*").
        text: least and largest guidance scale for text; 1 lies within.
        audio: least and largest guidance scale for audio; 1 lies within.
        options: the other arguments of `SelfForcing`.

    Raises:
        ValueError: a range that is empty, negative or without 1, or a denoiser that takes no scales.
        UserError: from `initialise_from`: the checkpoint has guidance built in already.
    """

    name = "cfg_distillation"
    parent_may_lack = ("guidance_in.*",)

    def __init__(
        self,
        denoiser: Denoiser,
        memory: MemoryBank | None = None,
        levels: NoiseScheduler | None = None,
        *,
        text: tuple[float, float] = (1.0, 4.0),
        audio: tuple[float, float] = (1.0, 4.0),
        **options: Any,
    ) -> None:
        super().__init__(denoiser, memory, levels, dropout=ConditionDropout(0.0, 0.0), **options)
        if not denoiser.takes_guidance:
            raise ValueError(f"{type(denoiser).__name__} as it is set takes no guidance scales; set denoiser.guidance_embedding to true")
        self.ranges = {"text": _range("text", text), "audio": _range("audio", audio)}

    def lineage(self) -> dict[str, Any]:
        """See `Stage.lineage`; the ranges tell a stream that, and which, scales are inputs."""
        return super().lineage() | {"guidance_ranges": {condition: list(limits) for condition, limits in self.ranges.items()}}

    def draw_scales(self, batch: int) -> Tensor:
        """Scales [B, 2] for (text, audio), each uniform in its range."""
        low, high = torch.tensor(list(self.ranges.values())).unbind(1)
        return low + (high - low) * torch.rand(batch, 2)

    @torch.no_grad()
    def guided_velocity(self, memory: MemoryView, stream: Sequence[Chunk], sigma_BK: Tensor, scales_BG: Tensor) -> Tensor:
        """v_w of the teacher, [B, stream frames, C, H, W]."""
        dropped = torch.ones(len(sigma_BK), dtype=torch.bool, device=sigma_BK.device)
        none, text, both = (
            predict_velocity(self.intermediate.network, memory, stream, sigma_BK, visibility=self.visibility, drop=drop)
            for drop in ((dropped, dropped), (~dropped, dropped), None)
        )
        w_text, w_audio = scales_BG[:, :, None, None, None, None].unbind(1)
        return none + w_text * (text - none) + w_audio * (both - text)

    def flow_matching(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Squared error of the student's velocity against the teacher's guided one; shapes as in `DenoiserStage`."""
        stream = self.stream(batch)
        clean = torch.cat([chunk.latents_BFCHW for chunk in stream], dim=1)
        sigma_BK = self.levels.sample(clean.shape[0], len(stream)).to(clean)
        sigma_BF = sigma_BK.repeat_interleave(self.chunk_frames, dim=1)
        sigma = sigma_BF[:, :, None, None, None]
        noisy = split_frames((1 - sigma) * clean + sigma * gaussian(clean), stream)
        scales_BG = self.draw_scales(clean.shape[0]).to(clean.device)
        memory = self.memory_of(batch)
        target = self.guided_velocity(memory, noisy, sigma_BK, scales_BG)
        velocity = predict_velocity(self.denoiser, memory, noisy, sigma_BK, visibility=self.visibility, scales_BG=scales_BG)
        error_BF = (velocity - target).square().mean(dim=(2, 3, 4))
        return error_BF, sigma_BF, error_BF.mean()


def _range(condition: str, limits: Sequence[float]) -> tuple[float, float]:
    low, high = limits
    if not 0.0 <= low <= high < float("inf"):
        raise ValueError(f"guidance scales for {condition} lie between {low} and {high}; the least is 0 or more and not above the largest")
    if not low <= 1.0 <= high:
        raise ValueError(
            f"guidance scales for {condition} from {low} to {high} leave 1 out: 1 is the model without guidance, where the student starts and what a "
            f"stream asks for by default; set the range to [{min(low, 1.0)}, {max(high, 1.0)}]"
        )
    return float(low), float(high)
