"""Networks that attend over a window of sound, run block by block. Axes: T video frames, K blocks, S samples, D feature width."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from flowact.conditioning.base import AudioEncoder, check_samples
from flowact.errors import UserError
from flowact.types import SAMPLES_PER_FRAME


class BlockwiseAudio(AudioEncoder):
    """Encodes each block of frames together with the frames before it and with nothing after it.

    So training on whole clips and a live session that asks block by block hear exactly the same; the price is one run per block.
    Blocks are counted from the clip's start, and silence stands before it.

    Args:
        block_frames: video frames encoded together.
        context_frames: video frames of past given with each block, a multiple of `block_frames`.
        window_frames: the most that the network takes at once; None if there is no limit.

    Raises:
        UserError: sizes that do not fit each other or the window.
    """

    def __init__(self, block_frames: int, context_frames: int, window_frames: int | None = None) -> None:
        fits = block_frames >= 1 and context_frames >= 0 and (window_frames is None or block_frames + context_frames <= window_frames)
        if not fits or context_frames % block_frames:
            limit = "" if window_frames is None else f", and both together at most the {window_frames} frames of this model's window"
            raise UserError(
                f"block_frames = {block_frames} with context_frames = {context_frames} does not work: the block must be at least 1 frame, "
                f"context must be a multiple of the block{limit}; for example block_frames=12 context_frames=120"
            )
        self._block = block_frames
        self._context = context_frames
        self._device = torch.device("cpu")

    @property
    def lookahead_frames(self) -> int:
        return self._block - 1

    @property
    def context_frames(self) -> int:
        """Past that the first frames of a block and the last depend on: the context, and the block itself. A multiple of the block."""
        return self._context + self._block

    def to(self, device: torch.device | str) -> Self:
        """See `ConditioningEncoder.to`."""
        self._device = torch.device(device)
        return self

    @torch.no_grad()
    def encode(self, samples: Tensor) -> Tensor:
        samples = check_samples(samples)
        num_frames = samples.shape[0] // SAMPLES_PER_FRAME
        if num_frames == 0:
            return samples.new_zeros(0, self.width)
        network = self._network.to(self._device)
        num_blocks = math.ceil(num_frames / self._block)
        past = self._context * SAMPLES_PER_FRAME
        tail = (num_blocks * self._block - num_frames) * SAMPLES_PER_FRAME
        padded = functional.pad(samples[: num_frames * SAMPLES_PER_FRAME], (past, tail))
        span = (self._context + self._block) * SAMPLES_PER_FRAME
        windows_KS = padded.unfold(0, span, self._block * SAMPLES_PER_FRAME)
        blocks = [self._encode_window(network, window_S)[self._context :][: self._block].float() for window_S in windows_KS]
        return torch.cat(blocks)[:num_frames].to(samples.device)

    @property
    @abstractmethod
    def _network(self) -> Any:
        """The frozen network, a `torch.nn.Module`."""

    @abstractmethod
    def _encode_window(self, network: Any, window_S: Tensor) -> Tensor:
        """Features [T, D] of each video frame of one window, on the network's device; further rows are ignored."""
