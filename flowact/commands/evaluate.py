"""`flowact evaluate`: stream held-out clips through a checkpoint and measure them against exact truth or film, beside another one if wished."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowact.commands.arguments import add_lora_argument, add_refinement_arguments, add_stream_arguments, chosen_refinement, chosen_solver
from flowact.errors import UserError
from flowact.types import SAMPLES_PER_FRAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowact.evaluation import HeldOut, Judge, Measurement
    from flowact.evaluation.held_out import Evaluation


#: clips on the sheet of before and after
SHEET_CLIPS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, on what, and where the numbers go."""
    parser.add_argument("--checkpoint", metavar="DIR", help="checkpoint folder of a stage; with --truth only its autoencoder is used")
    parser.add_argument("--before", metavar="DIR", help="measure this checkpoint too, on the same clips, and what --checkpoint changed")
    parser.add_argument("--compare", nargs=2, metavar=("BEFORE", "AFTER"), help="what changed between two entries of --out; nothing is streamed")
    parser.add_argument("--shards", metavar="SPEC", help="held-out clips: DIR/shards/val, or a brace string of .tar files")
    parser.add_argument("--out", required=True, metavar="FILE", help="metrics.json; an existing one keeps what it holds of other stages")
    parser.add_argument("--name", metavar="STAGE", help="entry under `stages`; default: the stage's name in the checkpoint's lineage")
    parser.add_argument("--truth", action="store_true", help="measure the clips themselves, through the autoencoder: the ceiling; entry `truth`")
    parser.add_argument("--autoencoder", metavar="DIR", help="with --truth: folder of the autoencoder; without it and --checkpoint, raw pixels")
    parser.add_argument("--seconds", type=float, metavar="N", help="use N seconds of each clip, and no shorter clip; default: as the shortest clip")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N clips, spread over the split")
    parser.add_argument(
        "--judge",
        action="append",
        default=[],
        metavar="NAME",
        help="reads faces or mouths of filmed people, who have no truth: a name from `flowact list judges`, or {class_path: NAME, init_args: {...}}",
    )
    add_lora_argument(parser)
    add_stream_arguments(parser)
    add_refinement_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where to stream (default: %(default)s)")
    parser.add_argument("--video", metavar="FILE", help="write one clip as .mp4 with sound: truth on the left, then --before, then the stream")
    parser.add_argument("--sheets", metavar="DIR", help="write contact sheets STAGE-states.png and STAGE-identity.png, and before-after.png")
    parser.add_argument("--report", action="store_true", help="write report.html beside the metrics, of all that they hold by now")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure, merge into the metrics file, and print.

    Raises:
        UserError: nothing to measure, or an option that does not fit the others.
    """
    check_options(args)
    from flowact.evaluation.metrics_file import merge_metrics, read_metrics

    metrics = read_metrics(args.out)  # an --out that cannot be merged should be refused before the work
    if args.compare:
        return finish_comparison(args, metrics, *args.compare)
    from flowact.evaluation import read_held_out

    judge = chosen_judge(args.judge)
    held_out = read_held_out(args.shards, args.seconds, args.limit)
    if judge is not None and held_out.character is not None:
        raise UserError(f"--judge {' '.join(args.judge)} is for filmed people; {args.shards} has exact truth, which is read back without one")
    before, name = names(args)
    if not (args.json or args.quiet):
        of = "" if held_out.character is not None else ", filmed"
        print(f"{name}: {len(held_out.clips)} clips of {held_out.clips[0].num_frames / 25:g} s{of} from {args.shards}", file=sys.stderr)
    first = None if before is None else evaluate_checkpoint(args, args.before, held_out, judge)
    result = evaluate_truth_of(args, held_out, judge) if args.truth else evaluate_checkpoint(args, args.checkpoint, held_out, judge, args.lora)
    stages = {name: result.measurement.to_json()} | ({} if first is None or before is None else {before: first.measurement.to_json()})
    merged = merge_metrics(args.out, {"truth": stages[name]} if args.truth else {"stages": stages})
    pictures = write_sheets(args.sheets, name, result, held_out, first)
    if args.video:
        write_comparison(Path(args.video), result, held_out, first)
    if before is not None:
        code = finish_comparison(args, merged, before, name)
    else:
        code = 0
        print(json.dumps(stages[name], indent=1) if args.json else table(name, result.measurement))
    if args.report:
        from flowact.evaluation.report import Media, describe_machine, write_report

        videos = {"truth, before, after" if first else "truth, stream": Path(args.video)} if args.video else {}
        write_report(Path(args.out).parent, read_metrics(args.out), Media(pictures=pictures, videos=videos, facts=describe_machine()))
    return code


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that do not fit each other.

    Raises:
        UserError: names the option and what it goes with.
    """
    if args.compare:
        if args.checkpoint or args.before or args.truth or args.shards:
            raise UserError("--compare reads what --out holds and streams nothing; leave out --checkpoint, --before, --truth and --shards")
        return
    if not args.truth and not args.checkpoint:
        raise UserError("evaluate needs --checkpoint DIR, or --truth to measure the clips themselves")
    if args.truth and args.before:
        raise UserError("--before goes with --checkpoint; --truth measures the clips themselves")
    if not args.shards:
        raise UserError("evaluate needs --shards SPEC, the held-out clips: DIR/shards/val, or a brace string of .tar files")
    if args.autoencoder and not args.truth:
        raise UserError("--autoencoder goes with --truth; a checkpoint streams through its own autoencoder")


