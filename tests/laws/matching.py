"""A stage of distribution matching without shards, and short trainings of it under every engine."""

from __future__ import annotations

import warnings

import lightning.pytorch as pl
import torch
from oracle import knowing_batch
from torch.utils.data import DataLoader

from flowact.memory import StructuredMemory
from flowact.stages import AdamW, DistributionMatching
from flowact.strategies import local_values
from flowact.strategies.deepspeed import DeepSpeed

N, W, HISTORY = 2, 3, 4
FAST = AdamW(lr=1e-2, warmup_steps=0, final_lr=1.0)


class Unchecked(DistributionMatching):
    """Without shards, whose facts a stage would look at."""

    def setup(self, stage: str) -> None:
        pass


def stage_of(student, real=None, fake=None, cls=Unchecked, **options):
    sizes = {"memory": StructuredMemory(long=3, short=1, chunk_frames=N), "chunk_frames": N, "num_chunks": W, "start": 0.0}
    stage = cls(student, **(sizes | {"optimizer": FAST, "fake_score_optimizer": FAST} | options))
    if fake is not None:
        stage.fake_score = stage.roles()["fake_score"].network = fake
    stage.real_score.copy_from(real or stage.score)
    return stage


def batch_for(stage, **options):
    return knowing_batch(stage.history_frames + stage.window_frames, **options)


def run_of(steps, strategy="auto", callbacks=(), **options):
    return pl.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, strategy=strategy, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, callbacks=list(callbacks), **options,
    )  # fmt: skip


def fit(stage, steps, batch=32, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = run_of(steps, **options)
        run.fit(stage, DataLoader([batch_for(stage, batch=batch, seed=seed) for seed in range(4)], batch_size=None))
    return run


class Watching(Unchecked):
    """Checks at every update that only the role whose turn it is moves."""

    def update(self, name, loss):
        before = {role: [local_values(p).clone() for p in self.roles()[role].network.parameters()] for role in self.roles()}
        super().update(name, loss)
        for role, values in before.items():
            same = [torch.equal(local_values(p), old) for p, old in zip(self.roles()[role].network.parameters(), values, strict=True)]
            assert all(same) if role != name else not any(same[-2:]), f"{role} after an update of {name}"
        self.seen = [*getattr(self, "seen", []), (name, self.global_step)]


#: options of a trainer, made anew for each run
ENGINES = {
    "auto": dict,
    "ZeRO 2": lambda: {"strategy": DeepSpeed(stage=2)},
    "ZeRO 2, bf16-mixed": lambda: {"strategy": DeepSpeed(stage=2), "precision": "bf16-mixed"},
    "ZeRO 2, bf16-true": lambda: {"strategy": DeepSpeed(stage=2), "precision": "bf16-true"},
    "ZeRO 3": lambda: {"strategy": DeepSpeed(stage=3)},
}
