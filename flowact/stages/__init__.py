"""Training stages: one LightningModule per stage."""

from flowact.stages.audio_motion import AudioMotionAlignment
from flowact.stages.autoencoder import AutoencoderTraining
from flowact.stages.base import AdamW, DenoiserStage, Stage
from flowact.stages.cfg_distillation import CFGDistillation
from flowact.stages.consistency_distillation import ConsistencyDistillation
from flowact.stages.diffusion_forcing import ChunkwiseDiffusionForcing
from flowact.stages.distribution_matching import DistributionMatching
from flowact.stages.pretraining import FlowMatchingPretraining
from flowact.stages.roles import Role, SeveralRoles
from flowact.stages.self_forcing import SelfForcing
from flowact.stages.step_distillation import StepDistillation

__all__ = [
    "AdamW",
    "AudioMotionAlignment",
    "AutoencoderTraining",
    "CFGDistillation",
    "ChunkwiseDiffusionForcing",
    "ConsistencyDistillation",
    "DenoiserStage",
    "DistributionMatching",
    "FlowMatchingPretraining",
    "Role",
    "SelfForcing",
    "SeveralRoles",
    "Stage",
    "StepDistillation",
]
