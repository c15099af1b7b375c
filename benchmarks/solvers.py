"""What a solver buys at equal numbers of evaluations: lips, residual, and how far the film is from the one of many evaluations.

    pip install -e plugins/flowact-diffusers-solvers
    python benchmarks/solvers.py runs/quickstart --stage self_forcing

Every cell streams the same held-out clips from the same noise. "Distance" is the root mean square difference of pixels, in 0..1, to the film that
Euler's method gives with `--fine` evaluations a stair: the error of the solver alone, as far as a stream, which sees what it made, lets one compare.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from flowact.evaluation.held_out import Evaluation, evaluate_stream, read_held_out
from flowact.sampling.pipeline import Pipeline
from flowact.schedulers import solver_of

SOLVERS = ("Euler", "AdamsBashforth", "UniPC", "DPMSolverPlusPlus")
RESULTS = Path(__file__).resolve().parent / "results" / "solvers.json"


def distance(made: Evaluation, fine: Evaluation) -> float:
    """Root mean square difference of two films' pixels, in 0..1."""
    squares = [
        np.square(a.frames_THWC.astype(np.float32) - b.frames_THWC.astype(np.float32)).mean() / 255**2
        for a, b in zip(made.clips, fine.clips, strict=True)
    ]
    return float(np.sqrt(np.mean(squares)))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a quickstart")
    parser.add_argument("--stage", default="self_forcing", help="whose checkpoint (default: %(default)s)")
    parser.add_argument("--solvers", nargs="+", default=SOLVERS, help="names of `flowact list solvers` (default: %(default)s)")
    parser.add_argument("--micro-steps", nargs="+", type=int, default=[1, 2, 4], help="evaluations per stair (default: %(default)s)")
    parser.add_argument("--fine", type=int, default=16, help="evaluations per stair of the film that all are compared with (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    held_out = read_held_out(str(args.run / "shards" / "val"), args.seconds, args.clips)
    checkpoint = args.run / "checkpoints" / args.stage

    def streamed(solver: str, micro_steps: int) -> Evaluation:
        return evaluate_stream(Pipeline.from_checkpoint(checkpoint, micro_steps=micro_steps, solver=solver_of(solver)), held_out)

    fine = streamed("Euler", args.fine)
    cells: list[dict[str, Any]] = []
    for micro_steps, solver in track([(m, s) for m in args.micro_steps for s in args.solvers], "streams"):
        made = streamed(solver, micro_steps)
        cells.append(row(solver, made, distance(made, fine)))
    cells.append(row("Euler", fine, 0.0))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"stage": args.stage, "clips": len(held_out.clips), "seconds": args.seconds}
    args.out.write_text(json.dumps({**about, "cells": cells}, indent=1) + "\n", encoding="utf-8")
    print("| evaluations a chunk | solver | lips | residual | distance |\n|---|---|---|---|---|")
    for cell in cells:
        figures = " | ".join(f"{cell[name]:.3f}" for name in ("lip_correlation", "residual", "distance"))
        print(f"| {cell['evaluations']:g} | `{cell['solver']}` | {figures} |")


def row(solver: str, made: Evaluation, distance_to_fine: float) -> dict[str, Any]:
    """The figures of one stream."""
    found = made.measurement
    generation = found.details["generation"]
    return {
        "solver": solver,
        "evaluations": generation["evaluations_per_chunk"],
        "lip_correlation": found.lip_correlation,
        "motion_ratio": found.motion_ratio,
        "residual": found.details["residual"],
        "distance": distance_to_fine,
    }


if __name__ == "__main__":
    main()
