"""Training stages: one LightningModule per stage."""

from flowact.stages.autoencoder import AutoencoderTraining
from flowact.stages.base import AdamW, DenoiserStage, Stage
from flowact.stages.diffusion_forcing import ChunkwiseDiffusionForcing
from flowact.stages.pretraining import FlowMatchingPretraining
from flowact.stages.self_forcing import SelfForcing
from flowact.stages.step_distillation import StepDistillation

__all__ = [
    "AdamW",
    "AutoencoderTraining",
    "ChunkwiseDiffusionForcing",
    "DenoiserStage",
    "FlowMatchingPretraining",
    "SelfForcing",
    "Stage",
    "StepDistillation",
]
