"""Draw the curves on the pages of the stages from the logs of a finished quickstart, and of the optional stages where they were run.

flowact quickstart --out runs/quickstart
python benchmarks/stage_curves.py runs/quickstart
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowact.commands.quickstart import scalars

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images" / "stages"
LOSS = {"train/loss": "train/loss", "val/loss": "val/loss"}
LEVELS = {f"train/loss_sigma_{low}": f"sigma from {low}" for low in ("0.00", "0.25", "0.50", "0.75")}
#: stage -> panels; a panel is its title and what it draws, tag -> name. A title that ends in "log" has such an axis
PANELS: dict[str, list[tuple[str, dict[str, str]]]] = {
    "autoencoder": [("PSNR, dB", {"train/psnr": "train/psnr", "val/psnr": "val/psnr"}), ("train/loss", {"train/loss": "train/loss"})],
    "pretraining": [("loss", LOSS), ("train/loss by noise level", LEVELS)],
    "diffusion_forcing": [("loss", LOSS), ("train/loss by noise level", LEVELS)],
    "audio_motion": [("loss", LOSS), ("val/loss_mouth", {"val/loss_mouth": "val/loss_mouth"})],
    "self_forcing": [("loss", LOSS), ("train/memory_error", {"train/memory_error": "train/memory_error"})],
    "distillation": [("loss, log", LOSS), ("train/grad_norm", {"train/grad_norm": "train/grad_norm"})],
    "cfg_distillation": [("loss, log", LOSS), ("train/grad_norm", {"train/grad_norm": "train/grad_norm"})],
    "consistency_distillation": [("loss, log", LOSS), ("train/grad_norm", {"train/grad_norm": "train/grad_norm"})],
    "distribution_matching": [
        ("losses of the roles, log", {"train/fake_score_loss": "train/fake_score_loss", "train/student_loss": "train/student_loss"}),
        ("train/saturation", {"train/saturation": "train/saturation"}),
    ],
}
SMOOTHED = 5


def smooth(values: list[float]) -> list[float]:
    """A centred moving average over at most `SMOOTHED` points, narrower at the ends, so that a curve is not bent there."""
    half = [min(SMOOTHED // 2, index, len(values) - 1 - index) for index in range(len(values))]
    return [sum(values[index - k : index + k + 1]) / (2 * k + 1) for index, k in enumerate(half)]


def draw(axes: Axes, folder: Path, title: str, tags: dict[str, str]) -> int:
    """Draw one panel; how many of its curves the log has."""
    drawn = 0
    for tag, name in tags.items():
        found = scalars(folder, tag)
        if not found:
            continue
        steps, values = found
        few = len(values) < 2 * SMOOTHED
        (line,) = axes.plot(steps, values if few else smooth(values), marker="o" if few else "", markersize=4, linewidth=2, label=name)
        if not few:
            axes.plot(steps, values, color=line.get_color(), linewidth=0.8, alpha=0.4)
        drawn += 1
    axes.set_title(title.removesuffix(", log"), fontsize=11)
    axes.set_xlabel("step")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if title.endswith(", log"):
        axes.set_yscale("log")
    if drawn > 1:
        axes.legend(frameon=False, fontsize=9)
    return drawn


def main(argv: list[str] | None = None) -> int:
    """Write one picture for each stage that has logs; 1 if there is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a quickstart, with logs/STAGE in it")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder for the pictures (default: docs/images/stages)")
    args = parser.parse_args(argv)
    written = 0
    for stage, panels in PANELS.items():
        folder = args.run / "logs" / stage
        if not folder.is_dir():
            continue
        figure = Figure(figsize=(9, 3), dpi=110, layout="constrained")
        places = figure.subplots(1, len(panels))
        drawn = [draw(axes, folder, title, tags) for axes, (title, tags) in zip(places, panels, strict=True)]
        if all(drawn):
            args.out.mkdir(parents=True, exist_ok=True)
            figure.savefig(args.out / f"{stage}.png")
            written += 1
            print(args.out / f"{stage}.png")
        else:
            print(f"{stage}: left out, its log lacks {[title for (title, _), count in zip(panels, drawn, strict=True) if not count]}")
    return 0 if written else 1


if __name__ == "__main__":
    raise SystemExit(main())
