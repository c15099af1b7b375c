"""The same footage twice.

Axes: T frames, N pictures of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from data_tools.footage import Block, Footage, View
from data_tools.inputs import Source
from data_tools.steps.base import Clip, Plain, Rejection, Soundtrack, Step, Watcher
from data_tools.steps.fingerprints import LONG, agreement, candidate_pairs, distance, from_print, signatures, to_print, words
from data_tools.steps.libraries import need
from flowact.errors import UserError
from flowact.types import SAMPLES_PER_FRAME

EVERY = 10  # frames between picture hashes
PICTURES = 8  # hashes of a clip
PIECE = 1500  # frames of sound that are read at once
QUIETEST_DB, DB_STEP, DB_CHANGE = -70.0, 0.3, 10.0  # a sound that changes by less than 3 dB can not be told from another
STILLEST, MOTION_STEP, MOTION_CHANGE = -2.0, 0.04, 5.0  # powers of two of mean change in grey values; likewise a fifth of one
ALONE = 0.95  # agreement from which the sound alone, of six seconds or more, joins two clips: by chance three seconds reach 0.93, five 0.8
SLACK = 0.15  # by which movement may agree less than sound, or the reverse
FEWEST_WORDS = 2  # that a pair shares; a clip with fewer than twice as many is looked for by its pictures too


@final
class Duplicates(Step):
    """Drops clips that show and sound like an earlier one, in whatever encoding, size or rate; what only looks or sounds alike shares a split.

    Pictures are compared by perceptual hashes (pHash, eight a clip), sound and movement by how they go over time. Two takes of one person before
    one wall have the same pictures and another course. A copy that was cut elsewhere is found if seven seconds overlap, one shorter than five if it
    begins in the same frame; mirrored, sped up or cropped ones are not. Where the picture stands still and sound is silent or steady, pictures decide
    alone.

    Args:
        max_distance: bits of 64 by which the hashes of near-duplicates differ, the median of a clip; re-encoded copies differ by 0 to 4.
        min_agreement: correlation of how sound or movement goes, whichever agrees better; the other may have 0.15 less. Copies have 0.95 and more.
        drop: reject the later ones; otherwise they are only kept in one split.
    """

    thresholds = ("max_distance", "min_agreement", "drop")
    package = "imagehash"

    def __init__(self, max_distance: int = 10, min_agreement: float = 0.9, drop: bool = True) -> None:
        if not 0 <= max_distance <= 32 or not 0.5 <= min_agreement <= 1:
            raise UserError(f"Duplicates: max_distance {max_distance} is 0 to 32 bits, min_agreement {min_agreement} a correlation of 0.5 to 1")
        self.max_distance, self.min_agreement, self.drop = max_distance, min_agreement, drop

    def check(self) -> None:
        need("imagehash", "Duplicates")

    # --- what is measured -------------------------------------------------------------------------------------------------------------------------

    def watcher(self, source: Source, footage: Footage) -> Watcher:
        return _Watcher()

    def listen(self, sound: Soundtrack, other: Soundtrack | None) -> dict[str, np.ndarray]:
        levels = [_levels(sound.read(first, min(first + PIECE, sound.frames))) for first in range(0, sound.frames, PIECE)]
        return {"level": np.concatenate(levels) if levels else np.zeros(0, np.float32)}

    def score(self, clip: Clip) -> Mapping[str, Plain]:
        hashes_T4, level_T, motion_T = (clip.signal(f"{self.name}/{name}") for name in ("pictures", "level", "motion"))
        recording = clip.recording.source.id
        scores: dict[str, Plain] = {"recording": recording, "track": clip.plan.span.track, "pictures": [], "sound": "", "motion": "", "words": []}
        if hashes_T4 is None or level_T is None or motion_T is None or not len(hashes_T4):
            return scores
        places = (np.arange(PICTURES) + 0.5) * len(hashes_T4) / PICTURES
        pictures = ["".join(f"{int(part):04x}" for part in hashes_T4[place]) for place in places.astype(int)]
        octaves_T = np.log2(motion_T[1:] + 2.0**STILLEST)  # the first is the change from a frame before the clip
        return {
            **scores,
            "pictures": list(dict.fromkeys(pictures)),
            "sound": to_print(level_T, QUIETEST_DB, DB_STEP),
            "motion": to_print(octaves_T, STILLEST, MOTION_STEP),
            "words": [*_tagged(words(level_T), 0).tolist(), *_tagged(words(octaves_T), 1).tolist()],
        }

    # --- what follows -----------------------------------------------------------------------------------------------------------------------------

    def compare(self, scores: Mapping[str, Mapping[str, Plain]]) -> Mapping[str, Rejection]:
        out: dict[str, Rejection] = {}
        for earlier, later in self._candidates(scores) if self.drop else ():
            if earlier in out or later in out:
                continue
            a, b = scores[earlier], scores[later]
            # first what costs less
            if distance(a["pictures"], b["pictures"]) <= self.max_distance and self._is_copy(found := _likeness(a, b)):
                sounds = "" if found.sound is None else " and sounds"
                reason = f"shows{sounds} like {earlier}, which is kept: the pictures differ by {found.bits:g} bits of 64"
                out[later] = Rejection(self.name, reason, "bits", found.bits, "at least", self.max_distance + 1)
        return out

    def groups(self, scores: Mapping[str, Mapping[str, Plain]]) -> Sequence[Sequence[str]]:
        """Pairs that look or sound alike: copies that are kept, one performance by two cameras, one picture with two soundtracks."""
        pairs = []
        for pair in self._candidates(scores):
            found = _likeness(*(scores[key] for key in pair))
            # one alone tells over six seconds; silence tells nothing
            heard = found.sound is not None and found.sound >= max(self.min_agreement, ALONE)
            seen = found.bits <= self.max_distance and found.motion is not None and found.motion >= self.min_agreement
            if self._is_copy(found) or ((heard or seen) and found.values >= LONG):
                pairs.append(pair)
        return pairs

    def _is_copy(self, found: _Likeness) -> bool:
        courses = sorted(course for course in (found.motion, found.sound) if course is not None)
        if not courses:
            return found.bits <= self.max_distance / 2  # nothing that goes by can be compared: the pictures must be the same
        # coarse encoding changes one of them, another soundtrack or another take more than that
        return found.bits <= self.max_distance and courses[-1] >= self.min_agreement and courses[0] >= self.min_agreement - SLACK

    def _candidates(self, scores: Mapping[str, Mapping[str, Plain]]) -> Iterator[tuple[str, str]]:
        """Pairs of keys, (earlier, later), sorted by the later one; only those that share enough to be worth a look."""
        keys = [key for key, found in scores.items() if found["pictures"]]
        if len(keys) < 2:
            return
        parts = [_words(scores[key]) for key in keys]
        owners = np.repeat(np.arange(len(keys)), [len(part) for part in parts])
        for i, j in sorted(candidate_pairs(np.concatenate(parts), owners, FEWEST_WORDS), key=lambda pair: (pair[1], pair[0])):
            a, b = scores[keys[i]], scores[keys[j]]
            if a["recording"] != b["recording"] or a["track"] == b["track"]:  # two people of one recording share its pictures
                yield keys[i], keys[j]


@dataclass(frozen=True)
class _Likeness:
    """Of two clips: bits by which pictures differ, agreement of movement and sound (None: can not be told), values of the shorter print."""

    bits: float
    motion: float | None
    sound: float | None
    values: int


def _likeness(a: Mapping[str, Plain], b: Mapping[str, Plain]) -> _Likeness:
    motions, sounds = ((from_print(a[name]), from_print(b[name])) for name in ("motion", "sound"))
    bits = distance(a["pictures"], b["pictures"])
    return _Likeness(bits, agreement(*motions, MOTION_CHANGE), agreement(*sounds, DB_CHANGE), min(map(len, motions)))


def _words(found: Mapping[str, Plain]) -> np.ndarray:
    """What a clip is looked for by, uint64."""
    sound, motion = signatures(from_print(found["sound"]), DB_CHANGE), signatures(from_print(found["motion"]), MOTION_CHANGE)
    course = np.concatenate([np.array(found["words"], np.uint64), _tagged(sound, 2), _tagged(motion, 3)])
    if len(course) >= 2 * FEWEST_WORDS:
        return course
    # quarters of the hashes: two that differ by two bits share at least two
    quarters = {(place, hash_[place : place + 4]) for hash_ in found["pictures"] for place in range(0, 16, 4)}
    pictures = np.array(sorted(place << 16 | int(quarter, 16) for place, quarter in quarters), np.uint64)
    return np.concatenate([course, _tagged(pictures, 4)])


def _tagged(words_W: np.ndarray, kind: int) -> np.ndarray:
    """Words below 2 ** 32 of different kinds, kept apart."""
    return words_W | np.uint64(kind << 32)


def _levels(samples_S: np.ndarray) -> np.ndarray:
    """Loudness of each frame in dBFS, float32 (T,)."""
    power_T = (samples_S.reshape(-1, SAMPLES_PER_FRAME) ** 2).mean(1)
    return (10 * np.log10(power_T + 10 ** (QUIETEST_DB / 10))).astype(np.float32)


@final
class _Watcher(Watcher):
    """Hashes of every tenth picture, as four 16-bit numbers, and mean change from frame to frame."""

    def __init__(self) -> None:
        self.view = View(96, "gray", 1)  # what Motion looks at, so that it is scaled once
        self.views = (self.view,)
        self.hashes: list[np.ndarray] = []
        self.motion: list[np.ndarray] = []
        self.held: np.ndarray | None = None

    def see(self, block: Block) -> None:
        pictures_NHW = block.pictures[self.view]
        if not len(pictures_NHW):
            return
        before_NHW = np.concatenate([pictures_NHW[:1] if self.held is None else self.held, pictures_NHW[:-1]])
        self.motion.append(np.abs(pictures_NHW.astype(np.int16) - before_NHW).mean((1, 2)))
        self.held = pictures_NHW[-1:].copy()
        self.hashes += [_hash(pictures_NHW[i]) for i in range(-block.first % EVERY, len(pictures_NHW), EVERY)]

    def signals(self) -> dict[str, np.ndarray]:
        motion_T = np.concatenate(self.motion).astype(np.float32) if self.motion else np.zeros(0, np.float32)
        hashes_N4 = np.stack(self.hashes).astype(np.float32) if self.hashes else np.zeros((0, 4), np.float32)
        return {"motion": motion_T, "pictures": np.repeat(hashes_N4, EVERY, axis=0)[: len(motion_T)]}


def _hash(picture_HW: np.ndarray) -> np.ndarray:
    """pHash, 64 bits as four numbers that float32 holds exactly."""
    from PIL import Image

    bits = need("imagehash", "Duplicates").phash(Image.fromarray(picture_HW)).hash.reshape(4, 16)
    return bits @ (1 << np.arange(15, -1, -1))