def names(args: argparse.Namespace) -> tuple[str | None, str]:
    """Entries of the checkpoint before, if there is one, and of what is measured."""
    if args.truth:
        return None, "truth"
    after = args.name or stage_name(Path(args.checkpoint))
    if not args.before:
        return None, after
    before = stage_name(Path(args.before))
    if before != after:
        return before, after
    folder = Path(args.before).resolve().name
    if not args.name and folder != Path(args.checkpoint).resolve().name:
        return folder, Path(args.checkpoint).resolve().name
    return "before", args.name or "after"


def chosen_judge(words: Sequence[str]) -> Judge | None:
    """The judges that `--judge` names, as one; None without any.

    Raises:
        UserError: no such judge, arguments that it does not take, or two for one thing.
    """
    if not words:
        return None
    from flowact import registry
    from flowact.evaluation.judges import Panel
    from flowact.strict_yaml import read_yaml

    specs = [read_yaml(word, "--judge")[0] for word in words]
    judge = Panel([registry.instantiate({"class_path": spec} if isinstance(spec, str) else spec, "judges") for spec in specs])
    judge.check()
    return judge


def finish_comparison(args: argparse.Namespace, metrics: dict[str, Any], before: str, after: str) -> int:
    """Put what changed between two entries into the metrics file, and print it."""
    from flowact.evaluation.comparison import COMPARISON, compare_named, comparison_table
    from flowact.evaluation.metrics_file import merge_metrics

    found = compare_named(metrics, before, after)
    merge_metrics(args.out, {COMPARISON: found})
    print(json.dumps(found, indent=1) if args.json else comparison_table(found))
    return 0


def evaluate_checkpoint(
    args: argparse.Namespace, folder: str, held_out: HeldOut, judge: Judge | None = None, loras: Sequence[str] = ()
) -> Evaluation:
    """Stream all clips as one batch through a checkpoint."""
    from flowact.evaluation import evaluate_stream
    from flowact.sampling.pipeline import Pipeline

    options: dict[str, Any] = {"refinement": chosen_refinement(args), "solver": chosen_solver(args)} | ({"loras": loras} if loras else {})
    pipeline = Pipeline.from_checkpoint(folder, args.device, args.micro_steps, args.guidance, **options)
    return evaluate_stream(pipeline, held_out, args.seed, judge=judge)


