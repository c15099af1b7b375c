"""Sound as it arrives at a live stream: any rate and layout in, mono float32 at 16 kHz out, from a queue that cannot grow without bound."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

import numpy as np

from flowact.errors import UserError
from flowact.types import SAMPLE_RATE

log = logging.getLogger(__name__)

RATES = (4_000, 192_000)


class SoundInput:
    """Converts blocks of one source, keeping the resampler's state between them so that no block begins with a click.

    What is not finite becomes silence and what is too loud is clipped; both are counted and said once.
    """

    def __init__(self) -> None:
        self.num_repaired = 0
        self.num_clipped = 0
        self._averaged = False
        self._rate = SAMPLE_RATE
        self._resampler: Any = None
        self._known_rates: set[int] = set()

    def convert(self, samples: np.ndarray, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
        """Mono float32 in [-1, 1] at 16 kHz.

        Args:
            samples: float in [-1, 1] or int16, [num_samples] or [num_samples, channels].
            sample_rate: of `samples`.

        Raises:
            UserError: another type or shape, or a rate that no microphone has.
        """
        if not RATES[0] <= sample_rate <= RATES[1]:
            raise UserError(f"sound at {sample_rate} samples a second; give {RATES[0]} to {RATES[1]}")
        mono = self._mono(np.asarray(samples))
        finite = np.isfinite(mono)
        if not finite.all():
            self._say_once(self.num_repaired, "sound holds NaN or infinite samples; they are played as silence")
            self.num_repaired += int((~finite).sum())
            mono = np.where(finite, mono, 0.0)
        loud = np.abs(mono) > 1.0
        if loud.any():
            self._say_once(self.num_clipped, f"sound reaches {np.abs(mono).max():.1f} times full scale and is clipped")
            self.num_clipped += int(loud.sum())
            mono = np.clip(mono, -1.0, 1.0)
        return self._resampled(mono.astype(np.float32), sample_rate)

    def flush(self) -> np.ndarray:
        """What the resampler still holds back; call at the end of an utterance. The next one begins with a resampler of its own."""
        held = np.zeros(0, np.float32) if self._resampler is None else self._pulled(None)
        self._rate, self._resampler = SAMPLE_RATE, None
        return held

    def _mono(self, samples: np.ndarray) -> np.ndarray:
        if samples.ndim == 2 and samples.shape[1] <= 32:
            if samples.shape[1] > 1:
                self._say_once(self._averaged, f"sound with {samples.shape[1]} channels is averaged to one")
                self._averaged = True
            return self._scaled(samples).mean(axis=1) if samples.shape[1] else np.zeros(len(samples), np.float32)
        if samples.ndim != 1:
            raise UserError(f"sound is [num_samples] or [num_samples, channels], got shape {samples.shape}")
        return self._scaled(samples)

    @staticmethod
    def _scaled(samples: np.ndarray) -> np.ndarray:
        if samples.dtype == np.int16:
            return samples.astype(np.float32) / 32768.0
        if not np.issubdtype(samples.dtype, np.floating):
            raise UserError(f"sound is float in [-1, 1] or int16, got {samples.dtype}; convert it first")
        return samples

    def _resampled(self, mono: np.ndarray, sample_rate: int) -> np.ndarray:
        if sample_rate != self._rate:
            tail = self.flush()
            self._rate, self._resampler = sample_rate, None
            if sample_rate != SAMPLE_RATE:
                import av

                if sample_rate not in self._known_rates:
                    log.info("sound at %d Hz is resampled to %d Hz", sample_rate, SAMPLE_RATE)
                self._known_rates.add(sample_rate)
                self._resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        else:
            tail = np.zeros(0, np.float32)
        if self._resampler is None or not mono.size:
            return np.concatenate([tail, mono])
        return np.concatenate([tail, self._pulled(mono)])

    def _pulled(self, mono: np.ndarray | None) -> np.ndarray:
        import av

        frame = None
        if mono is not None:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(mono[None]), format="flt", layout="mono")
            frame.sample_rate = self._rate
        blocks = [made.to_ndarray()[0] for made in self._resampler.resample(frame)]
        return np.clip(np.concatenate(blocks), -1.0, 1.0) if blocks else np.zeros(0, np.float32)

    @staticmethod
    def _say_once(already: Any, message: str) -> None:
        if not already:
            log.warning("%s", message)


class SoundQueue:
    """Samples that wait to be spoken.

    Args:
        max_seconds: what fits.
    """

    def __init__(self, max_seconds: float) -> None:
        self.max_samples = round(max_seconds * SAMPLE_RATE)
        self._blocks: deque[np.ndarray] = deque()
        self._num_samples = 0

    def __len__(self) -> int:
        return self._num_samples

    @property
    def seconds(self) -> float:
        return self._num_samples / SAMPLE_RATE

    def push(self, samples: np.ndarray) -> None:
        """Append.

        Raises:
            UserError: it does not fit; nothing of it was taken.
        """
        if self._num_samples + len(samples) > self.max_samples:
            raise UserError(
                f"{self.seconds:.1f} s of sound wait and {len(samples) / SAMPLE_RATE:.1f} s more come; "
                f"at most {self.max_samples / SAMPLE_RATE:g} s fit. Push it as it is spoken, or interrupt first."
            )
        if len(samples):
            self._blocks.append(samples)
            self._num_samples += len(samples)

    def take(self, count: int) -> np.ndarray:
        """Remove and return the first `count` samples, or all there are."""
        taken = self.peek(count)
        left = len(taken)
        while left:
            block = self._blocks.popleft()
            if len(block) > left:
                self._blocks.appendleft(block[left:])
            left -= min(left, len(block))
        self._num_samples -= len(taken)
        return taken

    def peek(self, count: int) -> np.ndarray:
        """The first `count` samples, or all there are."""
        blocks, left = [], count
        for block in self._blocks:
            if left <= 0:
                break
            blocks.append(block[:left])
            left -= len(blocks[-1])
        return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)

    def clear(self) -> int:
        """Drop everything; how many samples that were."""
        dropped = self._num_samples
        self._blocks.clear()
        self._num_samples = 0
        return dropped
