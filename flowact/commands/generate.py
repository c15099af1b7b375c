"""`flowact generate`: stream videos from sounds, pictures and prompts."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowact.commands.arguments import add_lora_argument, add_refinement_arguments, add_stream_arguments, chosen_refinement, chosen_solver
from flowact.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from flowact.planning.base import TimedPrompt
    from flowact.sampling.pipeline import ClipStream, Pipeline
    from flowact.writers.mp4 import Mp4Writer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to stream, from which checkpoint, and where to."""
    parser.add_argument("--checkpoint", metavar="DIR", help="checkpoint folder of a denoiser stage (default: the model that comes with FlowAct)")
    parser.add_argument("--audio", required=True, nargs="+", metavar="FILE", help="speech of the character, any format that FFmpeg reads")
    parser.add_argument("--reference", nargs="+", metavar="IMAGE", help="picture of the character, any size: one for all sounds, or one for each")
    parser.add_argument("--out", required=True, metavar="FILE.mp4", help="H.264 and AAC, 25 fps; for several sounds a folder, files named after them")
    parser.add_argument(
        "--prompts",
        nargs="+",
        metavar="FILE",
        help="timed prompts, YAML or SRT: one for all or one for each; without them a planner writes them from the pauses of the speech",
    )
    parser.add_argument("--seconds", type=float, metavar="N", help="length; silence follows the end of the sound (default: each sound's length)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: %(default)s)")
    add_lora_argument(parser)
    add_stream_arguments(parser)
    add_refinement_arguments(parser)
    parser.add_argument("--scale", type=int, metavar="K", help="enlarge the picture K times (default: to about 384 pixels)")
    parser.add_argument("--device", default="cpu", help="where to compute (default: %(default)s)")
    parser.add_argument("--facts", metavar="FILE", help="also write those figures to a file")
    parser.add_argument("--json", action="store_true", help="print time to first frame, frames per second and evaluations per chunk as JSON")


@dataclass(frozen=True)
class Job:
    """One video to make: files, all there, and where it goes."""

    audio: Path
    reference: Path
    prompts: Path | None
    out: Path


def run(args: argparse.Namespace) -> int:
    """Stream chunk by chunk into the files, and report how fast it went."""
    jobs = plan_jobs(args)
    if args.seconds is not None and args.seconds <= 0:
        raise UserError(f"--seconds {args.seconds:g}: the length must be above 0")
    from flowact.conditioning import load_audio, load_picture
    from flowact.planning.prompts import load_prompts
    from flowact.sampling.pipeline import Pipeline, steps_to_stream
    from flowact.shipped import shipped_model
    from flowact.types import SAMPLE_RATE

    solver = chosen_solver(args)
    sounds = [load_audio(job.audio) for job in jobs]
    written = [load_prompts(job.prompts) if job.prompts else None for job in jobs]
    checkpoint = args.checkpoint or shipped_model().checkpoint
    micro_steps, remark = steps_to_stream(checkpoint, args.micro_steps)
    if remark and not args.quiet:
        print(f"flowact: {remark}", file=sys.stderr)
    pipeline = Pipeline.from_checkpoint(
        checkpoint, args.device, micro_steps, args.guidance, refinement=chosen_refinement(args), solver=solver, loras=args.lora
    )
    pictures = [load_picture(job.reference, pipeline.picture_size)[0] for job in jobs]
    sounds = [fit_length(sound, round(args.seconds * SAMPLE_RATE) if args.seconds else len(sound)) for sound in sounds]
    prompts = [plan_prompts(pipeline, sound) if own is None else own for own, sound in zip(written, sounds, strict=True)]
    clips = pipeline.clips(pictures, sounds, [timed(own) for own in prompts], args.seed)
    stream(clips, sounds, jobs, args)
    facts = stream_facts(clips, jobs, sounds)
    if args.facts:
        Path(args.facts).write_text(json.dumps(facts, indent=1) + "\n")
    if args.json:
        print(json.dumps(facts, indent=1))
    elif not args.quiet:
        print(
            f"{args.out}: {facts['duration_seconds']} s at {facts['frames_per_second']} frames/s, first frame after {facts['ttff_seconds']} s, "
            f"{facts['evaluations_per_chunk']:g} evaluations a chunk; a prompt is seen {facts['prompt_to_motion_seconds']:g} s after it is set"
        )
    return 0


