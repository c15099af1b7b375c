"""Conditioning encoders: what a user gives (text, sound, a picture) to features of fixed width. Legend: flowact/types.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from flowact.errors import UserError


class ConditioningEncoder(ABC):
    """Frozen features of one condition. Data tools run it once per shard; the live session runs the same object.

    An encoder is named in shards and checkpoints by its class and constructor arguments, so features of another encoder are never mixed in.
    """

    @property
    @abstractmethod
    def width(self) -> int:
        """Feature width D."""

    def to(self, device: torch.device | str) -> Self:
        """Run the encoder's network, if it has a large one, on this device from now on; without a call it is the CPU.

        Features come back on the CPU (text) or where the sound is (audio), wherever they were made.
        """
        return self


class TextEncoder(ConditioningEncoder):
    """Captions to token features."""

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Tokens L per caption; shorter captions are padded with zeros."""

    @abstractmethod
    def encode(self, captions: Sequence[str]) -> Tensor:
        """Features text_NLD, float32, of N captions. An empty caption gives zeros ("no text")."""


class AudioEncoder(ConditioningEncoder):
    """Sound to features at 25 Hz, one per video frame (FlowAct-R1 aligns audio tokens with frames one to one)."""

    @property
    def lookahead_frames(self) -> int:
        """Video frames of future sound that a feature depends on; counted in the latency budget."""
        return 0

    @property
    def context_frames(self) -> int:
        """Video frames of past sound that a feature depends on; a live session keeps that much."""
        return 0

    @abstractmethod
    def encode(self, samples: Tensor) -> Tensor:
        """Features audio_TD, float32, of a mono waveform in [-1, 1] at 16 kHz; T = samples // 640.

        Raises:
            ValueError: samples are not one-dimensional or not finite.
        """


def check_captions(captions: Sequence[str]) -> None:
    """Refuse a single string, which is a sequence of strings too."""
    if isinstance(captions, str):
        raise UserError(f"encode takes a list of captions, got the single string {captions!r}; write [{captions!r}]")


def check_samples(samples: Tensor) -> Tensor:
    """The waveform as float32, or an error that says what is wrong with it."""
    if samples.ndim != 1:
        raise ValueError(f"audio must be mono and one-dimensional, got shape {tuple(samples.shape)}; average the channels first")
    samples = samples.float()
    if not torch.isfinite(samples).all():
        raise ValueError("audio holds NaN or infinite samples; decode it again or replace them by silence")
    return samples
