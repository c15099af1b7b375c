"""Train every stage and baseline that `flowact quickstart` leaves out, stream all of them, and write the table of docs/results.md.

    flowact quickstart --out runs/quickstart
    python benchmarks/stage_figures.py runs/quickstart

What is trained or measured already is not done again. `--only NAME ...` does some rows; the table holds the rows that there are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quickstart_results import COLUMNS as QUICKSTART_COLUMNS
from results_page import replace_sections

from flowact.evaluation.report import describe_machine, number
from flowact.machine import computes_bfloat16

RESULTS = Path(__file__).resolve().parent / "results" / "stage_figures.json"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: of the line.
        recipe: packaged recipe that trains it; None is trained by another line, or by the quickstart.
        checkpoint: folder under `checkpoints/`; the default is the name of the recipe.
        overrides: of the recipe.
        options: of `flowact evaluate`.
        against: the line that it has to be better than.
        figure: in this figure.
    """

    name: str
    recipe: str | None = None
    checkpoint: str = ""
    overrides: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    against: str = ""
    figure: str = ""

    @property
    def folder(self) -> str:
        return self.checkpoint or self.recipe or self.name.replace(" ", "_")


COLUMNS = QUICKSTART_COLUMNS | {"sharpness_ratio": "sharpness ratio"}
#: smaller is better
FALLING = {"identity_error", "drift"}
#: 1 is right
RATIOS = {"motion_ratio", "sharpness_ratio"}
CONTINUED = ("vars.stage=self_forcing_continued", "init_from=${vars.run}/checkpoints/self_forcing")
GUIDED = ("--guidance", "1.5")
ROWS = (
    Row("pretraining"),
    Row("diffusion forcing", against="pretraining", figure="state_accuracy"),
    Row("self forcing", against="diffusion forcing", figure="identity_error"),
    Row("self forcing, as many steps more", "self_forcing", "self_forcing_continued", CONTINUED),
    Row("audio motion", "audio_motion", against="self forcing, as many steps more", figure="lip_correlation"),
    Row("self forcing, guided", checkpoint="self_forcing", options=GUIDED, against="self forcing", figure="state_accuracy"),
    Row("guidance distillation, asked for as much", "cfg_distillation", options=GUIDED, against="self forcing", figure="state_accuracy"),
    Row("step distillation", checkpoint="distillation", against="self forcing", figure="lip_correlation"),
    Row("consistency distillation", "consistency_distillation", against="self forcing", figure="lip_correlation"),
    Row("distribution matching", "distribution_matching", against="step distillation", figure="sharpness_ratio"),
    Row("teacher forcing", "teacher_forcing", against="pretraining", figure="state_accuracy"),
    Row("Diffusion Forcing (Chen)", "diffusion_forcing_chen", against="pretraining", figure="state_accuracy"),
    Row("Self-Forcing (Huang)", "self_forcing_huang", against="teacher forcing", figure="sharpness_ratio"),
    Row("Rolling Forcing", "rolling_forcing", against="Diffusion Forcing (Chen)", figure="sharpness_ratio"),
)


def train(row: Row, run: Path) -> None:
    """Train a line's checkpoint unless it is there."""
    if row.recipe is None or (run / "checkpoints" / row.folder / "lineage.json").is_file():
        return
    precision = [] if computes_bfloat16() else ["trainer.precision=32-true"]
    overrides = [f"vars.run={run}", *row.overrides, *precision]
    subprocess.run([sys.executable, "-m", "flowact", "fit", "--config", f"quickstart/{row.recipe}.yaml", *overrides], check=True)


def measure(row: Row, run: Path, seed: int) -> dict[str, Any]:
    """The figures of a line with one noise, measured or read."""
    file = run / "stage_figures.json"
    name = f"{row.name}@{seed}"
    known = json.loads(file.read_text())["stages"] if file.is_file() else {}
    if name not in known:
        words = ("--checkpoint", run / "checkpoints" / row.folder, "--shards", run / "shards" / "val", "--out", file, "--name", name, "--seed", seed)
        subprocess.run([sys.executable, "-m", "flowact", "evaluate", *map(str, words), *row.options], check=True)
        known = json.loads(file.read_text())["stages"]
    return known[name]


def figures(row: Row, run: Path, seeds: int) -> dict[str, Any]:
    """Means over the noises of a line, and how far they lie apart in the figure that it exists for."""
    measured = [one["details"] | one for one in (measure(row, run, seed) for seed in range(seeds))]
    found: dict[str, Any] = {column: statistics.fmean(one[column] for one in measured) for column in COLUMNS}
    found["evaluations"] = measured[0]["generation"]["evaluations_per_chunk"]
    if row.figure:
        found["spread"] = max(one[row.figure] for one in measured) - min(one[row.figure] for one in measured)
    return found


def better(row: Row, ours: float, theirs: float) -> bool:
    """Whether a figure has improved; a ratio improves towards 1."""
    if row.figure in RATIOS:
        return abs(ours - 1) < abs(theirs - 1)
    return ours < theirs if row.figure in FALLING else ours > theirs


def section(found: dict[str, dict[str, Any]], seeds: int) -> str:
    """The table, and what each line was for."""
    facts = describe_machine()
    lines = [
        f"`python benchmarks/stage_figures.py runs/quickstart --seeds {seeds}` on {datetime.now(UTC):%Y-%m-%d},",
        "after `flowact quickstart --out runs/quickstart`; two processes under DeepSpeed ZeRO-2, each stage by its recipe in `recipes/quickstart`.",
        "Machine: " + ", ".join(f"{name} {value}" for name, value in facts.items()) + ".",
        f"One training run a line; figures are means over {seeds} noises of the stream, on people and speech that no stage has seen, 20 s a clip.",
        "",
        "| | evaluations a chunk | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for name, numbers in found.items():
        lines.append(f"| {name} | {numbers['evaluations']:g} | " + " | ".join(number(numbers[column]) for column in COLUMNS) + " |")
    lines += ["", "| | exists for | before | after | spread over noises | better |", "|---" * 6 + "|"]
    for row in ROWS:
        if row.figure and row.name in found and row.against in found:
            theirs, ours = found[row.against][row.figure], found[row.name][row.figure]
            label = f"{COLUMNS[row.figure]} of {row.against}"
            verdict = "yes" if better(row, ours, theirs) else "no"
            lines.append(f"| {row.name} | {label} | {number(theirs)} | {number(ours)} | {number(found[row.name]['spread'])} | {verdict} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished quickstart")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="lines to make; the others are shown if they were made before")
    parser.add_argument("--seeds", type=int, default=3, help="noises to stream with (default: %(default)s)")
    args = parser.parse_args()
    found = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else {}
    for row in ROWS:
        if args.only is None or row.name in args.only:
            train(row, args.run)
            found[row.name] = figures(row, args.run, args.seeds)
            kept = {row.name: found[row.name] for row in ROWS if row.name in found}
            RESULTS.write_text(json.dumps({"seeds": args.seeds, "machine": describe_machine(), "rows": kept}, indent=1) + "\n")
            replace_sections({"Every stage and baseline": section(kept, args.seeds)})


if __name__ == "__main__":
    main()
