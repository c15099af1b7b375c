"""Laws of writers."""

from __future__ import annotations

import numpy as np

from flowact.testing.laws import ensure, refuses
from flowact.writers.base import VideoWriter


def check_writer(writer: VideoWriter) -> None:
    """The laws of `VideoWriter`. Writes 5 frames and closes it; reading the file back is the author's to check."""
    frames = np.random.default_rng(0).integers(0, 256, (5, writer.height, writer.width, 3), dtype=np.uint8)
    samples = np.zeros(5 * writer.samples_per_frame, np.float32) if writer.samples_per_frame else None
    refuses(lambda: writer.write(frames[:, :-1]), writer, "a frame of another size is refused")
    refuses(lambda: writer.write(frames.astype(np.float32)), writer, "frames that are not uint8 are refused")
    if samples is not None:
        refuses(lambda: writer.write(frames, samples[:-1]), writer, "sound that does not last as long as the frames is refused")
    ensure(writer.num_frames == 0, writer, "what is refused is not counted", str(writer.num_frames))
    writer.write(frames[:2], None if samples is None else samples[: 2 * writer.samples_per_frame])
    writer.write(frames[2:])
    ensure(writer.num_frames == 5, writer, "every frame is counted", str(writer.num_frames))
    writer.close()
    writer.close()
    refuses(lambda: writer.write(frames), writer, "a closed writer writes no more")
