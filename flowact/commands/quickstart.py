"""`flowact quickstart`: from nothing to a streamed, measured video, through the same commands and recipes that a team uses.

Every step is a command line that `quickstart.json` and the report show; a finished step is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowact.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

STAGES = ("pretraining", "diffusion_forcing", "self_forcing", "distillation")
STATE_FILE = "quickstart.json"
NEEDED_BYTES = 2 << 30
#: left by a training in this process; a child that inherits them would join that training's group
LAUNCH_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "RANK", "LOCAL_RANK", "GROUP_RANK")


@dataclass(frozen=True)
class Settings:
    """What makes two runs of the quickstart the same run.

    Attributes:
        speech: folder of the user's recordings; None takes those that are shipped.
        seed: of characters, training and noise.
        train_identities: people in the training set.
        val_identities: people held out.
        seconds: length of a clip.
        size: pixels of a side.
        quick: share of each stage's training steps; 1 is the shipped recipe.
    """

    speech: str | None = None
    seed: int = 0
    train_identities: int = 140
    val_identities: int = 12
    seconds: int = 20
    size: int = 64
    quick: float = 1.0


@dataclass(frozen=True)
class Step:
    """One command of the road.

    Attributes:
        name: key of its duration in metrics.json.
        title: what is shown.
        argv: the command line.
        parallel: training in several processes; needs a process of its own.
        resume: checkpoint folder that an interrupted training continues from.
    """

    name: str
    title: str
    argv: tuple[str, ...]
    parallel: bool = False
    resume: Path | None = None


@dataclass
class Progress:
    """Finished steps and their seconds, kept in `quickstart.json`."""

    path: Path
    settings: Settings
    seconds: dict[str, float] = field(default_factory=dict)

    def save(self) -> None:
        """Write whole or not at all."""
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps({"settings": asdict(self.settings), "seconds": self.seconds}, indent=1) + "\n")
        os.replace(partial, self.path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to, and on what."""
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the run; an interrupted run goes on there")
    parser.add_argument("--speech", metavar="DIR", help="your own recordings (wav, flac, mp3, ...); default: the shipped human speech")
    parser.add_argument("--seed", type=int, default=Settings.seed, metavar="N", help="of characters, training and noise (default: %(default)s)")
    parser.add_argument(
        "--train-identities", type=int, default=Settings.train_identities, metavar="N", help="people to train on (default: %(default)s)"
    )
    parser.add_argument("--val-identities", type=int, default=Settings.val_identities, metavar="N", help="people held out (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=Settings.seconds, metavar="N", help="length of a clip (default: %(default)s)")
    parser.add_argument(
        "--quick", type=float, default=Settings.quick, metavar="SHARE", help="share of the training steps, to try the road (default: 1)"
    )


def run(args: argparse.Namespace) -> int:
    """Walk the road, and leave stream.mp4, report.html and metrics.json."""
    out = Path(args.out)
    speech = str(Path(args.speech).resolve()) if args.speech else None
    settings = Settings(speech, args.seed, args.train_identities, args.val_identities, args.seconds, quick=args.quick)
    check(settings, out)
    progress = open_run(out, settings)
    from rich.console import Console

    console = Console(stderr=True, quiet=args.quiet)
    steps = plan(out, settings)
    for number, step in enumerate(steps, 1):
        if step.name in progress.seconds:
            console.print(f"[dim][{number}/{len(steps)}] {step.title}: done before[/dim]", highlight=False)
            continue
        console.print(f"[bold]\\[{number}/{len(steps)}] {step.title}[/bold]  [dim]{left(progress, steps)}[/dim]", highlight=False)
        begin = time.perf_counter()
        execute(step, out)
        progress.seconds[step.name] = round(time.perf_counter() - begin, 1)
        progress.save()
    finish(out, steps, progress)
    summarise(out, console)
    return 0


def check(settings: Settings, out: Path) -> None:
    """Everything that can go wrong later and can be seen now.

    Raises:
        UserError: no usable speech, too few people, or no space on the disk.
    """
    if settings.train_identities < 8 or settings.val_identities < 2:
        raise UserError(f"{settings.train_identities} and {settings.val_identities} people are too few; train on at least 8 and hold out at least 2")
    if settings.seconds < 8:
        raise UserError(f"--seconds {settings.seconds}: a clip needs at least 8 s for the training window with its history")
    if not 0 < settings.quick <= 1:
        raise UserError(f"--quick {settings.quick:g}: a share of the training steps lies in (0, 1]")
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < NEEDED_BYTES:
        raise UserError(f"{existing} has {free / 2**30:.1f} GiB free, the quickstart needs {NEEDED_BYTES >> 30} GiB; choose another --out")
    from flowact.characters.speech import load_speech

    load_speech(Path(settings.speech) if settings.speech else None)


def open_run(out: Path, settings: Settings) -> Progress:
    """The run in a folder, new or begun before.

    Raises:
        UserError: the folder holds something else, or a run with other settings.
    """
    path = out / STATE_FILE
    if path.is_file():
        found = json.loads(path.read_text())
        theirs = found["settings"]
        other = [f"{name}: {theirs.get(name)!r} there, {value!r} now" for name, value in asdict(settings).items() if theirs.get(name) != value]
        if other:
            raise UserError(f"{out} holds a quickstart with other settings ({'; '.join(other)}); choose another --out, or remove that folder")
        return Progress(path, settings, found["seconds"])
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no quickstart; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    progress = Progress(path, settings)
    progress.save()
    return progress


def plan(out: Path, settings: Settings) -> list[Step]:
    """The commands, in order."""
    from flowact.machine import computes_bfloat16

    shards, checkpoints, metrics = out / "shards", out / "checkpoints", out / "metrics.json"
    speech = ("--speech", settings.speech) if settings.speech else ()
    jobs = str(os.cpu_count() or 1)
    people = ("--train-identities", str(settings.train_identities), "--val-identities", str(settings.val_identities))
    synth = ("--seconds", str(settings.seconds), "--size", str(settings.size), "--seed", str(settings.seed), "-j", jobs)
    human = ("--train-identities", "1", "--val-identities", "1", "--seconds", "4", "--size", "64", "--seed", str(settings.seed), "-j", jobs)
    precision = "bf16" if computes_bfloat16() else "fp32"
    steps = [
        Step(
            "synth",
            "Render a character speaking recorded speech",
            data("synth", "--character", "Puppet", "--out", out / "clips", *people, *synth, *speech),
        ),
        Step("pack", "Pack shards", data("pack", out / "clips", "--out", shards, "--min-shards", "4")),
        Step(
            "human",
            "Render the second character, a rigged human",
            data("synth", "--character", "RiggedHuman", "--out", out / "human" / "clips", *human, *speech),
        ),
        Step("human_pack", "Pack a sample shard of the human", data("pack", out / "human" / "clips", "--out", out / "human" / "shards")),
        fit(out, settings, "autoencoder", "Train the causal video autoencoder"),
        Step(
            "encode",
            "Encode latents, sound and text once",
            data("encode", "all", shards, "--autoencoder", checkpoints / "autoencoder", "--precision", precision, "-j", jobs),
        ),
        *(fit(out, settings, stage, f"Train: {stage.replace('_', ' ')}") for stage in STAGES),
        Step("held_out", "Take out a clip that no stage has seen", data("take", shards / "val", "--out", out / "held_out")),
        Step(
            "stream",
            "Stream a clip for speech and a face that were held out",
            flowact(
                *("generate", "--checkpoint", checkpoints / STAGES[-1], "--audio", out / "held_out" / "speech.wav"),
                *("--reference", out / "held_out" / "reference.png", "--prompts", out / "held_out" / "prompts.yaml"),
                *("--out", out / "stream.mp4", "--facts", out / "stream.json"),
            ),
        ),
        Step(
            "evaluate_truth",
            "Measure the truth through the autoencoder",
            evaluate(shards, metrics, "--truth", "--autoencoder", checkpoints / "autoencoder"),
        ),
    ]
    for stage in STAGES:
        media = ("--sheets", out / "media", "--video", out / "media" / f"{stage}.mp4")
        steps.append(
            Step(f"evaluate_{stage}", f"Measure: {stage.replace('_', ' ')}", evaluate(shards, metrics, "--checkpoint", checkpoints / stage, *media))
        )
    return steps


def flowact(*words: object) -> tuple[str, ...]:
    """A `flowact` command line."""
    return ("flowact", *map(str, words))


def data(*words: object) -> tuple[str, ...]:
    """A `flowact-data` command line."""
    return ("flowact-data", *map(str, words))


def evaluate(shards: Path, metrics: Path, *words: object) -> tuple[str, ...]:
    """A `flowact evaluate` command line."""
    return flowact("evaluate", "--shards", shards / "val", "--out", metrics, *words)


def fit(out: Path, settings: Settings, stage: str, title: str) -> Step:
    """Training of one stage from its shipped recipe."""
    recipe = f"quickstart/{stage}.yaml"
    from flowact.machine import computes_bfloat16

    overrides = [f"vars.run={out}", f"seed={settings.seed}"]
    if not computes_bfloat16():
        overrides.append("trainer.precision=32-true")
    if settings.quick < 1:
        from flowact.recipe import load_recipe

        steps = max(2, round(load_recipe(recipe, overrides).config["trainer"]["max_steps"] * settings.quick))
        overrides.append(f"vars.steps={steps}")
    return Step(stage, title, flowact("fit", "--config", recipe, *overrides), parallel=True, resume=out / "checkpoints" / stage)


def left(progress: Progress, steps: list[Step]) -> str:
    """What remains, in words, from how the time of a whole run is spread over the steps."""
    known = [step for step in steps if step.name in progress.seconds]
    share = {step.name: SHARES.get(step.name, 0.01) for step in steps}
    done = sum(share[step.name] for step in known)
    if done < 0.02:
        return "about a quarter of an hour on two cores"
    spent = sum(progress.seconds[step.name] for step in known)
    rest = spent / done * (sum(share.values()) - done)
    return f"about {max(1, round(rest / 60))} min left"


#: share of a whole run's time, measured; only the estimate of the remaining time depends on it
SHARES = {
    "synth": 0.02,
    "autoencoder": 0.12,
    "encode": 0.04,
    "pretraining": 0.22,
    "diffusion_forcing": 0.24,
    "self_forcing": 0.14,
    "distillation": 0.13,
    "evaluate_truth": 0.02,
}


def execute(step: Step, out: Path) -> None:
    """Run a step's command.

    Raises:
        UserError: the command failed; says which, and that the run goes on from there.
    """
    argv = list(step.argv)
    if step.resume is not None and (step.resume / "manifest.json").is_file():
        argv += ["--resume", str(step.resume)]
    if step.parallel:
        environment = {name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES}
        code = subprocess.run([sys.executable, "-m", "flowact", *argv[1:]], check=False, env=environment).returncode
    else:
        code = command(argv[0])(argv[1:])
    if code == 130 or code < 0:
        raise KeyboardInterrupt
    if code:
        raise UserError(f"the step '{step.title}' failed; its command was\n  {' '.join(argv)}\nThe same quickstart command goes on from here: {out}")


def command(program: str) -> Callable[[list[str]], int]:
    """The entry point of an installed program, found as pip found it."""
    from importlib.metadata import entry_points

    (found,) = entry_points(group="console_scripts", name=program)
    return found.load()


def finish(out: Path, steps: list[Step], progress: Progress) -> None:
    """Put stream and timings into metrics.json and write the report."""
    from flowact.evaluation.metrics_file import merge_metrics
    from flowact.evaluation.report import Media, describe_machine, write_report

    facts = json.loads((out / "stream.json").read_text())
    wanted = ("ttff_seconds", "frames_per_second", "evaluations_per_chunk", "duration_seconds")
    metrics = merge_metrics(out / "metrics.json", {"stream": {name: facts[name] for name in wanted}, "seconds": progress.seconds})
    media = Media(
        title="FlowAct quickstart",
        summary="A synthetic character that no stage has seen, speaking speech that no stage has heard: streamed chunk by chunk through the "
        "memory bank, three evaluations a chunk, and measured against its exact truth.",
        hero=out / "stream.mp4",
        videos={f"{stage.replace('_', ' ')}: truth left, stream right": out / "media" / f"{stage}.mp4" for stage in STAGES},
        pictures={
            "Held-out people in each state (final stage)": out / "media" / f"{STAGES[-1]}-states.png",
            "The reference, and the stream after 0, 5, 10 and 20 s (final stage)": out / "media" / f"{STAGES[-1]}-identity.png",
        },
        training={stage: curve for stage in STAGES if (curve := loss_curve(out / "logs" / stage))},
        commands=[(step.title, " ".join(step.argv)) for step in steps],
        facts=describe_machine(),
        seconds_per_step=step_seconds(out),
    )
    write_report(out, metrics, media)


def loss_curve(folder: Path) -> tuple[list[float], list[float]] | None:
    """Steps and training losses of a run's TensorBoard files."""
    return scalars(folder, "train/loss")


def scalars(folder: Path, tag: str) -> tuple[list[float], list[float]] | None:
    """Steps and values of a scalar, or None if the run has none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    if tag not in accumulator.Tags()["scalars"]:
        return None
    events = accumulator.Scalars(tag)
    return [float(event.step) for event in events], [event.value for event in events]


def step_seconds(out: Path) -> Mapping[str, float]:
    """Median seconds of an optimizer step of each stage, as the throughput callback logged them."""
    import statistics

    found = {}
    for stage in ("autoencoder", *STAGES):
        curve = scalars(out / "logs" / stage, "throughput/steps_per_second")
        if curve:
            found[stage] = round(1 / max(statistics.median(curve[1]), 1e-9), 3)
    return found


def summarise(out: Path, console: Console) -> None:
    """What came of it, and what to do next."""
    from rich.table import Table

    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    table = Table(title="What each stage bought, on people and speech that were held out (3 evaluations a chunk)")
    columns = ("lip_correlation", "lip_correlation_shuffled", "identity_error", "identity_rank", "state_accuracy", "drift", "motion_ratio")
    table.add_column("stage")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for name, numbers in {"truth (ceiling)": metrics["truth"], **metrics["stages"]}.items():
        table.add_row(name, *("-" if numbers[column] is None else f"{numbers[column]:.3f}" for column in columns))
    console.print(table)
    stream = metrics["stream"]
    total = sum(metrics["seconds"].values())
    console.print(
        f"{out / 'stream.mp4'}: {stream['duration_seconds']:.1f} s, first frame after {stream['ttff_seconds']:.2f} s, "
        f"{stream['frames_per_second']:.0f} frames/s, {stream['evaluations_per_chunk']:g} evaluations a chunk\n"
        f"{out / 'report.html'}: open it in a browser\n"
        f"tensorboard --logdir {out / 'logs'}: the curves and previews\n"
        f"whole run: {total / 60:.1f} min",
        highlight=False,
    )
