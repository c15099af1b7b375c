"""What refining the short memory does to a stream of a quickstart's last model: "Memory refinement" in docs/results.md.

    flowact quickstart --out runs/quickstart
    python benchmarks/refinement.py runs/quickstart

Every line is one `flowact evaluate` on the held-out people and speech; the mean over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from results_page import replace_sections
from rich.progress import track

from flowact.evaluation.report import describe_machine

RESULTS = Path(__file__).resolve().parent / "results" / "refinement.json"
LINES: dict[str, tuple[str, ...]] = {
    "never": (),
    "every 8 chunks": ("--refine", "8"),
    "every 2 chunks": ("--refine", "2"),
    "every 2 chunks, from level 0.6": ("--refine", "2", "--refine-sigma", "0.6"),
    "when colours drift": ("--refine", "drift"),
}
FIGURES = {"lip_correlation": "lips", "state_accuracy": "states", "identity_error": "identity error", "drift": "drift", "motion_ratio": "motion"}


def figures(run: Path, options: tuple[str, ...], seed: int) -> dict[str, float]:
    """The numbers of one evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "metrics.json"
        words = ["--checkpoint", str(run / "checkpoints" / "distillation"), "--shards", str(run / "shards" / "val"), "--out", str(out)]
        command = [sys.executable, "-m", "flowact", "evaluate", *words, "--seed", str(seed), "--quiet", *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (found,) = json.loads(out.read_text())["stages"].values()
    return {name: found[name] for name in FIGURES}


def page(result: dict[str, Any]) -> str:
    """The section of docs/results.md."""
    head = " | ".join(FIGURES.values())
    rows = "\n".join(f"| {name} | " + " | ".join(f"{values[key]:.3f}" for key in FIGURES) + " |" for name, values in result["lines"].items())
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    return f"""`python benchmarks/refinement.py runs/quickstart`, {result["date"]}; {machine}; seeds: {result["seeds"]}; 12 clips of 20 s each.

| refined | {head} |
|---|{"---|" * len(FIGURES)}
{rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of `flowact quickstart`")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    lines = {}
    for name, options in track(LINES.items(), "refinement"):
        found = [figures(args.run, options, seed) for seed in range(args.seeds)]
        lines[name] = {figure: statistics.mean(values[figure] for values in found) for figure in FIGURES}
    machine = describe_machine(("torch",))
    result = {"date": datetime.now(UTC).date().isoformat(), "machine": machine, "seeds": args.seeds, "load": os.getloadavg()[0], "lines": lines}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    replace_sections({"Memory refinement": page(result)})
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
