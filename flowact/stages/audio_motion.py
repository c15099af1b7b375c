"""Audio-motion alignment: the stream learns to move with what it hears (FlowAct-R1, Figure 2, third panel). Legend: flowact/types.py."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from flowact.errors import UserError
from flowact.memory.base import MemoryBank
from flowact.memory.corruptors import GroundTruthMemory, MemoryCorruptor
from flowact.models.base import Denoiser
from flowact.schedulers.base import NoiseScheduler
from flowact.stages.self_forcing import SelfForcing
from flowact.types import BOXES, Batch


class AudioMotionAlignment(SelfForcing):
    """Diffusion forcing that looks harder at the mouth and the face, and lets the parameters of sound learn first.

        loss = mean over the stream's frames of  sum_hw w_hw | v - (eps - x0) |^2 / sum_hw w_hw,
        w_hw = 1 + face * (share of cell hw inside the face's box) + mouth * (share inside the mouth's)
        in the first `audio_warmup` steps only the parameters of sound move; then all do, with a warm-up of their own

    The paper names the stage and its place; that sound enters here, the audio dropout, the warm-up (OmniHuman-1.5) and the weights are options.

    Args:
        denoiser: the trained network. The checkpoint of `init_from` may lack its parameters of sound; they start as they were made.
        corruptor: what happens to history before it is written to memory; the default leaves it clean.
        face: how much more a latent cell counts inside the face's box, 0 or more. Above 0 the data module must read boxes (`data.boxes: true`).
        mouth: likewise inside the mouth's box, on top of the face's.
        audio_warmup: optimizer steps in which the parameters of sound alone are trained; the others stay bit for bit what they were.
        options: the other arguments of `SelfForcing`.

    Raises:
        ValueError: a negative weight or number of steps.
        UserError: from `setup`: weights without boxes, a warm-up that leaves no step, or a denoiser without trainable parameters of sound.
    """

    name = "audio_motion"

    def __init__(
        self,
        denoiser: Denoiser,
        memory: MemoryBank | None = None,
        levels: NoiseScheduler | None = None,
        *,
        corruptor: MemoryCorruptor | None = None,
        face: float = 0.0,
        mouth: float = 0.0,
        audio_warmup: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, memory, levels, corruptor=corruptor or GroundTruthMemory(), **options)
        for name, value in (("face", face), ("mouth", mouth), ("audio_warmup", audio_warmup)):
            if value < 0:
                raise ValueError(f"{name} is {value}; it is 0 or more")
        self.weights = dict(zip(BOXES, (face, mouth), strict=True))
        self.audio_warmup = audio_warmup
        self.parent_may_lack = denoiser.audio_parameters

    def setup(self, stage: str) -> None:
        """See `DenoiserStage.setup`."""
        super().setup(stage)
        if any(self.weights.values()) and not getattr(self._data(), "boxes", False):
            raise UserError(
                f"the loss is weighted inside boxes ({self.weights}) that the data do not carry: set data.boxes to true, or both weights to 0"
            )
        if stage == "fit" and self.audio_warmup:
            if self.audio_warmup >= self.trainer.max_steps:
                raise UserError(
                    f"audio_warmup is {self.audio_warmup} of trainer.max_steps {self.trainer.max_steps} steps, so motion would never be trained; "
                    "lower it, or train longer"
                )
            if not self.parameters_of_sound():
                raise UserError(
                    f"audio_warmup is {self.audio_warmup}, but no trainable parameter of {type(self.denoiser).__name__} is named like one of "
                    f"{', '.join(self.denoiser.audio_parameters)}; set audio_warmup to 0, or train the parameters of sound too"
                )

    def parameters_of_sound(self) -> list[str]:
        """Names of trainable parameters that nothing but sound passes through."""
        patterns = self.denoiser.audio_parameters
        trained = (name for name, parameter in self.denoiser.named_parameters() if parameter.requires_grad)
        return [name for name in trained if any(fnmatchcase(name, pattern) for pattern in patterns)]

    def configure_optimizers(self) -> Any:
        """See `Stage.configure_optimizers`; before `audio_warmup` the rate of everything but sound is 0."""
        sound = self.parameters_of_sound() if self.audio_warmup else []
        total_steps = self.trainer.max_steps
        optimizer = self.optimizer.build(self.denoiser, apart=sound)
        heard = {id(parameter) for name, parameter in self.denoiser.named_parameters() if name in set(sound)}

        def rate_of_others(step: int) -> float:
            return 0.0 if step < self.audio_warmup else self.optimizer.rate(step - self.audio_warmup, total_steps - self.audio_warmup)

        def rate_of_sound(step: int) -> float:
            return self.optimizer.rate(step, total_steps)

        rates: Any = [rate_of_sound if id(group["params"][0]) in heard else rate_of_others for group in optimizer.param_groups]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def frame_error(self, squared_BFCHW: Tensor, batch: Batch) -> Tensor:
        """Mean squared error of each frame, weighted by `cell_weights` in training."""
        if batch.boxes_BFX4 is None:
            return super().frame_error(squared_BFCHW, batch)
        per_cell = squared_BFCHW.mean(dim=2)
        shares_BFXHW = cell_shares(batch.boxes_BFX4[:, -per_cell.shape[1] :], *per_cell.shape[2:])
        if not self.training:
            inside = shares_BFXHW[:, :, BOXES.index("mouth")]
            mouth = (inside * per_cell).sum() / inside.sum().clamp_min(torch.finfo(torch.float32).tiny)
            self.log("val/loss_mouth", mouth, sync_dist=True, batch_size=len(per_cell))
            return super().frame_error(squared_BFCHW, batch)
        extra = torch.tensor([self.weights[name] for name in BOXES], device=per_cell.device)
        weights = 1 + (extra[:, None, None] * shares_BFXHW).sum(dim=2)
        return (weights * per_cell).sum(dim=(2, 3)) / weights.sum(dim=(2, 3))


def cell_shares(boxes_BFX4: Tensor, height: int, width: int) -> Tensor:
    """Share of each latent cell that lies inside a box, [B, F, X, H, W] in [0, 1]; a box that is not known covers nothing."""
    left, top, right, bottom = torch.nan_to_num(boxes_BFX4.float()).unbind(-1)

    def covered(low: Tensor, high: Tensor, cells: int) -> Tensor:
        edges = torch.arange(cells + 1, device=low.device)
        inside = (torch.minimum(high[..., None] * cells, edges[1:]) - torch.maximum(low[..., None] * cells, edges[:-1])).clamp_min(0)
        return inside

    return covered(top, bottom, height)[..., :, None] * covered(left, right, width)[..., None, :]
