"""The run folder explains itself: README.md with what ran, how far it came and how to go on, and its curves as lines of JSON and as a picture."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from flowact.callbacks.curves import CurveRecord, Point, draw, in_order
from flowact.callbacks.run_record import run_folder
from flowact.provenance import gather, read_launches
from flowact.stages.base import DenoiserStage, Stage

log = logging.getLogger(__name__)

PAGE, LINES, PICTURE = "README.md", "curves.jsonl", "curves.png"
#: while training goes on the picture is drawn at most so often
_SECONDS_BETWEEN_PICTURES = 120.0
#: warnings on the page
_MOST_WARNINGS = 20
#: curves that are better when they are lower, and higher
_LOWER, _HIGHER = ("loss", "drift", "beyond_range"), ("psnr",)


class RunPage(Callback):
    """Write README.md, curves.jsonl and curves.png into the run folder: at the start, with each checkpoint, and however training ends.

    `flowact fit` adds it to every run. It works on the first process alone, and a disk that refuses is a warning: training goes on.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._record: CurveRecord | None = None
        self._warnings = _Warnings()
        self._page: Page | None = None
        self._begun = self._drawn = 0.0
        self._checkpoint: tuple[Path, int] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        folder = run_folder(trainer)  # a collective operation
        if folder is None:
            return
        # on every process, since what a trainer asks of all of them depends on whether there are loggers
        record = CurveRecord(folder / LINES if trainer.is_global_zero else None, folder)
        trainer.loggers = [*(logger for logger in trainer.loggers if not isinstance(logger, CurveRecord)), record]
        if not trainer.is_global_zero:
            return
        self._folder, self._begun, self._record = folder, time.monotonic(), record
        logging.getLogger("flowact").addHandler(self._warnings)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._folder is None or self._record is None:
            return
        resumed = trainer.global_step if trainer.ckpt_path else None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._record.begin(resumed)
        except OSError as error:
            self._record.path = None
            log.warning("%s is not written: %s", self._folder / LINES, error)
        self._page = Page.of(trainer, cast(Stage, pl_module), self._folder)
        self._write(trainer, "running")
        log.info("step %d of %s, logs in %s", trainer.global_step, self._page.max_steps or "?", self._folder)

    def checkpoint_written(self, trainer: Trainer, folder: Path) -> None:
        """The checkpoint folder is whole."""
        self._checkpoint = (folder, trainer.global_step)
        self._write(trainer, None)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, "finished")
        if self._page is not None and self._folder is not None:
            log.info("finished %d steps in %s, see %s", trainer.global_step, duration_text(time.monotonic() - self._begun), self._folder / PAGE)
        logging.getLogger("flowact").removeHandler(self._warnings)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        stopped = isinstance(exception, (KeyboardInterrupt, SystemExit)) or type(exception).__name__ == "Terminated"
        said = " ".join(str(exception).split())
        self._write(trainer, "interrupted" if stopped else f"failed: {said if len(said) < 300 else said[:300] + ' ...'}")
        logging.getLogger("flowact").removeHandler(self._warnings)

    def _write(self, trainer: Trainer, state: str | None) -> None:
        if self._page is None or self._record is None:
            return
        page = self._page
        page.state = state or page.state
        page.steps, page.seconds = trainer.global_step, time.monotonic() - self._begun
        page.checkpoint, page.warnings = self._checkpoint, self._warnings.messages
        page.curves = self._record.curves
        try:
            due = time.monotonic() - self._drawn > _SECONDS_BETWEEN_PICTURES
            if page.curves and (due or page.state != "running"):
                draw(page.curves, page.folder / PICTURE)
                self._drawn = time.monotonic()
            (page.folder / PAGE).write_text(page.text(), encoding="utf-8")
        except Exception as error:  # whatever it is, it is no reason to stop a run
            log.warning("%s is not written: %s: %s", page.folder / PAGE, type(error).__name__, error)


class _Warnings(logging.Handler):
    """Collects what FlowAct warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = " ".join(record.getMessage().split())
        if message not in self.messages:
            self.messages.append(message)


def run_pages(trainer: Trainer) -> Iterator[RunPage]:
    """Those of a trainer: none or one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return (callback for callback in callbacks if isinstance(callback, RunPage))


# --- the page ---------------------------------------------------------------------------------------------------------------------------------------


