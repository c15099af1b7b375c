"""Whether two states of a network compute the same: what an export is held to before it counts. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flowact import registry
from flowact.checkpoints import load_into
from flowact.errors import UserError
from flowact.models.base import Denoiser
from flowact.types import ConditionTokens, Segment, WindowLayout

#: outputs may differ by, relative to the largest number of the output
OUTPUT_TOLERANCE = 1e-4
_LAYOUT = WindowLayout((Segment("reference", 1, -3), Segment("stream", 2, 0), Segment("stream", 2, 2)))
_CELLS, _TOKENS, _AUDIO = 4, 3, 4


@torch.no_grad()
def output_of(spec: Mapping[str, Any], state: Mapping[str, Tensor]) -> Tensor:
    """What a network made anew, with these weights, answers to one fixed window: velocity [1, 4, C, 4, 4], float32.

    Args:
        spec: of the denoiser, {class_path, init_args}.
        state: all of its weights.

    Raises:
        UserError: names that do not match, all listed.
    """
    network: Denoiser = registry.instantiate(dict(spec), "denoisers")
    load_into(network, state)
    network.eval()
    generator = torch.Generator().manual_seed(0)
    frames, segments = _LAYOUT.num_frames, len(_LAYOUT.segments)
    latents = torch.randn(1, frames, network.latent_channels, _CELLS, _CELLS, generator=generator)
    sigma = torch.tensor([[0.0, 0.3, 0.3, 0.8, 0.8]])
    text = torch.randn(1, segments, _TOKENS, network.text_width, generator=generator)
    audio = torch.randn(1, frames, network.audio_per_latent or _AUDIO, network.audio_width, generator=generator)
    return network(latents, sigma, ConditionTokens(text, audio), _LAYOUT).float()


def relative_difference(first: Tensor, second: Tensor) -> float:
    """The largest difference, relative to the largest number of the first; infinite where either is not finite."""
    if not first.numel():
        return 0.0
    largest = float((first.float() - second.float()).abs().max() / first.float().abs().max().clamp(min=1e-12))
    return largest if largest == largest else float("inf")


Network = tuple[Mapping[str, Any], Mapping[str, Tensor]]
"""A denoiser's {class_path, init_args}, and all of its weights."""


def check_same_output(expected: Network, found: Network, out: object) -> float:
    """Compute with the network that was to be written and with the one that was read back, one after the other.

    Args:
        expected: what should be there.
        found: what was read back, its arguments too.
        out: the place, for the message.

    Returns:
        By how much the outputs differ, relative to the largest number.

    Raises:
        UserError: they differ by more than `OUTPUT_TOLERANCE`, or as `output_of`.
    """
    difference = relative_difference(output_of(*expected), output_of(*found))
    if not difference <= OUTPUT_TOLERANCE:
        raise UserError(
            f"the network computes something else after it was read back (difference {difference:.1e}, allowed {OUTPUT_TOLERANCE:.1e}), "
            f"so {out} was not made"
        )
    return difference
