"""What a live stream costs and how it reacts, for a quickstart's last model: the figures of "The live stream" in docs/results.md.

    flowact quickstart --out runs/quickstart
    python benchmarks/streaming.py runs/quickstart

Every session streams the same held-out person. `--long N` streams N chunks while the process's memory is watched.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from results_page import replace_sections
from rich.progress import track

from flowact.budget.accelerator import Meter
from flowact.evaluation.held_out import HeldOut, HeldOutClip, evaluate_stream, read_held_out
from flowact.evaluation.report import describe_machine
from flowact.sampling import LiveStream, MediaChunk, StreamSession
from flowact.sampling.pipeline import GeneratedBatch, Pipeline
from flowact.types import SAMPLES_PER_FRAME

RESULTS = Path(__file__).resolve().parent / "results" / "streaming.json"
WARM_UP, COMPARED = 20, 300
FIGURES = ("lip_correlation", "lip_lag_frames", "state_accuracy", "identity_error", "identity_rank", "drift", "motion_ratio")
REACTIONS = {"window": "as the paper: a window ahead", "at_once": "at once: a chunk ahead"}


def session_with_speech(pipeline: Pipeline, clip: HeldOutClip, **options: Any) -> tuple[StreamSession, Callable[[], MediaChunk]]:
    """A session, and a call that pushes a chunk of speech and asks for one."""
    session = StreamSession(pipeline, clip.reference_CHW(), **options)
    session.set_state("speaking")
    sound, place = clip.heard(), 0

    def step() -> MediaChunk:
        nonlocal place
        block = np.take(sound, np.arange(place, place + session.num_chunk_samples), mode="wrap")
        place = (place + session.num_chunk_samples) % len(sound)
        session.push_audio(block)
        return session.next_chunk()

    return session, step


def counted(pipeline: Pipeline, step: Callable[[], MediaChunk]) -> tuple[float, int, int]:
    """Operations, calls and peak bytes of one chunk."""
    given = [*pipeline.denoiser.parameters(), *pipeline.denoiser.buffers(), *pipeline.autoencoder.parameters(), *pipeline.autoencoder.buffers()]
    with Meter(given) as meter:
        step()
    return meter.flops.total, meter.operations, meter.peak


def flatness(pipeline: Pipeline, clip: HeldOutClip, num_chunks: int) -> dict[str, Any]:
    """B3: what a chunk costs early and after `num_chunks`, and how fast a stream runs."""
    session, step = session_with_speech(pipeline, clip)
    for _ in range(WARM_UP):
        step()
    early_counts = counted(pipeline, step)
    for _ in track(range(num_chunks), "chunks"):
        step()
    late_counts, metrics = counted(pipeline, step), session.metrics
    _, young = session_with_speech(pipeline, clip)
    for _ in range(WARM_UP):
        young()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in track(range(COMPARED), "an old stream and a young one in turn"):
        for times, call in zip(seconds, (step, young), strict=True):
            begin = time.process_time()
            call()
            times.append(time.process_time() - begin)
    return {
        "chunks": num_chunks,
        "flops": [early_counts[0], late_counts[0]],
        "operations": [early_counts[1], late_counts[1]],
        "peak_bytes": [early_counts[2], late_counts[2]],
        "cpu_time_ratio": statistics.median(seconds[0]) / statistics.median(seconds[1]),
        "chunk_ms": metrics["chunk_ms"],
        "frames_per_second": metrics["frames_per_second"],
        "evaluations_per_chunk": metrics["evaluations_per_chunk"],
        "real_time_factor": session.chunk_seconds / (metrics["chunk_ms"]["p50"] / 1e3),
    }


def first_frames(pipeline: Pipeline, clip: HeldOutClip, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds from the moment that all sound which the first chunk waits for is there until its frames are, and how long that sound is."""
    found = {}
    for name in REACTIONS:
        times = []
        for seed in range(rounds):
            session = StreamSession(pipeline, clip.reference_CHW(), seed=seed, reaction=name)
            session.set_state("speaking")
            session.push_audio(clip.heard()[: round(session.budget.audio_lookahead_seconds * 25) * SAMPLES_PER_FRAME])
            begin = time.perf_counter()
            for _ in range(session.lead_chunks + 1):
                session.next_chunk()
            times.append(time.perf_counter() - begin)
        found[name] = {"ttff_seconds": statistics.median(times), "sound_seconds": session.budget.audio_lookahead_seconds}
    return found


