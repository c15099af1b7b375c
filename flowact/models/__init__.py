"""Denoisers."""

from flowact.models.base import Denoiser
from flowact.models.mmdit import MMDiT

__all__ = ["Denoiser", "MMDiT"]
