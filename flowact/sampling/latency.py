"""What a stream's geometry costs in time, before anything is computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from flowact.types import FRAMES_PER_SECOND


@dataclass(frozen=True)
class LatencyBudget:
    """Seconds of sound that a stream waits for, and until what is said or prompted now is seen.

    The paper (arXiv 2601.10103) states the time to the first frame, about 1.5 s; with 3 chunks of 0.48 s that is what waiting for the sound of three
    chunks takes. Nothing here counts computing: that must fit into `chunk_seconds` a chunk.

    Args:
        window: W, chunks in the denoising stream.
        chunk_latents: n, latent frames of a chunk.
        temporal_stride: video frames of a latent frame.
        micro_steps: M, evaluations per chunk that leaves.
        at_once: the window begins anew where that is needed to react within a chunk; see `StreamSession`.
        encoder_lookahead_frames: video frames of future sound that the audio encoder hears.
        guidance_evaluations: network evaluations per micro-step; 2 with classifier-free guidance.
    """

    window: int
    chunk_latents: int
    temporal_stride: int
    micro_steps: int = 1
    at_once: bool = False
    encoder_lookahead_frames: int = 0
    guidance_evaluations: int = 1

    @property
    def chunk_seconds(self) -> float:
        """Playing time of a chunk, and the time there is to compute it."""
        return self.chunk_latents * self.temporal_stride / FRAMES_PER_SECOND

    @property
    def evaluations_per_chunk(self) -> int:
        """Network evaluations that a chunk sees."""
        return self.window * self.micro_steps * self.guidance_evaluations

    @property
    def encoder_lookahead_seconds(self) -> float:
        return self.encoder_lookahead_frames / FRAMES_PER_SECOND

    @property
    def audio_lookahead_seconds(self) -> float:
        """Sound that must be there until its first frame can leave, at the start of the stream."""
        return (1 if self.at_once else self.window) * self.chunk_seconds + self.encoder_lookahead_seconds

    @property
    def prompt_to_motion_seconds(self) -> float:
        """From a prompt to the first frame made under it from its first evaluation on."""
        return (1 if self.at_once else self.window) * self.chunk_seconds

    @property
    def sound_to_motion_seconds(self) -> float:
        """From sound to the first frame that it moves, in the steady state."""
        return (1 if self.at_once else self.window) * self.chunk_seconds + self.encoder_lookahead_seconds

    def as_dict(self) -> dict[str, float]:
        """Every number, for programs."""
        derived = ("chunk_seconds", "evaluations_per_chunk", "audio_lookahead_seconds", "prompt_to_motion_seconds", "sound_to_motion_seconds")
        return asdict(self) | {name: getattr(self, name) for name in derived}

    def lines(self) -> list[str]:
        """The same, for people."""
        start = "one chunk" if self.at_once else f"{self.window} chunks"
        per_step = self.micro_steps * self.guidance_evaluations
        most = f", up to {self.evaluations_per_chunk} when it reacts" if self.at_once else ""
        return [
            f"window      {self.window} chunks of {self.chunk_latents} latents x {self.temporal_stride} frames: {self.chunk_seconds:.2f} s a chunk",
            f"evaluations {self.evaluations_per_chunk} per chunk, {per_step} per {self.chunk_seconds:.2f} s in steady state{most}",
            f"sound       {self.audio_lookahead_seconds:.2f} s must be there before the first frame ({start})",
            f"then        sound is seen after {self.sound_to_motion_seconds:.2f} s, a prompt after {self.prompt_to_motion_seconds:.2f} s",
        ]
