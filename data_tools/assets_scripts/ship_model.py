"""Rebuild a folder of `flowact/assets/models` from a finished quickstart: weights in eight bits, measured again, with a model card.

    flowact quickstart --out runs/quickstart
    python -m data_tools.assets_scripts.ship_model runs/quickstart flowact/assets/models/puppet
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from flowact.checkpoints import open_checkpoint, write_checkpoint

LARGEST_MB = 12
ROWS = {
    "lip_correlation": "mouth opening against the truth, correlation",
    "lip_correlation_shuffled": "the same for other speech",
    "state_accuracy": "behaviour state that is seen",
    "identity_error": "colours off the reference",
    "identity_rank": "nearest to its own reference",
    "drift": "change of the figures from start to end",
    "motion_ratio": "motion over the truth's",
}
CARD = """# {name}: a synthetic character that speaks, listens, thinks and waits

{size} px, 25 frames a second, chunks of {frames} frames, one network evaluation for each that leaves the stream. It comes with FlowAct so that
`flowact serve` and `flowact generate` work without training.

- **Made by** `flowact quickstart` and `python -m data_tools.assets_scripts.ship_model`: stages {stages}; every recipe is in the package under
  `recipes/quickstart`. The last one is `checkpoint/recipe.yaml`, its ancestry `checkpoint/lineage.json`.
- **Trained on** clips of drawn characters (`flowact-data synth`) speaking the prompts of one voice artist that come with FlowAct (see
  `flowact/assets/speech/NOTICE.md`). No person's picture was used, and none can be shown: it draws this kind of character only.
- **Weights**: {megabytes:.1f} MB, eight bits a number (`flowact export --merge --eight-bit`), read back to float32.
- **Licence**: Apache-2.0, as FlowAct.

Measured on people and speech that were held out, as it is here (`flowact evaluate`), beside the truth through the same decoder:

| | this model | ceiling |
|---|---|---|
{rows}

It knows the words of its training captions, a few for each state, and no others. Faces of real people are out of its reach and give noise.
"""


def main() -> None:
    """Export, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished `flowact quickstart`")
    parser.add_argument("out", type=Path, help="folder to write; its old contents are replaced")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    checkpoint, metrics_file = args.out / "checkpoint", args.out / "metrics.json"
    flowact("export", str(args.run / "checkpoints" / "distillation"), "--merge", "--eight-bit", "--out", str(checkpoint))
    name_no_machine(checkpoint, args.run)
    shards = str(args.run / "shards" / "val")
    flowact("evaluate", "--checkpoint", str(checkpoint), "--shards", shards, "--out", str(metrics_file))
    flowact("evaluate", "--checkpoint", str(checkpoint), "--shards", shards, "--out", str(metrics_file), "--truth")
    shutil.copy(args.run / "held_out" / "reference.png", args.out / "picture.png")
    card = describe(args.out.name, checkpoint, json.loads(metrics_file.read_text(encoding="utf-8")))
    (args.out / "README.md").write_text(card, encoding="utf-8")
    print(card)


def name_no_machine(folder: Path, run: Path) -> None:
    """Write the checkpoint again with the documented place of a quickstart in its recipe, in the place of this machine's."""
    source = open_checkpoint(folder)
    text = json.dumps(source.recipe)
    for place in (str(run.resolve()), str(run)):
        text = text.replace(place, "runs/quickstart")
    write_checkpoint(
        folder,
        weights=load_file(folder / source.weights_name),
        ema=None,
        recipe=json.loads(text),
        lineage=source.lineage,
        autoencoder_folder=source.autoencoder,
        engine_saver=None,
    )


def flowact(*words: str) -> None:
    """Run a command as a user would."""
    subprocess.run([sys.executable, "-m", "flowact", *words], check=True)


def describe(name: str, checkpoint: Path, metrics: dict[str, Any]) -> str:
    """The model card."""
    lineage = json.loads((checkpoint / "lineage.json").read_text(encoding="utf-8"))
    megabytes = sum(path.stat().st_size for path in checkpoint.rglob("*.safetensors")) / 1e6
    if megabytes > LARGEST_MB:
        raise SystemExit(f"{megabytes:.1f} MB of weights; at most {LARGEST_MB} MB are shipped")
    (figures,), truth = metrics["stages"].values(), metrics["truth"]
    rows = [f"| {what} | {figures[key]:.3f} | {'-' if truth[key] is None else format(truth[key], '.3f')} |" for key, what in ROWS.items()]
    return CARD.format(
        name=name.capitalize(),
        size=lineage["latent_shape"][1] * 16,
        frames=lineage["chunk_frames"] * lineage["temporal_stride"],
        stages=", ".join([ancestor["stage"] for ancestor in lineage["ancestors"]] + [lineage["stage"]]),
        megabytes=megabytes,
        rows="\n".join(rows),
    )


if __name__ == "__main__":
    main()
