"""Laws of autoencoders. Legend: flowact/types.py."""

from __future__ import annotations

import torch

from flowact.autoencoders.base import Autoencoder
from flowact.testing.laws import ensure, refuses, same, seeded


@torch.no_grad()
def check_autoencoder(autoencoder: Autoencoder, *, num_latents: int = 4, tolerance: float = 1e-4) -> None:
    """The laws of `Autoencoder`: the rule T = stride * n + 1, causality, streaming decode equals batch decode.

    Args:
        autoencoder: put into evaluation mode.
        num_latents: latent frames of the clip it is tried on; at least 3.
        tolerance: of comparisons, relative and absolute.
    """
    autoencoder.eval()
    stride = autoencoder.temporal_stride
    size = 2 * autoencoder.spatial_stride
    num_frames = (num_latents - 1) * stride + 1
    frames = 2 * torch.rand(2, 3, num_frames, size, size, generator=seeded(0)) - 1
    ensure(autoencoder.num_latents(num_frames) == num_latents, autoencoder, "T = stride n + 1", f"num_latents({num_frames})")
    ensure(autoencoder.num_frames(num_latents) == num_frames, autoencoder, "T = stride n + 1", f"num_frames({num_latents})")
    if stride > 1:
        refuses(lambda: autoencoder.num_latents(num_frames + 1), autoencoder, "a clip that breaks T = stride n + 1 is refused")
    latents = autoencoder.encode(frames)
    want = (2, num_latents, autoencoder.latent_channels, 2, 2)
    ensure(
        tuple(latents.shape) == want, autoencoder, "latents are [B, n + 1, C, H / stride, W / stride]", f"{tuple(latents.shape)}, expected {want}"
    )
    ensure(torch.isfinite(latents).all(), autoencoder, "latents are finite")
    for shorter in range(1, num_latents):
        part = autoencoder.encode(frames[:, :, : (shorter - 1) * stride + 1])
        ensure(
            same(part, latents[:, :shorter], tolerance), autoencoder, "a latent frame depends on no later frame", f"clip of {shorter} latent frames"
        )
    still = autoencoder.encode_still(frames[:, :, 0], 2)
    ensure(still.shape[1] == 3, autoencoder, "a picture standing still has one image latent and n motion latents", str(tuple(still.shape)))

    decoded = autoencoder.decode(latents)
    ensure(
        decoded.shape == frames.shape,
        autoencoder,
        "decoding gives back stride (F - 1) + 1 frames",
        f"{tuple(decoded.shape)}, expected {tuple(frames.shape)}",
    )
    ensure(torch.isfinite(decoded).all(), autoencoder, "frames are finite")
    for lengths in ([1] * num_latents, [num_latents], [1, num_latents - 1], [2, num_latents - 2]):
        pieces, state, start = [], None, 0
        for length in lengths:
            piece, state = autoencoder.decode_stream(latents[:, start : start + length], state)
            pieces.append(piece)
            start += length
        ensure(
            same(torch.cat(pieces, dim=2), decoded, tolerance),
            autoencoder,
            "streaming decode equals batch decode",
            f"pieces of {lengths} latent frames",
        )
    _, state = autoencoder.decode_stream(latents[:, :1])
    once, _ = autoencoder.decode_stream(latents[:, 1:2], state)
    autoencoder.decode_stream(latents[:, 2:3], state)
    twice, _ = autoencoder.decode_stream(latents[:, 1:2], state)
    ensure(same(once, twice), autoencoder, "decode_stream changes no state it is given")