def evaluate_truth_of(args: argparse.Namespace, held_out: HeldOut, judge: Judge | None = None) -> Evaluation:
    """Measure the clips through the autoencoder that is named, the checkpoint's, or none."""
    from flowact.evaluation import evaluate_truth

    if args.autoencoder is None and args.checkpoint is None:
        return evaluate_truth(held_out, judge=judge)
    from flowact.autoencoders import load_autoencoder
    from flowact.checkpoints import open_checkpoint

    folder = args.autoencoder or open_checkpoint(args.checkpoint).autoencoder
    if folder is None:
        raise UserError(f"{args.checkpoint} carries no autoencoder; name its folder with --autoencoder")
    return evaluate_truth(held_out, load_autoencoder(folder).to(args.device).eval(), judge)


def stage_name(checkpoint: Path) -> str:
    """Name of the stage that made a checkpoint, from its lineage; the folder's name without one."""
    try:
        return str(json.loads((checkpoint / "lineage.json").read_text(encoding="utf-8"))["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        return checkpoint.resolve().name


def write_sheets(folder: str | None, name: str, result: Evaluation, held_out: HeldOut, first: Evaluation | None = None) -> dict[str, Any]:
    """Contact sheets by caption, one of before and after among them; also as PNG files if a folder is given."""
    from flowact.evaluation.pictures import before_after_sheet, identity_sheet, states_sheet

    title = name.replace("_", " ")
    sheets = {
        "states": (f"Characters that the model never saw, in each state ({title})", states_sheet(result.clips)),
        "identity": (f"The reference picture, and the stream after some seconds ({title})", identity_sheet(result.clips, held_out.references)),
    }
    if first is not None:
        shown = before_after_sheet(first.clips, result.clips, {clip.key: held_out.true_frames(clip.key) for clip in result.clips[:SHEET_CLIPS]})
        sheets["before-after"] = ("The same clips before and after, and what they should show", shown)
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for kind, (_, picture) in sheets.items():
            picture.save(Path(folder) / (f"{kind}.png" if kind == "before-after" else f"{name}-{kind}.png"))
    return dict(sheets.values())


def write_comparison(path: Path, result: Evaluation, held_out: HeldOut, first: Evaluation | None = None) -> None:
    """Truth on the left, what was before in the middle, measured frames on the right, of the clip that the plots show, with its sound."""
    import numpy as np

    from flowact.writers.mp4 import Mp4Writer

    example = result.measurement.details.get("example") or {}
    clip = next((clip for clip in result.clips if clip.key == example.get("key")), result.clips[0])
    streams = [] if first is None else [next(other.frames_THWC for other in first.clips if other.key == clip.key)]
    columns = [held_out.true_frames(clip.key), *streams, clip.frames_THWC]
    length = min(map(len, columns))
    frames = np.concatenate([column[:length] for column in columns], axis=2)
    height, width = frames.shape[1:3]
    path.parent.mkdir(parents=True, exist_ok=True)
    with Mp4Writer(path, width, height, scale=max(1, 384 // height), filter="nearest") as writer:
        writer.write(frames, clip.samples[: length * SAMPLES_PER_FRAME])


def table(name: str, measurement: Measurement) -> str:
    """The numbers as lines of text, with what each is."""
    from flowact.evaluation.report import METRICS, number

    lines = [name]
    for key, explanation in METRICS.items():
        lines.append(f"  {key:26s} {number(getattr(measurement, key), explanation.digits):>8s}   {explanation.label}, {explanation.aim}")
    if measurement.details.get("identity_note"):
        lines.append(f"  {measurement.details['identity_note']}")
    lines += [f"  {key} was not measured: {reason}" for key, reason in (measurement.details.get("skipped") or {}).items()]
    failures = measurement.details["lip_failures"]
    if failures:
        lines.append(f"  {failures} of {measurement.details['lip_clips']} mouths are frozen or unreadable; they count as 0 in lip_correlation")
    return "\n".join(lines)
