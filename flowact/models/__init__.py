"""Denoisers."""

from flowact.models.adapters import Adapter, FullFinetune, LoRA
from flowact.models.base import Denoiser
from flowact.models.formats import Addition, WeightFormat
from flowact.models.mmdit import MMDiT

__all__ = ["Adapter", "Addition", "Denoiser", "FullFinetune", "LoRA", "MMDiT", "WeightFormat"]
