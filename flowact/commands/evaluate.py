"""`flowact evaluate`: stream held-out clips through a checkpoint and measure them against their exact truth."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowact.commands.arguments import add_refinement_arguments, add_stream_arguments, chosen_refinement, chosen_solver
from flowact.errors import UserError

if TYPE_CHECKING:
    from flowact.evaluation import HeldOut, Measurement
    from flowact.evaluation.held_out import Evaluation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, on what, and where the numbers go."""
    parser.add_argument("--checkpoint", metavar="DIR", help="checkpoint folder of a stage; with --truth only its autoencoder is used")
    parser.add_argument("--shards", required=True, metavar="SPEC", help="held-out clips with truth: DIR/shards/val, or a brace string of .tar files")
    parser.add_argument("--out", required=True, metavar="FILE", help="metrics.json; an existing one keeps what it holds of other stages")
    parser.add_argument("--name", metavar="STAGE", help="entry under `stages`; default: the stage's name in the checkpoint's lineage")
    parser.add_argument("--truth", action="store_true", help="measure the clips themselves, through the autoencoder: the ceiling; entry `truth`")
    parser.add_argument("--autoencoder", metavar="DIR", help="with --truth: folder of the autoencoder; without it and --checkpoint, raw pixels")
    parser.add_argument("--seconds", type=float, metavar="N", help="use N seconds of each clip, and no shorter clip; default: as the shortest clip")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N clips, spread over the split")
    add_stream_arguments(parser)
    add_refinement_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where to stream (default: %(default)s)")
    parser.add_argument("--video", metavar="FILE", help="write one clip as .mp4 with sound: truth on the left, the stream on the right")
    parser.add_argument("--sheets", metavar="DIR", help="write contact sheets STAGE-states.png and STAGE-identity.png")
    parser.add_argument("--report", action="store_true", help="write report.html beside the metrics, of all that they hold by now")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure, merge into the metrics file, and print.

    Raises:
        UserError: nothing to measure, or an option that does not fit the others.
    """
    if not args.truth and not args.checkpoint:
        raise UserError("evaluate needs --checkpoint DIR, or --truth to measure the clips themselves")
    if args.autoencoder and not args.truth:
        raise UserError("--autoencoder goes with --truth; a checkpoint streams through its own autoencoder")
    from flowact.evaluation import read_held_out
    from flowact.evaluation.metrics_file import merge_metrics, read_metrics

    read_metrics(args.out)  # an --out that cannot be merged should be refused before the work
    held_out = read_held_out(args.shards, args.seconds, args.limit)
    name = "truth" if args.truth else args.name or stage_name(Path(args.checkpoint))
    if not (args.json or args.quiet):
        print(f"{name}: {len(held_out.clips)} clips of {held_out.clips[0].num_frames / 25:g} s from {args.shards}", file=sys.stderr)
    result = evaluate_truth_of(args, held_out) if args.truth else evaluate_checkpoint(args, held_out)
    numbers = result.measurement.to_json()
    merged = merge_metrics(args.out, {"truth": numbers} if args.truth else {"stages": {name: numbers}})
    sheets = write_sheets(args.sheets, name, result, held_out)
    if args.video:
        write_comparison(Path(args.video), result, held_out)
    if args.report:
        from flowact.evaluation.report import Media, describe_machine, write_report

        write_report(Path(args.out).parent, merged, Media(pictures=sheets, facts=describe_machine()))
    print(json.dumps(numbers, indent=1) if args.json else table(name, result.measurement))
    return 0


def evaluate_checkpoint(args: argparse.Namespace, held_out: HeldOut) -> Evaluation:
    """Stream all clips as one batch through the checkpoint."""
    from flowact.evaluation import evaluate_stream
    from flowact.sampling.pipeline import Pipeline

    refinement, solver = chosen_refinement(args), chosen_solver(args)
    pipeline = Pipeline.from_checkpoint(args.checkpoint, args.device, args.micro_steps, args.guidance, refinement=refinement, solver=solver)
    return evaluate_stream(pipeline, held_out, args.seed)


def evaluate_truth_of(args: argparse.Namespace, held_out: HeldOut) -> Evaluation:
    """Measure the clips through the autoencoder that is named, the checkpoint's, or none."""
    from flowact.evaluation import evaluate_truth

    folder = args.autoencoder or (Path(args.checkpoint) / "autoencoder" if args.checkpoint else None)
    if folder is None:
        return evaluate_truth(held_out)
    from flowact.autoencoders import load_autoencoder

    return evaluate_truth(held_out, load_autoencoder(folder).to(args.device).eval())


def stage_name(checkpoint: Path) -> str:
    """Name of the stage that made a checkpoint, from its lineage; the folder's name without one."""
    try:
        return str(json.loads((checkpoint / "lineage.json").read_text(encoding="utf-8"))["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        return checkpoint.resolve().name


def write_sheets(folder: str | None, name: str, result: Evaluation, held_out: HeldOut) -> dict[str, Any]:
    """Contact sheets by caption; also as PNG files if a folder is given."""
    from flowact.evaluation.pictures import identity_sheet, states_sheet

    title = name.replace("_", " ")
    sheets = {
        "states": (f"Characters that the model never saw, in each state ({title})", states_sheet(result.clips)),
        "identity": (f"The reference picture, and the stream after some seconds ({title})", identity_sheet(result.clips, held_out.references)),
    }
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for kind, (_, picture) in sheets.items():
            picture.save(Path(folder) / f"{name}-{kind}.png")
    return dict(sheets.values())


def write_comparison(path: Path, result: Evaluation, held_out: HeldOut) -> None:
    """Truth on the left, measured frames on the right, of the clip that the plots show, with its sound."""
    import numpy as np

    from flowact.writers.mp4 import Mp4Writer

    key = result.measurement.details["example"]["key"]
    clip = next(clip for clip in result.clips if clip.key == key)
    true = held_out.character.render(clip.identity, clip.truth_TP)
    frames = np.concatenate([true, clip.frames_THWC], axis=2)
    height, width = frames.shape[1:3]
    path.parent.mkdir(parents=True, exist_ok=True)
    with Mp4Writer(path, width, height, scale=max(1, 384 // height), filter="nearest") as writer:
        writer.write(frames, clip.samples)


def table(name: str, measurement: Measurement) -> str:
    """The numbers as lines of text, with what each is."""
    from flowact.evaluation.report import METRICS, number

    lines = [name]
    for key, explanation in METRICS.items():
        lines.append(f"  {key:26s} {number(getattr(measurement, key), explanation.digits):>8s}   {explanation.label}, {explanation.aim}")
    failures = measurement.details["lip_failures"]
    if failures:
        lines.append(f"  {failures} of {measurement.details['lip_clips']} mouths are frozen or unreadable; they count as 0 in lip_correlation")
    return "\n".join(lines)
