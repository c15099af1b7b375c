"""The adversarial loss of DMD2: a head on the fake score tells the student's clips from real ones. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from flowact.models.base import Denoiser
from flowact.models.windowed import WindowDenoiser


@dataclass(frozen=True)
class Adversarial:
    """Weights of the adversarial loss (Yin et al. 2024, DMD2, section 4.3); 0 and 0 is off.

    Attributes:
        student: of the generator loss in the student's loss. The paper takes 5e-3 for SDXL and 3e-3 for ImageNet.
        critic: of the critic loss in the fake score's. The paper takes 1e-2 and 3e-3.
        blocks: numbers of the fake score's blocks that the head listens to; none named is the one in the middle and the last.

    Raises:
        ValueError: a negative weight, or only one of the two above 0.
    """

    student: float = 0.0
    critic: float = 0.0
    blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.student < 0 or self.critic < 0 or (self.student > 0) != (self.critic > 0):
            raise ValueError(
                f"adversarial.student is {self.student} and adversarial.critic {self.critic}: set both above 0, since the student learns from a head "
                "that the critic loss trains, or both to 0 for no adversarial loss"
            )

    @property
    def is_on(self) -> bool:
        return self.student > 0


class ScoreWithHead(nn.Module):
    """A fake score, and a head that says of each latent frame how real it looks.

    The head sees the visual tokens that leave some of the score's blocks; its last maps start at zero, so at first it cannot tell. It is evaluated
    inside of the score's evaluation, so that both are one network to an engine.

    Args:
        score: the fake score.
        blocks: see `Adversarial.blocks`.

    Raises:
        ValueError: a score without blocks to listen to, or a number that is none of them.
    """

    def __init__(self, score: Denoiser, blocks: Sequence[int] = ()) -> None:
        super().__init__()
        if not isinstance(score, WindowDenoiser):
            raise ValueError(
                f"{type(score).__name__} has no blocks that an adversarial head could listen to; use a denoiser derived from WindowDenoiser, "
                "or set adversarial.student and adversarial.critic to 0"
            )
        count = len(score.blocks)
        chosen = tuple(blocks) or tuple(sorted({(count - 1) // 2, count - 1}))
        if wrong := [block for block in chosen if not 0 <= block < count]:
            raise ValueError(f"adversarial.blocks names {wrong}; {type(score).__name__} has the blocks 0 to {count - 1}")
        _, num_heads, head_width = score.kept_shape
        self.score = score
        self.blocks = chosen
        self.heads = nn.ModuleList(_head(num_heads * head_width) for _ in chosen)
        self._logits_BF: Tensor | None = None

    def forward(self, *arguments: Any, **options: Any) -> Tensor:
        """See `Denoiser.forward`; the logits of the same evaluation wait in `take_logits`."""
        heard: dict[int, Tensor] = {}
        hooks = [self.score.blocks[block].register_forward_hook(_Listener(heard, block)) for block in self.blocks]
        try:
            velocity = self.score(*arguments, **options)
        finally:
            for hook in hooks:
                hook.remove()
        frames = velocity.shape[1]
        logits = [head(heard[block][:, -frames:]).mean(dim=(2, 3)) for head, block in zip(self.heads, self.blocks, strict=True)]
        self._logits_BF = torch.stack(logits).mean(0).float()
        return velocity

    def take_logits(self) -> Tensor:
        """logits_BF of the stream's frames in the last evaluation, above 0 for "real"; they are handed out once."""
        if self._logits_BF is None:
            raise RuntimeError("there was no evaluation since the logits were last taken")
        logits_BF, self._logits_BF = self._logits_BF, None
        return logits_BF


class _Listener:
    """Keeps the visual tokens [B, F, L, D] of a block's output: the last of the streams, see `flowact.models.blocks`."""

    def __init__(self, heard: dict[int, Tensor], block: int) -> None:
        self.heard = heard
        self.block = block

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        streams, _ = output
        self.heard[self.block] = streams[-1]


def _head(width: int) -> nn.Sequential:
    last = nn.Linear(width, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), last)


def critic_loss(made_BF: Tensor, real_BF: Tensor) -> Tensor:
    """softplus(D(made)) + softplus(-D(real)), the mean over frames: least where the head tells them apart."""
    return nnf.softplus(made_BF).mean() + nnf.softplus(-real_BF).mean()


def generator_loss(made_BF: Tensor) -> Tensor:
    """softplus(-D(made)), the mean over frames: least where the head takes them for real."""
    return nnf.softplus(-made_BF).mean()
