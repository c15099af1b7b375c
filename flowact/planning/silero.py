"""Voice activity by the network of Silero VAD, whose weights come in a package.

The package's own loader sets torch's number of threads for the whole process and hides the state in a script module, so its weights are read here and
its small network is run as a pure step. Axes: N windows, S samples, C channels, L steps of the spectrogram, D width.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from flowact.errors import UserError
from flowact.planning.voice import VoiceDetector, cut

PACKAGE = "silero_vad"
INSTALL = "pip install 'flowact[speech]'"
WINDOW = 512
CONTEXT = 64
STFT_STRIDE = 128
STFT_PADDING = 64
#: stride of each convolution of the encoder
STRIDES = (1, 2, 2, 1)
WIDTH = 128


@dataclass(frozen=True, eq=False)
class SileroState:
    """What `SileroDetector` remembers: samples behind the last window, the end of that window, the recurrent state and whether it held a voice."""

    rest_S: np.ndarray
    context_S: np.ndarray
    recurrent: tuple[Tensor, Tensor]
    active: bool


@final
class SileroDetector(VoiceDetector[SileroState]):
    """Voice by a trained network; other loud sounds are none.

    Args:
        threshold: a voice begins at this probability.
        hysteresis: and ends this much below it.

    Raises:
        UserError: the package with the weights is not installed, or they are not what is expected.
        ValueError: a threshold that is no probability.
    """

    def __init__(self, threshold: float = 0.5, hysteresis: float = 0.15) -> None:
        if not 0.0 < threshold < 1.0 or not 0.0 <= hysteresis < threshold:
            raise ValueError(f"threshold is between 0 and 1 and hysteresis below it, got {threshold} and {hysteresis}")
        self.threshold = threshold
        self.hysteresis = hysteresis
        self._path = find_weights()

    @property
    def hop(self) -> int:
        """See `VoiceDetector.hop`."""
        return WINDOW

    def reset(self) -> SileroState:
        """See `VoiceDetector.reset`."""
        zeros = torch.zeros(1, WIDTH)
        return SileroState(np.zeros(0, np.float32), np.zeros(CONTEXT, np.float32), (zeros, zeros), False)

    def step(self, state: SileroState, samples: np.ndarray) -> tuple[SileroState, np.ndarray]:
        """See `VoiceDetector.step`."""
        windows, rest = cut(state.rest_S, samples, WINDOW)
        probabilities, recurrent = self.probabilities(windows, state.context_S, state.recurrent)
        active, active_N = state.active, np.zeros(len(windows), bool)
        for i, probability in enumerate(probabilities.tolist()):
            active = probability >= (self.threshold - self.hysteresis if active else self.threshold)
            active_N[i] = active
        context = windows[-1, -CONTEXT:].copy() if len(windows) else state.context_S
        return SileroState(rest, context, recurrent, active), active_N

    @torch.inference_mode()
    def probabilities(self, windows: np.ndarray, context_S: np.ndarray, recurrent: tuple[Tensor, Tensor]) -> tuple[np.ndarray, tuple[Tensor, Tensor]]:
        """Probability of a voice in each of the windows (N, 512), and the recurrent state behind the last."""
        if not len(windows):
            return np.zeros(0, np.float32), recurrent
        weights = self._weights
        before = np.concatenate([context_S[None], windows[:-1, -CONTEXT:]])
        heard_NS = torch.from_numpy(np.concatenate([before, windows], axis=1))
        padded_NCS = functional.pad(heard_NS[:, None], (0, STFT_PADDING), "reflect")
        real_NCL, imaginary_NCL = functional.conv1d(padded_NCS, weights["stft_conv.weight"], stride=STFT_STRIDE).chunk(2, dim=1)
        features_NCL = torch.hypot(real_NCL, imaginary_NCL)
        for i, stride in enumerate(STRIDES, start=1):
            features_NCL = functional.conv1d(features_NCL, weights[f"conv{i}.weight"], weights[f"conv{i}.bias"], stride, padding=1).relu()
        outputs = []
        for features_D in features_NCL[..., 0]:  # strides 4 in all over 4 steps leave one
            recurrent = self._cell(features_D[None], recurrent)
            outputs.append(recurrent[0])
        logits_NCL = functional.conv1d(torch.cat(outputs).relu()[..., None], weights["final_conv.weight"], weights["final_conv.bias"])
        return logits_NCL.sigmoid().flatten().numpy(), recurrent

    @cached_property
    def _cell(self) -> torch.nn.LSTMCell:
        cell = torch.nn.LSTMCell(WIDTH, WIDTH)
        cell.load_state_dict({name.removeprefix("lstm_cell."): value for name, value in self._weights.items() if name.startswith("lstm_cell.")})
        return cell.requires_grad_(False)

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        shapes = {"stft_conv.weight": (258, 1, 256), "conv4.weight": (WIDTH, 64, 3), "lstm_cell.weight_hh": (4 * WIDTH, WIDTH)}
        try:
            weights = load_file(self._path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read {self._path} ({error}); install the package again: {INSTALL}") from error
        wrong = [name for name, shape in shapes.items() if name not in weights or tuple(weights[name].shape) != shape]
        if wrong:
            raise UserError(f"{self._path} holds another network ({wrong[0]} does not fit); install the right version: pip install 'silero-vad~=6.2'")
        return weights


def find_weights() -> Path:
    """The weights inside the package that carries them; the package itself is not imported.

    Raises:
        UserError: the package is not installed, or is too old to carry them.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"voice activity by 'silero' needs the package that carries its weights; install it with: {INSTALL}; or use 'energy'")
    path = Path(spec.submodule_search_locations[0]) / "data" / "silero_vad_16k.safetensors"
    if not path.is_file():
        raise UserError(f"the installed silero-vad carries no {path.name}; install a newer one: {INSTALL}; or use 'energy'")
    return path