def in_real_time(pipeline: Pipeline, clip: HeldOutClip, seconds: float) -> dict[str, Any]:
    """A stream against the clock, as a person would watch it; speech comes in blocks of 20 ms as it is spoken."""
    session = StreamSession(pipeline, clip.reference_CHW())
    session.set_state("speaking")
    sound, pushed = clip.heard(), 0
    with LiveStream(session) as live:
        begin = time.monotonic()
        for chunk in islice(live, round(seconds / session.chunk_seconds)):
            due = round((time.monotonic() - begin) * 16_000)
            while pushed < due:
                session.push_audio(np.take(sound, np.arange(pushed, pushed + 320), mode="wrap"))
                pushed += 320
            assert len(chunk.samples) == len(chunk.frames_THWC) * SAMPLES_PER_FRAME
        metrics = live.metrics
    return {
        "seconds": seconds,
        "deadline_misses": metrics["deadline_misses"],
        "period_ms": metrics["period_ms"],
        "speech_to_frames_seconds": metrics["speech_to_frames_seconds"],
    }


def resident(pipeline: Pipeline, clip: HeldOutClip, num_chunks: int) -> dict[str, float]:
    """Growth of the process's memory over a long stream, by a straight line through the second half of the readings."""
    _, step = session_with_speech(pipeline, clip)
    process, readings = psutil.Process(os.getpid()), []
    every = max(num_chunks // 200, 1)
    for number in track(range(num_chunks), "memory"):
        step()
        if number % every == 0:
            readings.append((number, process.memory_info().rss))
    late = np.array(readings[len(readings) // 2 :], float)
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0])
    return {"chunks": num_chunks, "bytes_per_chunk": slope, "growth_mib": (readings[-1][1] - readings[len(readings) // 2][1]) / 2**20}


@dataclass(frozen=True)
class Live:
    """Streams clips as live sessions do, sound arriving chunk by chunk; what `flowact evaluate` measures of a pipeline is measured of that."""

    pipeline: Pipeline
    reaction: Literal["window", "at_once"]

    @property
    def autoencoder(self) -> Any:
        return self.pipeline.autoencoder

    def generate(
        self,
        references: Sequence[torch.Tensor],
        samples: Sequence[np.ndarray],
        captions: Sequence[Sequence[tuple[int, str]]],
        seed: int = 0,
        progress: Callable[..., None] | None = None,
    ) -> GeneratedBatch:
        clips, last = [], None
        for picture, sound, timed in zip(references, samples, captions, strict=True):
            last = StreamSession(self.pipeline, picture, seed=seed, reaction=self.reaction)
            frames, step = [], 0
            total = -(-len(sound) // last.num_chunk_samples)
            while len(frames) < total:
                middle = (step + 0.5) * last.num_chunk_frames
                last.set_prompt(next(text for start, text in reversed(timed) if start <= middle))
                block = sound[step * last.num_chunk_samples :][: last.num_chunk_samples]
                last.push_audio(np.pad(block, (0, last.num_chunk_samples - len(block))))
                chunk = last.next_chunk()
                if step >= last.lead_chunks:
                    frames.append(chunk.frames_THWC)
                step += 1
            clips.append(np.concatenate(frames))
        assert last is not None
        metrics = last.metrics
        return GeneratedBatch(clips, metrics["ttff_seconds"], metrics["frames_per_second"], metrics["evaluations_per_chunk"], total, ())


def reaction(pipeline: Pipeline, held_out: HeldOut) -> dict[str, dict[str, Any]]:
    """What it costs to wait for less sound: the held-out figures of live sessions."""
    found = {}
    for name in track(REACTIONS, "reaction against quality"):
        measured = evaluate_stream(Live(pipeline, name), held_out).measurement.to_json()
        found[name] = {figure: measured[figure] for figure in FIGURES}
    return found


def page(result: dict[str, Any]) -> str:
    """The section of docs/results.md."""
    flat, first, live, memory = result["flatness"], result["first_frames"], result["real_time"], result["memory"]
    same = {name: "equal" if len(set(flat[name])) == 1 else f"{flat[name][0]} and {flat[name][1]}" for name in ("flops", "operations", "peak_bytes")}
    rows = [
        ("frames per second, one session", f"{flat['frames_per_second']:.0f}"),
        ("network evaluations a chunk", f"{flat['evaluations_per_chunk']:g}"),
        (f"operations of chunk {WARM_UP} and {flat['chunks'] + WARM_UP}", same["flops"]),
        ("calls of torch, likewise", same["operations"]),
        ("peak bytes, likewise", same["peak_bytes"]),
        (f"CPU time of a chunk after {flat['chunks']} over one of a young stream, in turn", f"{flat['cpu_time_ratio']:.3f}"),
        ("chunk, denoising and decoding, ms: median, 95 %, 99 %", " ".join(f"{flat['chunk_ms'][q]:.0f}" for q in ("p50", "p95", "p99"))),
        (f"missed deadlines in {live['seconds']:.0f} s against the clock", str(live["deadline_misses"])),
        ("period of chunks against the clock, ms: median, 95 %, 99 %", " ".join(f"{live['period_ms'][q]:.0f}" for q in ("p50", "p95", "p99"))),
        (f"resident memory over {memory['chunks']} chunks, bytes a chunk", f"{memory['bytes_per_chunk']:.0f}"),
    ]
    facts = "\n".join(f"| {name} | {value} |" for name, value in rows)
    names = {"lip_correlation": "lips", "lip_lag_frames": "lag", "state_accuracy": "states", "identity_error": "identity", "drift": "drift"}
    head = " | ".join(names.values())
    lines = []
    for name, figures in result["reaction"].items():
        values = " | ".join(f"{figures[figure]:.3f}" for figure in names)
        lines.append(f"| {REACTIONS[name]} | {first[name]['sound_seconds']:.2f} s | {first[name]['ttff_seconds']:.3f} s | {values} |")
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    return f"""`python benchmarks/streaming.py runs/quickstart`, {result["date"]}; {machine}.

| | |
|---|---|
{facts}

Sound that must be there before the first frame, the time from then to that frame, and what a shorter wait costs (held-out people and speech, each
chunk's sound and prompt given as late as the reaction allows):

| reaction | sound | first frame | {head} |
|---|---|---|{"---|" * len(names)}
{chr(10).join(lines)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of `flowact quickstart`")
    parser.add_argument("--chunks", type=int, default=1_000, help="chunks over which cost is compared")
    parser.add_argument("--long", type=int, default=10_000, help="chunks over which memory is watched")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the stream against the clock")
    args = parser.parse_args()
    pipeline = Pipeline.from_checkpoint(args.run / "checkpoints" / "distillation")
    held_out = read_held_out(str(args.run / "shards" / "val"))
    clip = held_out.clips[0]
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe_machine(("torch",)),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "first_frames": first_frames(pipeline, clip, 15),
        "real_time": in_real_time(pipeline, clip, args.seconds),
        "flatness": flatness(pipeline, clip, args.chunks),
        "reaction": reaction(pipeline, held_out),
        "memory": resident(pipeline, clip, args.long),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    replace_sections({"The live stream": page(result)})
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
