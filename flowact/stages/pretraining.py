"""Base pretraining: flow matching under full visibility (FlowAct-R1, Figure 2, first panel; SD3 for levels). Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence

from flowact.conditioning.dropout import ConditionDropout
from flowact.memory.none import NoMemory
from flowact.models.adapters import Adapter
from flowact.models.base import Denoiser
from flowact.schedulers.base import NoiseScheduler
from flowact.schedulers.flow import LogitNormalLevel
from flowact.stages.base import AdamW, DenoiserStage
from flowact.types import FULL_VISIBILITY


class FlowMatchingPretraining(DenoiserStage):
    """The base model: a clip at one noise level, every frame sees every frame, the reference among them.

        x_sigma = (1 - sigma) x0 + sigma eps,   loss = | v(x_sigma, sigma) - (eps - x0) |^2

    Args:
        denoiser: the trained network.
        levels: one level per sample; the default is logit normal.
        chunk_frames: latent frames that share a caption.
        num_chunks: chunks of a clip.
        dropout: condition dropout.
        optimizer: optimizer and schedule.
        allow_lineage: see `DenoiserStage`.
        adapter: see `DenoiserStage`.
    """

    name = "pretraining"

    def __init__(
        self,
        denoiser: Denoiser,
        levels: NoiseScheduler | None = None,
        chunk_frames: int = 3,
        num_chunks: int = 4,
        dropout: ConditionDropout | None = None,
        optimizer: AdamW | None = None,
        allow_lineage: Sequence[str] = (),
        adapter: Adapter | None = None,
    ) -> None:
        levels = levels or LogitNormalLevel()
        super().__init__(denoiser, NoMemory(), levels, chunk_frames, num_chunks, dropout, FULL_VISIBILITY, optimizer, allow_lineage, adapter)
