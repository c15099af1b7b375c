"""Watches the curves of a run and says, in words, when one shows a known failure."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from flowact.callbacks.boards import Boards
from flowact.callbacks.throughput import Throughput
from flowact.errors import UserError
from flowact.stages.curves import is_logged

log = logging.getLogger(__name__)

#: points that the recent and the past value of a curve are averages over, about
_RECENT, _PAST = 5, 50
#: curves that are measured now and then: a point counts once, when it is new
_RARE = ("val/", "preview/")
_WATCHED = ("train/", "ema/", "throughput/data_wait_share", *_RARE)


@dataclass
class Curve:
    """A curve, smoothed exponentially over few and over many points; both begin as plain means.

    Attributes:
        recent: average over the last few points.
        past: average over many.
        noise: mean distance of a point from `recent` before it.
        start: mean of the first few points.
        last: the last point.
        count: points so far.
    """

    recent: float = 0.0
    past: float = 0.0
    noise: float = 0.0
    start: float = 0.0
    last: float = math.nan
    count: int = 0

    def add(self, value: float) -> None:
        """Take in a point; one that is not finite is kept as `last` alone."""
        self.last = value
        if not math.isfinite(value):
            return
        self.count += 1
        if self.count > 1:
            self.noise += (abs(value - self.recent) - self.noise) / min(self.count - 1, _PAST)
        self.recent += (value - self.recent) / min(self.count, _RECENT)
        self.past += (value - self.past) / min(self.count, _PAST)
        if self.count <= _RECENT:
            self.start = self.recent

    @property
    def trend(self) -> float:
        """Recent over past value, less 1; 0 while there are too few points, or where the difference is no more than noise."""
        difference = self.recent - self.past
        known = self.count >= 2 * _RECENT and abs(difference) > 1.5 * self.noise
        return difference / abs(self.past) if known and self.past else 0.0


class TrainingHealth(Callback):
    """Warn, once per failure and interval, when a curve shows one of the known failures: in the log and as text in the run's loggers.

    It reads what is logged anyway, at the trainer's log interval and on the first process, changes nothing and draws no random number. What each
    warning means and what to do is also in docs/watching.md.

    Args:
        start_step: no warning before this optimizer step.
        min_points: points of a curve before it is judged.
        repeat_every: optimizer steps until a failure that lasts is named again.
        plateau: a loss from scratch that is not below this share of where it began has learnt nothing.
        critic_trend: change of the fake score's loss, recent over past, beyond which it does not keep up with the student.
        saturation: least and largest healthy spread of latents or colours, over the data's.
        beyond_range: largest healthy share of latent values beyond 99.9 % of the data's.
        motion: least healthy motion, over the data's.
        motion_fall: loss of motion, recent over past, that is a collapse on its way.
        explosion: recent gradient norm over its past beyond which it explodes.
        ema_distance: distance of the moving average to the weights, over their norm, beyond which it is behind.
        data_wait: largest healthy share of time spent waiting for data.

    Raises:
        UserError: a number that is not positive, or an empty range of saturation.
    """

    def __init__(
        self,
        start_step: int = 100,
        min_points: int = 3,
        repeat_every: int = 1000,
        plateau: float = 0.95,
        critic_trend: float = 0.25,
        saturation: tuple[float, float] = (0.4, 1.5),
        beyond_range: float = 0.02,
        motion: float = 0.25,
        motion_fall: float = 0.4,
        explosion: float = 3.0,
        ema_distance: float = 0.2,
        data_wait: float = 0.3,
    ) -> None:
        numbers = {
            "min_points": min_points, "repeat_every": repeat_every, "plateau": plateau, "critic_trend": critic_trend, "beyond_range": beyond_range,
            "motion": motion, "motion_fall": motion_fall, "explosion": explosion, "ema_distance": ema_distance, "data_wait": data_wait,
        }  # fmt: skip
        for name, value in numbers.items():
            if not value > 0:
                raise UserError(f"{name} of TrainingHealth is {value}; it is above 0.")
        if not 0 <= saturation[0] < saturation[1]:
            raise UserError(f"saturation of TrainingHealth is {saturation}; it is the least and the largest healthy value, such as (0.4, 1.5).")
        self.start_step = start_step
        self.min_points = min_points
        self.repeat_every = repeat_every
        self.plateau = plateau
        self.critic_trend = critic_trend
        self.saturation = saturation
        self.beyond_range = beyond_range
        self.motion = motion
        self.motion_fall = motion_fall
        self.explosion = explosion
        self.ema_distance = ema_distance
        self.data_wait = data_wait
        self.curves: dict[str, Curve] = {}
        self._warned: dict[str, int] = {}
        self._from_scratch = True
        self._last_step = 0

    # --- when

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._from_scratch = not getattr(pl_module, "recipe", {}).get("init_from")
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or step == self._last_step or not is_logged(trainer, step):
            return
        self._last_step = step
        points = {name: float(value) for name, value in trainer.callback_metrics.items()}
        speed = next((callback for callback in trainer.callbacks if isinstance(callback, Throughput)), None)  # type: ignore[attr-defined]
        for name, message in self.observe(step, points | (speed.rates() if speed is not None else {})).items():
            log.warning("step %d, %s: %s", step, name, message)
            Boards.of(trainer).text(f"health/{name}", message, step)

    def observe(self, step: int, points: Mapping[str, float]) -> dict[str, str]:
        """Take in what was logged at a step; the failures to warn of, by name."""
        for name, value in points.items():
            if name.startswith(_WATCHED):
                curve = self.curves.setdefault(name, Curve())
                if not name.startswith(_RARE) or value != curve.last:
                    curve.add(value)
        if step < self.start_step:
            return {}
        due: dict[str, str] = {}
        for name, message in self._failures():
            if name not in due and step - self._warned.get(name, -self.repeat_every) >= self.repeat_every:
                due[name] = message
        self._warned |= dict.fromkeys(due, step)
        return due

    # --- what

    def _known(self, *names: str) -> Iterator[tuple[str, Curve]]:
        """Those of the curves that have points enough to be judged."""
        return ((name, self.curves[name]) for name in names if name in self.curves and self.curves[name].count >= self.min_points)

    def _failures(self) -> Iterator[tuple[str, str]]:
        """Name of each failure that shows now; what is seen, why it happens, and what to do."""
        for name, loss in self._known("train/loss"):
            if self._from_scratch and loss.recent >= self.plateau * loss.start:
                yield "nothing is learnt", (
                    f"{name} is {loss.recent:.3g} and began at {loss.start:.3g}. The rate is too low or still warming up, or the data is not what "
                    "the network is made for. Raise optimizer.lr, shorten warmup_steps, and check the data with `flowact-data lint`."
                )
        for name, norm in self._known(*(name for name in self.curves if name.endswith("grad_norm"))):
            if norm.recent == 0.0:
                yield "nothing is learnt", (
                    f"{name} is 0: no gradient reaches the weights. Everything that is trained is frozen or unused; check `adapter` and init_from."
                )
            if not math.isfinite(norm.last) or norm.recent > self.explosion * norm.past:
                yield "gradient explosion", (
                    f"{name} is {norm.last:.3g}, recently {norm.recent:.3g}, before {norm.past:.3g}. The rate is too high, or some samples are "
                    "broken. Set trainer.gradient_clip_val (clip, in a stage with roles), lower the rate, check the data with `flowact-data lint`."
                )
        for name, loss in self._known("train/fake_score_loss"):
            student, fake = (self.curves.get(f"train/{role}_updates", Curve(last=0.0)).last for role in ("student", "fake_score"))
            if student > 0 and abs(loss.trend) > self.critic_trend:
                way, cause = (
                    ("still falls steeply", "The fake score lags behind the student, which follows a critic that is not there yet")
                    if loss.trend < 0
                    else ("rises", "The student moves faster than the fake score can follow")
                )
                yield "critic lags", (
                    f"{name} {way}: {loss.recent:.3g} after {loss.past:.3g} ({loss.trend:+.0%}), while the student has had {student:.0f} of "
                    f"{fake:.0f} updates. {cause}. Raise student_every or fake_score_optimizer.lr, or lower optimizer.lr."
                )
        for name, spread in self._known(*(f"{split}/saturation" for split in ("train", "val", "preview"))):
            if not self.saturation[0] <= spread.recent <= self.saturation[1]:
                above = spread.recent > self.saturation[1]
                yield "saturation", (
                    f"{name} is {spread.recent:.3g} of the data's spread, healthy is {self.saturation[0]:g} to {self.saturation[1]:g}. "
                    + ("Colours burn: trained too long, or too much guidance. Go back to an earlier checkpoint, lower `guidance` or the rate."
                       if above else
                       "Pictures are dull: the network predicts averages. Train longer or raise the rate; in a distilled stage lower the rate.")
                )  # fmt: skip
        for name, share in self._known("val/beyond_range"):
            if share.recent > self.beyond_range:
                yield "saturation", (
                    f"{name} is {share.recent:.2%}: so many latent values are larger than 99.9 % of the data's. Trained too long, or too much "
                    "guidance, or latents that are not normalised. Lower `guidance` or the rate, and look at the columns with `flowact-data stats`."
                )
        for name, motion in self._known(*(f"{split}/motion" for split in ("train", "val", "preview"))):
            if motion.recent < self.motion or motion.trend < -self.motion_fall:
                yield "motion collapse", (
                    f"{name} is {motion.recent:.3g} of the data's, before it was {motion.past:.3g}. The model learns to stand still: memory that is "
                    "too easy to copy, distillation for too long, or data that hardly moves. Go back to an earlier checkpoint, and lower the rate."
                )
        for name, distance in self._known("ema/distance"):
            if distance.recent > self.ema_distance:
                decay = self.curves["ema/decay"].last if "ema/decay" in self.curves else math.nan
                yield "moving average behind", (
                    f"{name} is {distance.recent:.3g} of the weights' norm at decay {decay:.4g}: previews, validation and the checkpoint see "
                    "weights of long ago. Lower `decay` of ExponentialMovingAverage: 1 / (1 - decay) well below the number of steps, with `warmup`."
                )
        for _, share in self._known("throughput/data_wait_share"):
            if share.recent > self.data_wait:
                yield "data starvation", (
                    f"{share.recent:.0%} of the time goes into waiting for data. Raise data.num_workers or cache_bytes, or put the shards on a local "
                    "disk."
                )

    # --- resume

    def state_dict(self) -> dict[str, Any]:
        return {"curves": {name: asdict(curve) for name, curve in self.curves.items()}, "warned": dict(self._warned)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curves = {name: Curve(**values) for name, values in state_dict["curves"].items()}
        self._warned = dict(state_dict["warned"])
