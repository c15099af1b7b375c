"""What a step is, and what it is shown.

A recording goes down the list of steps in five turns, each of which a step may take part in or leave out:

    look    one decode of the picture at 25 frames a second; every watcher sees the frames in the sizes it asked for -> signals, one value a frame
    listen  the soundtrack at 16 kHz -> signals
    cut     spans of the recording that may become clips
    score   plain numbers of one clip; the costly part, kept in the ledger under a hash of all that decides it
    judge   scores against thresholds -> kept or rejected with a reason; `apply` then writes what follows into the clip's plan

Only `judge`, `apply` and `cut` may read the arguments named in `thresholds`: changing one of these measures nothing again.

Axes: T frames at 25 a second, X boxes (face, mouth), S samples at 16 kHz.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_tools.footage import Block, Footage, View
from data_tools.inputs import Source
from flowact.types import SAMPLES_PER_FRAME

#: a score: what JSON can hold
Plain = Any
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Rule:
    """A score, the bound that it is held to, and whether it keeps it.

    Attributes:
        score: name of the score.
        value: its value; None where it could not be measured.
        relation: 'at least', 'at most' or 'is'.
        bound: the threshold.
        kept: whether the value keeps the rule.
    """

    score: str
    value: Plain
    relation: str
    bound: Plain
    kept: bool

    @classmethod
    def at_least(cls, score: str, value: float | None, bound: float | None, unknown: bool = True) -> Rule | None:
        """`value >= bound`; None where no bound is set. A value that could not be measured counts as `unknown` says."""
        return None if bound is None else cls(score, value, "at least", bound, unknown if value is None else value >= bound)

    @classmethod
    def at_most(cls, score: str, value: float | None, bound: float | None, unknown: bool = True) -> Rule | None:
        """`value <= bound`; as `at_least`."""
        return None if bound is None else cls(score, value, "at most", bound, unknown if value is None else value <= bound)


@dataclass(frozen=True)
class Rejection:
    """Why a clip is out.

    Attributes:
        step: name of the step.
        reason: one sentence for a person.
        score: name of the score that decided, empty where a fault did (a file that can not be read).
        value: of the score.
        relation: see `Rule`.
        bound: the threshold.
    """

    step: str
    reason: str
    score: str = ""
    value: Plain = None
    relation: str = ""
    bound: Plain = None


@dataclass(frozen=True)
class Span:
    """Frames first..end-1 of a recording. `track` tells apart clips of the same frames, one a person; 0 where there is one."""

    first: int
    end: int
    track: int = 0

    @property
    def frames(self) -> int:
        return self.end - self.first


@dataclass(frozen=True)
class Plan:
    """All that decides a clip's bytes, besides the recording and the output's settings. Steps write it in `apply`.

    Attributes:
        span: frames of the recording.
        crop: left, top, right, bottom in pixels of the picture as displayed; None takes the whole picture.
        shift: frames by which the sound is moved later (positive) or earlier against the picture.
        boxes: name of the signal with the boxes of face and mouth, (T, 2, 4) as shares of the whole picture; empty where unknown.
        mouth: name of the signal with the mouth's opening, (T,); empty where unknown.
        identity: of the person; empty takes the source's.
        license: of the recording; empty takes the source's.
        consent: of the person shown; empty takes the source's.
        states: runs [first, end, state], counted from the clip's first frame; empty where unknown (the build then says idle).
        captions: runs [first, end, state, text] that cover the clip; empty where unknown.
        speech: [start second, end second, 'self' or 'other'], counted from the clip's beginning.
        lufs: loudness of the sound; None where unknown.
    """

    span: Span
    crop: Box | None = None
    shift: int = 0
    boxes: str = ""
    mouth: str = ""
    identity: str = ""
    license: str = ""
    consent: str = ""
    states: tuple[tuple[int, int, str], ...] = ()
    captions: tuple[tuple[int, int, str, str], ...] = ()
    speech: tuple[tuple[float, float, str], ...] = ()
    lufs: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, lists instead of tuples."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` wrote."""
        runs = {name: tuple(tuple(run) for run in values[name]) for name in ("states", "captions", "speech")}
        crop = None if values["crop"] is None else tuple(values["crop"])
        return cls(**{**values, **runs, "crop": crop, "span": Span(**values["span"])})

    @property
    def hash(self) -> str:
        return json_hash(self.to_json())


class Soundtrack:
    """A recording's sound on disk, mono at 16 kHz, exactly 640 samples a frame; read in pieces, so that an hour costs no memory.

    Args:
        path: PCM16 mono wav as `footage.write_sound` writes it.
    """

    def __init__(self, path: Path) -> None:
        import wave

        self.path = path
        with wave.open(str(path)) as file:
            self.num_samples = file.getnframes()
            data = path.stat().st_size - 2 * self.num_samples
        self._data_S: np.ndarray = (
            np.memmap(path, dtype="<i2", mode="r", offset=data, shape=(self.num_samples,)) if self.num_samples else np.zeros(0, "<i2")
        )

    @property
    def frames(self) -> int:
        return self.num_samples // SAMPLES_PER_FRAME

    def pcm(self, first: int, end: int) -> np.ndarray:
        """int16 samples of frames first..end-1; silence outside the recording."""
        start, stop = first * SAMPLES_PER_FRAME, end * SAMPLES_PER_FRAME
        inside = np.asarray(self._data_S[max(start, 0) : max(min(stop, self.num_samples), 0)])
        return np.pad(inside, (max(-start, 0), stop - start - max(-start, 0) - len(inside)))

    def read(self, first: int, end: int) -> np.ndarray:
        """float32 samples in [-1, 1] of frames first..end-1; silence outside the recording."""
        return self.pcm(first, end).astype(np.float32) / 2**15