@dataclass
class Page:
    """What the page says.

    Attributes:
        folder: of the run.
        title: of the recipe.
        stage: its name.
        streams: whether its checkpoint can be streamed.
        launch: the record of `flowact.provenance`: started, versions, git, command.
        machine: processes and what they run on.
        max_steps: of the recipe; None if there is no end.
        expected: what the recipe expects of the run.
        shards: held-out shards.
        state: running, finished, interrupted or failed.
        steps: so far.
        seconds: so far, of this launch.
        checkpoint: folder and step of the newest one.
        curves: so far.
        warnings: so far.
    """

    folder: Path
    title: str
    stage: str
    streams: bool = False
    launch: Mapping[str, Any] = field(default_factory=dict)
    machine: str = ""
    max_steps: int | None = None
    expected: str = ""
    shards: str = ""
    state: str = "running"
    steps: int = 0
    seconds: float = 0.0
    checkpoint: tuple[Path, int] | None = None
    curves: Mapping[str, list[Point]] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    @classmethod
    def of(cls, trainer: Trainer, stage: Stage, folder: Path) -> Page:
        """The page of a run that begins."""
        recipe, name = stage.recipe, str(getattr(stage, "name", type(stage).__name__))
        about = recipe.get("about") or {}
        launches = read_launches(folder)
        held_out = ((recipe.get("data") or {}).get("init_args") or {}).get("val")
        return cls(
            folder,
            str(about.get("title") or name),
            name,
            isinstance(stage, DenoiserStage),
            launches[-1] if launches else gather(recipe),
            _machine(trainer),
            trainer.max_steps if trainer.max_steps > 0 else None,
            str(about.get("expected") or ""),
            held_out if isinstance(held_out, str) else "",
        )

    def text(self) -> str:
        """Markdown."""
        parts = [f"# {self.title}", self._summary(), self._facts(), self._go_on(), self._figures(), self._media(), self._warned(), self._files()]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _summary(self) -> str:
        end = f" of {self.max_steps}" if self.max_steps else ""
        word, _, reason = self.state.partition(": ")
        why = f"\n\n> {reason}" if reason else ""
        return f"**{word.capitalize()}** at step {self.steps}{end}, {duration_text(self.seconds)} after it started.{why}"

    def _facts(self) -> str:
        rows = {
            "stage": self.stage,
            "recipe": f"[{self.launch.get('recipe', 'recipe.yaml')}]({self.launch.get('recipe', 'recipe.yaml')})",
            "command": f"`{shlex.join(self.launch.get('command', ()))}`",
            "started": self.launch.get("started", ""),
            "expected": self.expected,
            "machine": self.machine,
            "checkpoint": f"`{self.checkpoint[0]}`, step {self.checkpoint[1]}" if self.checkpoint else "none yet",
            "code": "; ".join(_git_text(name, state) for name, state in (self.launch.get("git") or {}).items()),
            "versions": ", ".join(f"{name} {number}" for name, number in (self.launch.get("versions") or {}).items()),
        }
        return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items() if value and value != "``")

    def _go_on(self) -> str:
        words = list(self.launch.get("command", ()))
        watch = [f"tensorboard --logdir {shlex.quote(str(self.folder))}"] if any(self.folder.glob("events.out.tfevents*")) else []
        if self.checkpoint is None:
            return _commands("Go on", watch)
        folder = shlex.quote(str(self.checkpoint[0]))
        lines = [*watch]
        if len(words) > 1 and words[1] == "fit" and not (self.state == "finished" and self.steps == self.max_steps):
            lines.append(f"{shlex.join(_without_option(words, '--resume'))} --resume {folder}")
        if self.streams:
            lines.append(f"flowact generate --checkpoint {folder} --audio speech.wav --reference picture.png --out stream.mp4")
            lines.append(f"flowact evaluate --checkpoint {folder} --shards {shlex.quote(self.shards or 'shards/val')} --out metrics.json")
        return _commands("Go on", lines)

    def _figures(self) -> str:
        if not self.curves:
            return ""
        rows = []
        for name in in_order(self.curves):
            points = self.curves[name]
            step, value = points[-1]
            best = _best(name, points)
            rows.append(f"| `{name}` | {value:.4g} | {step} | {f'{best[1]:.4g} | {best[0]}' if best else ' | '} |")
        picture = f"![curves]({PICTURE})\n\n" if (self.folder / PICTURE).is_file() else ""
        return f"## Curves\n\n{picture}| curve | last | step | best | step |\n|---|---|---|---|---|\n" + "\n".join(rows)

    def _media(self) -> str:
        newest: dict[str, Path] = {}
        for path in sorted((self.folder / "media").glob("*.png")):
            kind, *_, rest = path.stem.split("-")
            newest[f"{kind} {rest if path.stem.count('-') > 1 else ''}".strip()] = path
        pictures = [f"{path.stem}:\n\n![{name}](media/{path.name})" for name, path in newest.items()]
        return "\n\n".join(["## Newest pictures", *pictures]) if pictures else ""

    def _warned(self) -> str:
        more = len(self.warnings) - _MOST_WARNINGS
        lines = [f"- {message}" for message in self.warnings[:_MOST_WARNINGS]] + ([f"- and {more} more"] if more > 0 else [])
        return "## Warnings\n\n" + "\n".join(lines) if lines else ""

    def _files(self) -> str:
        known = {
            LINES: 'every scalar, a line of JSON for each time that some were logged: `pandas.read_json("curves.jsonl", lines=True)`',
            PICTURE: "the same, drawn",
            "recipe.yaml": "the recipe, resolved",
            "provenance.json": "versions, git state and command of each launch",
            "media": "previews: films with sound, contact sheets, contents of memory, noise levels",
            "skipped.jsonl": "samples of steps that were skipped",
        }
        return "## Files\n\n" + "\n".join(f"- `{name}`: {words}" for name, words in known.items() if (self.folder / name).exists())


def _best(name: str, points: Sequence[Point]) -> Point | None:
    last = name.rpartition("/")[2].partition("_sigma_")[0]
    if last.endswith(_HIGHER):
        return max(points, key=lambda point: point[1])
    return min(points, key=lambda point: point[1]) if last.endswith(_LOWER) else None


def _commands(title: str, lines: Sequence[str]) -> str:
    """A block to copy."""
    where = "In the folder where the run was started:"
    return f"## {title}\n\n{where}\n\n```sh\n" + "\n".join(lines) + "\n```" if lines else ""


def _without_option(words: Sequence[str], option: str) -> list[str]:
    """A command line without an option and its value."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == option:
            skip = True
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept


def _cell(value: str) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _git_text(name: str, state: Mapping[str, Any]) -> str:
    changed = {True: ", changed", False: "", None: ", perhaps changed"}[state.get("dirty")]
    return f"{name.replace('_', ' ')} at {str(state.get('commit', ''))[:12]}{changed}"


def _machine(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    processes = f"{trainer.world_size} processes" if trainer.world_size > 1 else "1 process"
    return f"{processes} on {name}, {type(trainer.strategy).__name__}, {trainer.precision}"


def duration_text(seconds: float) -> str:
    """Such as "1 h 05 min", "4 min 12 s" or "9 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
