"""Write docs/results.md and docs/images/quickstart.png from a finished quickstart.

    flowact quickstart --out runs/quickstart
    python benchmarks/quickstart_results.py runs/quickstart
"""

from __future__ import annotations

import argparse
import json
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image
from results_page import replace_sections

from flowact.commands.quickstart import STAGES, scalars
from flowact.evaluation.report import describe_machine, number

DOCS = Path(__file__).resolve().parents[1] / "docs"
KERNELS = Path(__file__).resolve().parent / "results" / "cpu_kernels.json"
COLUMNS = {
    "lip_correlation": "lip correlation",
    "lip_correlation_shuffled": "with other speech",
    "lip_lag_frames": "lag, frames",
    "identity_error": "identity error",
    "identity_rank": "identity rank",
    "state_accuracy": "state accuracy",
    "drift": "drift",
    "motion_ratio": "motion ratio",
}


def row(name: str, numbers: dict[str, Any]) -> str:
    return f"| {name} | " + " | ".join(number(numbers[column]) for column in COLUMNS) + " |"


def write_page(run: Path) -> None:
    """The sections that a quickstart makes."""
    metrics = json.loads((run / "metrics.json").read_text())
    stream, seconds = metrics["stream"], metrics["seconds"]
    clips = metrics["stages"]["distillation"]["details"]
    facts = describe_machine()
    introduction = [
        "The first sections were made by `flowact quickstart --out runs/quickstart` and `python benchmarks/quickstart_results.py runs/quickstart`",
        f"on {datetime.now(UTC):%Y-%m-%d}.",
        "Machine: " + ", ".join(f"{name} {value}" for name, value in facts.items()) + ".",
        "One run, one seed. The figures are of people and speech that no stage has seen.",
    ]
    bought = [
        "Every stage is streamed in the same way: 3 evaluations a chunk, no guidance, 20 s per clip, through the structured memory bank",
        "(pretraining knows no memory but the reference).",
        "`truth` is the real clip through the same autoencoder: no model in front of this decoder can do better.",
        "",
        "| | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
        row("truth (ceiling)", metrics["truth"]),
        *(row(stage.replace("_", " "), numbers) for stage, numbers in metrics["stages"].items()),
        "",
        f"Lips, identity and state of the last stage come with 95 % intervals over {clips.get('lip_clips', 'the')} clips in `metrics.json`.",
    ]
    streamed = [
        "| | |",
        "|---|---|",
        f"| duration | {stream['duration_seconds']:.1f} s |",
        f"| time to first frame, from the sound of the first chunk | {stream['ttff_seconds']:.3f} s |",
        f"| frames per second, one stream | {stream['frames_per_second']:.0f} |",
        f"| network evaluations a chunk | {stream['evaluations_per_chunk']:g} |",
    ]
    times = [
        f"The whole run took {sum(seconds.values()) / 60:.1f} minutes.",
        "",
        "| step | seconds |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {value:.0f} |" for name, value in seconds.items()),
    ]
    sections = {"What each stage buys": bought, "The stream": streamed, "Time": times, "Curves": curves(run), "Choices for CPUs": kernel_choices()}
    replace_sections({heading: "\n".join(lines) for heading, lines in sections.items()}, introduction="\n".join(introduction))


def curves(run: Path) -> list[str]:
    """Where each stage's training loss began and ended, averaged over a few logged steps, and its loss on held-out clips at the end."""
    lines = ["| stage | steps | training loss, first | last | held-out loss | steps a second |", "|---" * 6 + "|"]
    for stage in STAGES:
        logs = run / "logs" / stage
        steps, losses = scalars(logs, "train/loss") or ([], [])
        held_out, speed = scalars(logs, "val/loss"), scalars(logs, "throughput/steps_per_second")
        if not losses:
            raise SystemExit(f"{logs} has no train/loss; is {run} a finished quickstart?")
        last = statistics.fmean(losses[-5:])
        lines.append(
            f"| {stage.replace('_', ' ')} | {steps[-1] + 1:.0f} | {losses[0]:.3f} | {last:.3f} | "
            f"{f'{held_out[1][-1]:.3f}' if held_out else '-'} | {f'{statistics.median(speed[1]):.2f}' if speed else '-'} |"
        )
    return lines


def kernel_choices() -> list[str]:
    """The figures of cpu_kernels.py, as it printed them."""
    found = json.loads(KERNELS.read_text())
    return [
        "`OMP_NUM_THREADS=1 python benchmarks/cpu_kernels.py > benchmarks/results/cpu_kernels.json`: CPU time of forward and backward in",
        f"bfloat16, as a ratio to what the choice replaces (torch {found['torch']}; below 1 is faster).",
        "",
        "| choice / other | ratio |",
        "|---|---|",
        *(f"| {name} | {ratio:.2f} |" for name, ratio in found["ratios"].items()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    (DOCS / "images").mkdir(parents=True, exist_ok=True)
    write_page(run)
    sheet = Image.open(run / "media" / "distillation-states.png").convert("RGBA")
    page_white = Image.new("RGBA", sheet.size, "white")
    Image.alpha_composite(page_white, sheet).convert("RGB").save(DOCS / "images" / "quickstart.png", optimize=True)
    print(DOCS / "results.md")


if __name__ == "__main__":
    main()