@dataclass(frozen=True)
class Recording:
    """A source after it was looked at and listened to.

    Attributes:
        source: where it comes from.
        footage: what the container claims and what decoded.
        frames: at 25 a second.
        width: of the picture as displayed, in pixels.
        height: likewise.
        sound: of the person; silence where there is none.
        other: of the person talked to; None where there is no such track.
        signals: name -> one value a frame, first axis T; names begin with the step's, 'FaceTracks/boxes/0'.
    """

    source: Source
    footage: Footage
    frames: int
    width: int
    height: int
    sound: Soundtrack
    other: Soundtrack | None = None
    signals: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Clip:
    """A span of a recording on its way to becoming a clip.

    Attributes:
        recording: it is part of.
        plan: what earlier steps decided.
        scores: of earlier steps, by their names.
    """

    recording: Recording
    plan: Plan
    scores: Mapping[str, Mapping[str, Plain]] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        return self.plan.span.frames

    def signal(self, name: str) -> np.ndarray | None:
        """The signal's values in the clip's frames; None where there is no such signal."""
        signal = self.recording.signals.get(name)
        return None if signal is None else signal[self.plan.span.first : self.plan.span.end]

    @property
    def boxes_TX4(self) -> np.ndarray | None:
        """Boxes of face and mouth as shares of the whole picture; None where unknown."""
        return self.signal(self.plan.boxes)

    @property
    def mouth_T(self) -> np.ndarray | None:
        """Opening of the mouth; None where unknown, NaN in frames where it was not seen."""
        return self.signal(self.plan.mouth)

    def samples(self, shifted: bool = True) -> np.ndarray:
        """The person's sound, float32 (T * 640,); moved by the plan's shift unless asked otherwise."""
        shift = self.plan.shift if shifted else 0
        return self.recording.sound.read(self.plan.span.first - shift, self.plan.span.end - shift)

    def other_samples(self) -> np.ndarray | None:
        """Likewise of the person talked to."""
        other, shift = self.recording.other, self.plan.shift
        return None if other is None else other.read(self.plan.span.first - shift, self.plan.span.end - shift)

    def with_plan(self, **changes: Any) -> Plan:
        """The plan with some entries changed."""
        return replace(self.plan, **changes)


class Watcher(ABC):
    """Sees every frame of one recording once, in blocks, and ends with signals. Holds no frames: a recording may be hours long.

    Attributes:
        views: the sizes and rates in which it wants the frames.
    """

    views: tuple[View, ...]

    @abstractmethod
    def see(self, block: Block) -> None:
        """The next frames; `block.pictures[view]` for each of its views."""

    @abstractmethod
    def signals(self) -> dict[str, np.ndarray]:
        """Name -> one value a frame (first axis T), after the last block. Names without the step's: the build adds it."""


class Step(ABC):  # noqa: B024  # every hook may be left as it is
    """One thing that a build looks at; registered as a component of kind `steps`. Every hook may be left as it is.

    Attributes:
        version: raised whenever the same arguments give other signals or scores, so that the ledger measures again.
        thresholds: constructor arguments that only `cut`, `judge` and `apply` read.
        needs: names of steps whose signals or scores this one reads; they come earlier in the recipe.
        package: distribution that it needs beyond FlowAct's own, for `init` and `doctor`; empty for none.
    """

    version: ClassVar[int] = 1
    thresholds: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    package: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """What scores, signals and reports call it: its class name."""
        return type(self).__name__

    def check(self) -> None:  # noqa: B027  # most have nothing to check
        """Before any work: packages, weights and servers are there.

        Raises:
            UserError: what is missing and how to get it.
        """

    def survey(self, source: Source, footage: Footage) -> Mapping[str, Plain]:
        """Scores of a whole recording from what its container holds, before anything else; `judge` decides about them too."""
        return {}

    def watcher(self, source: Source, footage: Footage) -> Watcher | None:
        """What looks at the frames of one recording; None does not look."""
        return None

    def listen(self, sound: Soundtrack, other: Soundtrack | None) -> dict[str, np.ndarray]:
        """Signals of the soundtrack, one value a frame. Long recordings are to be read in pieces."""
        return {}

    def cut(self, recording: Recording, spans: Sequence[Span]) -> list[Span]:
        """Other spans: shorter, more, or the same."""
        return list(spans)

    def score(self, clip: Clip) -> Mapping[str, Plain]:
        """Plain values (numbers, words, lists of them) of a clip. Never reads `thresholds`."""
        return {}

    def judge(self, scores: Mapping[str, Plain]) -> Sequence[Rule | None]:
        """The rules that the scores (of `survey` or of `score`) are held to; entries may be None. One that is not kept rejects."""
        return ()

    def explain(self, rule: Rule) -> str:
        """Why a clip that breaks this rule is out, in one sentence."""
        return f"{rule.score} is {rule.value}, must be {rule.relation} {rule.bound}"

    def apply(self, clip: Clip, scores: Mapping[str, Plain]) -> Plan:
        """What follows from the scores: a crop, a shift, states, captions. Called for kept clips."""
        return clip.plan

    def compare(self, scores: Mapping[str, Mapping[str, Plain]]) -> Mapping[str, Rejection]:
        """Which of all kept clips are out because of others; key -> why. Keys come in the order of sources and frames."""
        return {}

    def groups(self, scores: Mapping[str, Mapping[str, Plain]]) -> Sequence[Sequence[str]]:
        """Keys that must be in one split together."""
        return ()


def json_hash(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()[:16]
