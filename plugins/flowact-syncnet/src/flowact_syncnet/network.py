"""The two streams of SyncNet (Chung and Zisserman 2016, "Out of time: automated lip sync in the wild", section 2), as in the published weights.

Axes: B windows, T frames, C channels, H W height and width, D width of an embedding.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from flowact.errors import UserError

FRAMES, SIDE = 5, 224  # of a window of pictures
STEPS, COEFFICIENTS = 20, 13  # of a window of sound, 4 steps a frame
EMBEDDING = 1024
#: (out channels, kernel, stride, padding) of a convolution, then (kernel, stride, padding) of the pooling after it, if any
Layer = tuple[tuple[int, Any, Any, Any], tuple[Any, Any, Any] | None]
SOUND_LAYERS: Sequence[Layer] = (
    ((64, 3, 1, 1), (1, 1, 0)),
    ((192, 3, 1, 1), (3, (1, 2), 0)),
    ((384, 3, 1, 1), None),
    ((256, 3, 1, 1), None),
    ((256, 3, 1, 1), (3, 2, 0)),
    ((512, (5, 4), 1, 0), None),
)
LIP_LAYERS: Sequence[Layer] = (
    ((96, (FRAMES, 7, 7), (1, 2, 2), 0), ((1, 3, 3), (1, 2, 2), 0)),
    ((256, (1, 5, 5), (1, 2, 2), (0, 1, 1)), ((1, 3, 3), (1, 2, 2), (0, 1, 1))),
    ((256, (1, 3, 3), 1, (0, 1, 1)), None),
    ((256, (1, 3, 3), 1, (0, 1, 1)), None),
    ((256, (1, 3, 3), 1, (0, 1, 1)), ((1, 3, 3), (1, 2, 2), 0)),
    ((512, (1, 6, 6), 1, 0), None),
)


@final
class Network(nn.Module):
    """Embeddings in which lips and sound that go together lie near each other. The attributes are named as in the published file."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = _stream(1, SOUND_LAYERS, nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)
        self.netfcaud = _head()
        self.netfclip = _head()
        self.netcnnlip = _stream(3, LIP_LAYERS, nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d)

    def lips(self, pictures_TCHW: Tensor) -> Tensor:
        """Embeddings (T - 4, 1024) of each five successive pictures: blue, green, red from 0 to 255, of a face's lower part as SyncNet crops it.

        Only the first layer sees time, so that windows which overlap share its work and all of the rest.
        """
        features_CTHW = self.netcnnlip(pictures_TCHW.transpose(0, 1)[None])[0]
        return self.netfclip(features_CTHW.flatten(1).T)

    def sound(self, coefficients_B13S: Tensor) -> Tensor:
        """Embeddings (B, 1024) of windows of 20 steps."""
        return self.netfcaud(self.netcnnaud(coefficients_B13S[:, None]).flatten(1))


def _stream(channels: int, layers: Sequence[Layer], convolution: Any, norm: Any, pooling: Any) -> nn.Sequential:
    parts: list[nn.Module] = []
    for (width, kernel, stride, padding), pool in layers:
        parts += [convolution(channels, width, kernel, stride, padding), norm(width), nn.ReLU()]
        parts += [] if pool is None else [pooling(*pool)]
        channels = width
    return nn.Sequential(*parts)


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, EMBEDDING))


def load_network(path: Path) -> Network:
    """The network with the weights of a file, ready to evaluate. Nothing but tensors is ever read from it.

    Raises:
        UserError: no such file, no state dict, or another network's.
    """
    if not path.is_file():
        raise UserError(f"SyncNet: there are no weights at {path}; the authors publish them as syncnet_v2.model, give its path as `weights`")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"SyncNet: {path} is no file of weights alone ({reason}); give what the authors publish as syncnet_v2.model") from error
    network = Network()
    _check(state, network.state_dict(), path)
    network.load_state_dict(state, strict=False)  # checked; older files lack the batch norms' counters, which evaluation does not read
    return network.eval().requires_grad_(False)


def _check(state: Any, wanted: Mapping[str, Tensor], path: Path) -> None:
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"SyncNet: {path} holds a {type(state).__name__}, expected names with tensors, as in syncnet_v2.model")
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in wanted]
    if missing or unknown:
        found = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which SyncNet has not"
        raise UserError(f"SyncNet: {path} holds another network: it {found} ({len(missing)} missing, {len(unknown)} unknown); give syncnet_v2.model")
    wrong = next((name for name in state if state[name].shape != wanted[name].shape), None)
    if wrong is not None:
        shapes = f"{tuple(state[wrong].shape)}, expected {tuple(wanted[wrong].shape)}"
        raise UserError(f"SyncNet: {path} holds another network: {wrong} is {shapes}; give syncnet_v2.model")