def plan_jobs(args: argparse.Namespace) -> list[Job]:
    """Which file goes with which.

    Raises:
        UserError: a file that does not exist, numbers that do not fit, or a place where no video can go.
    """
    out = Path(args.out)
    count = len(args.audio)
    for option in ("audio", "reference", "prompts"):
        files = getattr(args, option) or []
        for file in files:
            if not Path(file).is_file():
                raise UserError(f"--{option} {file}: there is no such file")
        if option != "audio" and len(files) not in (0, 1, count):
            raise UserError(f"--{option} names {len(files)} files for {count} sounds; give one for all, or one for each")
    if count == 1 and out.suffix != ".mp4":
        raise UserError(f"--out {out}: the video is written as .mp4; give a name that ends so")
    if count > 1 and (out.suffix or out.is_file()):
        raise UserError(f"--out {out}: {count} videos go into a folder; give the name of one")
    names = [Path(audio).stem for audio in args.audio]
    if len(set(names)) < count:
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two sounds are called {twice!r}, and so would be their videos; rename one")
    if not args.reference and args.checkpoint:
        raise UserError("--reference is missing; only the model that comes with FlowAct has a picture of its own")
    references = [Path(file) for file in args.reference or [own_picture()]]
    prompts = [Path(file) for file in args.prompts] if args.prompts else [None]
    outs = [out] if count == 1 else [out / f"{name}.mp4" for name in names]
    return [Job(Path(args.audio[i]), references[i % len(references)], prompts[i % len(prompts)], outs[i]) for i in range(count)]


def own_picture() -> Path:
    """The picture of the character that comes with FlowAct."""
    from flowact.shipped import shipped_model

    return shipped_model().picture


def fit_length(samples: np.ndarray, length: int) -> np.ndarray:
    """Cut, or follow by silence."""
    import numpy as np

    return np.pad(samples[:length], (0, max(0, length - len(samples))))


def timed(prompts: list[TimedPrompt]) -> list[tuple[int, str]]:
    """(first frame, text) of prompts."""
    from flowact.types import FRAMES_PER_SECOND

    return [(round(prompt.start_seconds * FRAMES_PER_SECOND), prompt.text) for prompt in prompts]


def plan_prompts(pipeline: Pipeline, samples: np.ndarray) -> list[TimedPrompt]:
    """Prompts from the pauses of the speech, in the words that the character was trained with."""
    from flowact.planning.speech_activity import SpeechActivityPlanner

    return list(SpeechActivityPlanner(captions=pipeline.state_captions or None).plan(samples))


def stream(clips: ClipStream, sounds: list[np.ndarray], jobs: list[Job], args: argparse.Namespace) -> None:
    """Write each chunk with its sound as it leaves the stream, so that a kill loses no more than the chunk at hand."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from flowact.writers.mp4 import Mp4Writer

    height, width = clips.pipeline.picture_size
    scale = args.scale or max(1, 384 // max(height, width))
    chunk_frames = clips.pipeline.chunk_frames * clips.pipeline.autoencoder.temporal_stride
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("chunks"), TimeRemainingColumn())
    with ExitStack() as stack:
        bar = stack.enter_context(Progress(*columns, console=Console(file=sys.stderr), disable=args.quiet or args.json))
        writers = []
        for job in jobs:
            job.out.parent.mkdir(parents=True, exist_ok=True)
            writers.append(stack.enter_context(Mp4Writer(job.out, width, height, scale=scale, fragment_frames=chunk_frames)))
        task = bar.add_task("stream", total=clips.num_chunks)
        for frames_BTHWC in clips:
            for writer, sound, frames_THWC in zip(writers, sounds, frames_BTHWC, strict=True):
                append(writer, frames_THWC, sound)
            bar.advance(task)


def append(writer: Mp4Writer, frames_THWC: np.ndarray, sound: np.ndarray) -> None:
    """Write the frames of a chunk with their sound; nothing where the sound, in whole chunks, has ended."""
    from flowact.types import SAMPLES_PER_FRAME

    start = writer.num_frames * SAMPLES_PER_FRAME
    if start < len(sound) or not start:
        writer.write(frames_THWC, fit_length(sound[start:], len(frames_THWC) * SAMPLES_PER_FRAME))


def stream_facts(clips: ClipStream, jobs: list[Job], sounds: list[np.ndarray]) -> dict[str, Any]:
    """How fast it went, and what was made."""
    from flowact.sampling.stream import evaluations_per_chunk
    from flowact.types import SAMPLE_RATE

    seconds = clips.stream.seconds_per_chunk
    lengths = [max(1, -(-len(sound) // round(seconds * SAMPLE_RATE))) * seconds for sound in sounds]
    return {
        "out": [str(job.out) for job in jobs] if len(jobs) > 1 else str(jobs[0].out),
        "ttff_seconds": round(clips.stream.timing.first_frame_seconds, 4),
        "frames_per_second": round(clips.stream.frames_per_second * len(jobs), 2),
        "evaluations_per_chunk": evaluations_per_chunk(clips.stream),
        "duration_seconds": round(max(lengths), 2),
        "num_chunks": clips.num_chunks,
        **clips.pipeline.latency_budget.as_dict(),
    }
