"""`flowact generate`: stream a video from sound, a picture and prompts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowact.commands.arguments import add_stream_arguments
from flowact.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from flowact.planning.base import TimedPrompt
    from flowact.sampling.pipeline import GeneratedBatch, Pipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to stream, from which checkpoint, and where to."""
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="checkpoint folder of a denoiser stage")
    parser.add_argument("--audio", required=True, metavar="FILE", help="speech of the character, any format that FFmpeg reads")
    parser.add_argument("--reference", required=True, metavar="IMAGE", help="picture of the character, any size")
    parser.add_argument("--out", required=True, metavar="FILE.mp4", help="H.264 and AAC, 25 fps")
    parser.add_argument(
        "--prompts", metavar="FILE", help="timed prompts, YAML or SRT; without them a planner writes them from the pauses of the speech"
    )
    parser.add_argument("--seconds", type=float, metavar="N", help="length; silence follows the end of the sound (default: the sound's length)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: %(default)s)")
    add_stream_arguments(parser)
    parser.add_argument("--scale", type=int, metavar="K", help="enlarge the picture K times (default: to about 384 pixels)")
    parser.add_argument("--device", default="cpu", help="where to compute (default: %(default)s)")
    parser.add_argument("--facts", metavar="FILE", help="also write those figures to a file")
    parser.add_argument("--json", action="store_true", help="print time to first frame, frames per second and evaluations per chunk as JSON")


def run(args: argparse.Namespace) -> int:
    """Stream chunk by chunk into the file, and report how fast it went."""
    out = Path(args.out)
    if out.suffix != ".mp4":
        raise UserError(f"--out {out}: the video is written as .mp4; give a name that ends so")
    for option, path in (("--audio", args.audio), ("--reference", args.reference), ("--prompts", args.prompts)):
        if path is not None and not Path(path).is_file():
            raise UserError(f"{option} {path}: there is no such file")
    if args.seconds is not None and args.seconds <= 0:
        raise UserError(f"--seconds {args.seconds:g}: the length must be above 0")
    from flowact.conditioning import load_audio, load_picture
    from flowact.planning.prompts import load_prompts
    from flowact.sampling.pipeline import Pipeline
    from flowact.types import SAMPLE_RATE

    samples = load_audio(args.audio)
    prompts = load_prompts(args.prompts) if args.prompts else None
    pipeline = Pipeline.from_checkpoint(args.checkpoint, args.device, args.micro_steps, args.guidance)
    picture = load_picture(args.reference, pipeline.picture_size)[0]
    samples = fit_length(samples, round(args.seconds * SAMPLE_RATE) if args.seconds else len(samples))
    if prompts is None:
        prompts = plan_prompts(pipeline, samples)
    result = stream(pipeline, picture, samples, prompts, out, args)
    facts = {
        "out": str(out),
        "ttff_seconds": round(result.ttff_seconds, 4),
        "frames_per_second": round(result.frames_per_second, 2),
        "evaluations_per_chunk": result.evaluations_per_chunk,
        "duration_seconds": round(len(result.frames[0]) / 25, 2),
        "num_chunks": result.num_chunks,
        **pipeline.latency_budget,
    }
    if args.facts:
        Path(args.facts).write_text(json.dumps(facts, indent=1) + "\n")
    if args.json:
        print(json.dumps(facts, indent=1))
    elif not args.quiet:
        print(
            f"{out}: {facts['duration_seconds']} s at {facts['frames_per_second']} frames/s, first frame after {facts['ttff_seconds']} s, "
            f"{facts['evaluations_per_chunk']:g} evaluations a chunk; a prompt is seen {facts['prompt_to_motion_seconds']:g} s after it is set"
        )
    return 0


def fit_length(samples: np.ndarray, length: int) -> np.ndarray:
    """Cut, or follow by silence."""
    import numpy as np

    return np.pad(samples[:length], (0, max(0, length - len(samples))))


def plan_prompts(pipeline: Pipeline, samples: np.ndarray) -> list[TimedPrompt]:
    """Prompts from the pauses of the speech, in the words that the character was trained with."""
    from flowact.planning.speech_activity import SpeechActivityPlanner

    return list(SpeechActivityPlanner(captions=pipeline.state_captions or None).plan(samples))


def stream(pipeline: Pipeline, picture: Any, samples: np.ndarray, prompts: list[TimedPrompt], out: Path, args: argparse.Namespace) -> GeneratedBatch:
    """Generate, writing each chunk with its sound as it leaves the stream."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from flowact.types import FRAMES_PER_SECOND, SAMPLES_PER_FRAME
    from flowact.writers.mp4 import Mp4Writer

    captions = [(round(prompt.start_seconds * FRAMES_PER_SECOND), prompt.text) for prompt in prompts]
    height, width = picture.shape[-2:]
    scale = args.scale or max(1, 384 // max(height, width))
    out.parent.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("chunks"), TimeRemainingColumn())
    quiet = args.quiet or args.json
    with Progress(*columns, console=Console(file=sys.stderr), disable=quiet) as bar, Mp4Writer(out, width, height, scale=scale) as writer:
        task = bar.add_task("stream", total=None)

        def write(frames_BTHWC: np.ndarray) -> None:
            start = writer.num_frames * SAMPLES_PER_FRAME
            sound = fit_length(samples[start:], frames_BTHWC.shape[1] * SAMPLES_PER_FRAME)
            writer.write(frames_BTHWC[0], sound)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return pipeline.generate([picture], [samples], [captions], args.seed, advance, write)
