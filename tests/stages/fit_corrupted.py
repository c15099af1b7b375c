"""Self-forcing with a chain of all corruptors, whole and in parts: `python fit_corrupted.py FOLDER` with two processes, where FOLDER holds `parent`.
Started by a test.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lora_run import ResumableWindows
from stage_data import denoiser, trainer
from torch import Tensor

from flowact.callbacks.checkpoint import CheckpointFolder
from flowact.callbacks.ema import ExponentialMovingAverage, moving_average
from flowact.checkpoints import open_checkpoint
from flowact.memory import CorruptorChain, ErrorBufferMemory, GaussianMemory, GeneratedMemory, RolloutMemory, StructuredMemory
from flowact.memory.corruptors import Ramp
from flowact.stages import AdamW, SelfForcing
from flowact.strategies import full_fp32_weights
from flowact.strategies.deepspeed import DeepSpeed

STEPS, STOP = 8, 5


def chain() -> CorruptorChain:
    """Every source, the error buffer most often: it is full before STOP."""
    return CorruptorChain(
        {
            "checkpoint": GeneratedMemory(1.0),
            "average": GeneratedMemory(1.0, by="average"),
            "errors": ErrorBufferMemory(1.0, bins=2, size=3, min_sigma=0.0, max_sigma=1.0),
            "noise": GaussianMemory(),
            "own": RolloutMemory(1.0),
        },
        weights={"errors": 3.0},
        clean=0.25,
        ramp=Ramp(steps=2),
    )


def new_stage(corruptor: Any) -> SelfForcing:
    """Small and quick to move."""
    bank = StructuredMemory(long=1, short=1, chunk_frames=2)
    return SelfForcing(
        denoiser(seed=5), bank, corruptor=corruptor, chunk_frames=2, num_chunks=2, optimizer=AdamW(lr=1e-2, warmup_steps=1, final_lr=1.0)
    )


class Figures(pl.Callback):
    """Losses, what was drawn, and at the end the weights and the buffer."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.drawn: list[Any] = []
        self.weights: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]))
        held = pl_module._corruption
        self.drawn.append(None if held is None else [len(held[0]), held[1].by, held[1].chosen_B.tolist()])

    def on_train_end(self, trainer, pl_module) -> None:
        self.weights = full_fp32_weights(pl_module.denoiser)
        if pl_module.corruptor.has_state:
            errors = pl_module.corruptor.members["errors"]
            self.weights |= {"errors": errors.errors.clone(), "counts": torch.tensor(errors.counts)}


class Compared(pl.Callback):
    """How far memory by the average is from that by a network which holds the average whole, and how far memory by the trained weights is."""

    def __init__(self) -> None:
        self.off: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx != 2:
            return
        history, average = pl_module.chunks(batch, 0, 2), moving_average(trainer)
        weights = [average.averages()]
        torch.distributed.broadcast_object_list(weights, src=0)
        whole = denoiser()
        whole.load_state_dict(weights[0])

        def made(how: Any, *network: Any) -> Tensor:
            torch.manual_seed(0)
            return how(batch, history, torch.full((2,), 0.5), *network)[-1].latents_BFCHW

        expected = made(pl_module.regenerate, whole)
        for other in (made(pl_module.regenerate_by_average), made(pl_module.regenerate, pl_module.denoiser)):
            self.off.append(float((other - expected).abs().max()))


def fit(folder: Path, run_name: str, max_steps: int = STEPS, *, resume: bool = False, zero: int | None = None, **options: Any) -> Figures:
    """A run that writes a checkpoint, or goes on with it, as `flowact fit` does."""
    stage, figures = new_stage(options.pop("corruptor", None) or chain()), Figures()
    stage.recipe = {"init_from": str(folder / "parent")}
    if not resume:
        stage.initialise_from(folder / "parent")
    pl.seed_everything(7, verbose=False)
    every = [CheckpointFolder(str(folder / run_name)), ExponentialMovingAverage(decay=0.5), figures, *options.pop("callbacks", [])]
    strategy = {} if zero is None else {"strategy": DeepSpeed(stage=zero)}
    run = trainer(max_steps=max_steps, callbacks=every, enable_checkpointing=True, limit_val_batches=0, **strategy, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = str(open_checkpoint(folder / run_name).engine) if resume else None
        run.fit(stage, datamodule=ResumableWindows.of(stage, folder=folder / "ae"), ckpt_path=engine, weights_only=True)
    return figures


def whole_and_resumed(folder: Path, **options: Any) -> dict[str, Any]:
    """What a whole run and a resumed one saw, and whether they end with the same weights and buffers."""
    whole = fit(folder, "whole", **options)
    fit(folder, "parts", STOP, **options)
    resumed = fit(folder, "parts", resume=True, **options)
    same = whole.weights.keys() == resumed.weights.keys() and all(torch.equal(value, resumed.weights[key]) for key, value in whole.weights.items())
    return {
        "whole": whole.losses, "resumed": resumed.losses, "drawn": whole.drawn, "same": same, "errors": whole.weights["errors"].flatten().tolist(),
        "counts": whole.weights["counts"].tolist(),
    }  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1])
    report = whole_and_resumed(folder, devices=2, zero=2)
    partitioned = fit(folder, "partitioned", 4, devices=2, zero=3, callbacks=[compared := Compared()])
    report |= {"partitioned": partitioned.losses, "partitioned_drawn": partitioned.drawn, "off": compared.off}
    (folder / f"rank-{os.environ.get('LOCAL_RANK', '0')}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
