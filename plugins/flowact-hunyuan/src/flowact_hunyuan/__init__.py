"""HunyuanVideo and HunyuanVideo-1.5 as denoisers, and the formats of their weights."""

from flowact_hunyuan.formats import HunyuanVideo15Diffusers, HunyuanVideoDiffusers
from flowact_hunyuan.video import HunyuanVideoDenoiser
from flowact_hunyuan.video15 import HunyuanVideo15Denoiser

__all__ = ["HunyuanVideo15Denoiser", "HunyuanVideo15Diffusers", "HunyuanVideoDenoiser", "HunyuanVideoDiffusers"]
