"""Wan as a denoiser for FlowAct."""

from flowact_wan.denoiser import WanDenoiser
from flowact_wan.formats import WanDiffusers

__all__ = ["WanDenoiser", "WanDiffusers"]
