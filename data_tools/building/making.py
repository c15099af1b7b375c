"""A kept clip becomes a sample: picture cut, cropped, scaled and encoded; sound, states, captions, boxes and metadata beside it. Runs in a worker."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np

from data_tools.addresses import member_of
from data_tools.building.ledger import RECORDINGS_FOLDER, WORK_FOLDER, ClipRecord
from data_tools.building.recipe import BuildRecipe, read_recipe
from data_tools.footage import Kept, encode_clip, read_clip, to_png
from data_tools.inputs import Source, fetch
from data_tools.steps.base import Box, Plan, Soundtrack, json_hash
from data_tools.steps.captions import DEFAULT_STATE
from flowact.data.media import MediaError, encode_sound
from flowact.data.rights import UNKNOWN
from flowact.data.schema import BOX_SHAPE, to_entries
from flowact.data.shards import encode_array, encode_json
from flowact.types import FRAMES_PER_SECOND, SAMPLE_RATE, STATES

#: raised when the same plan gives other bytes
VERSION = 1


@dataclass(frozen=True)
class Item:
    """A clip to make.

    Attributes:
        record: of the clip.
        source: its recording.
        uri: how the recording is named in the sample: relative to the build's input where it lies below it.
        sha256: of the recording's bytes.
        folder: of its signals and sound, below `work/recordings`.
        width: of the picture as displayed.
        height: likewise.
        split: train or val.
    """

    record: ClipRecord
    source: Source
    uri: str
    sha256: str
    folder: str
    width: int
    height: int
    split: str

    @property
    def plan(self) -> Plan:
        assert self.record.plan is not None  # only recordings as a whole have none
        return self.record.plan

    @property
    def identity(self) -> str:
        return self.plan.identity or self.source.identity


@dataclass(frozen=True)
class Made:
    """A sample, or why there is none."""

    key: str
    members: Mapping[str, bytes] | None
    frames: int = 0
    reason: str = ""


class Maker:
    """Makes samples of one build.

    Args:
        recipe: of the build.
        out: folder of the dataset.
    """

    def __init__(self, recipe: BuildRecipe, out: Path) -> None:
        self.recipe = recipe
        self.out = out

    def hash(self, item: Item) -> str:
        """Of all that decides the sample's bytes, besides its split."""
        said = [item.uri, item.source.identity, item.source.caption, item.source.license, item.source.consent, item.source.id]
        signals = self.recipe.measured_hash(item.plan.boxes.partition("/")[0]) if item.plan.boxes else ""
        return json_hash([VERSION, item.folder, item.plan.to_json(), item.record.scores, said, self.recipe.output.hash, signals])

    def make(self, item: Item) -> Made:
        """The sample. A recording that can no longer be read is a reason, not an error."""
        try:
            with fetch(item.source, self.out / WORK_FOLDER) as files:
                return Made(item.record.key, self.members(item, files.video), item.plan.span.frames)
        except MediaError as error:
            return Made(item.record.key, None, reason=str(error))

    def members(self, item: Item, video: Path, kept: Kept | None = None) -> dict[str, bytes]:
        """A sample's members.

        Args:
            item: what to make.
            video: its recording on this machine.
            kept: the recording's decoded frames, where they are at hand.

        Raises:
            MediaError: the recording can no longer be read.
        """
        plan, output = item.plan, self.recipe.output
        count, first = plan.span.frames, plan.span.first
        crop = fit_crop(plan.crop or (0, 0, item.width, item.height), output.pixels)
        size = output.pixels or (crop[2] - crop[0], crop[3] - crop[1])
        start = item.source.start_s or 0.0
        reference: list[av.VideoFrame] = []
        frames = _keep_first(read_clip(video, first, count, start_s=start, crop=crop, size=size, kept=kept), reference)
        mp4 = encode_clip(frames, fps=FRAMES_PER_SECOND, crf=output.crf, preset=output.preset)
        folder = self.out / WORK_FOLDER / RECORDINGS_FOLDER / item.folder
        samples = Soundtrack(folder / "sound.wav").pcm(first - plan.shift, plan.span.end - plan.shift)
        runs = plan.states or ((0, count, DEFAULT_STATE),)
        captions = plan.captions or tuple((a, b, state, item.source.caption or "") for a, b, state in runs)
        return {
            "json": encode_json(without_nothing(self._metadata(item, crop, size, runs, captions))),
            "mp4": mp4,
            "wav": encode_sound(samples, SAMPLE_RATE),
            "ref.png": to_png(reference[0].to_ndarray(format="rgb24")),
            "states.npy": encode_array(states_array(runs, count)),
            "txt": " ".join(dict.fromkeys(text for _, _, _, text in captions if text)).encode(),
            "boxes.npy": encode_array(self._boxes(item, crop, folder)),
        }

    def _boxes(self, item: Item, crop: Box, folder: Path) -> np.ndarray:
        plan = item.plan
        if not plan.boxes:
            return np.full((plan.span.frames, *BOX_SHAPE), np.nan, np.float32)
        step, _, name = plan.boxes.partition("/")
        with np.load(folder / f"{step}-{self.recipe.measured_hash(step)}.npz", allow_pickle=False) as stored:
            boxes_TX4 = stored[name.replace("/", "|")][plan.span.first : plan.span.end]
        return boxes_in_crop(boxes_TX4, crop, item.width, item.height)

    def _metadata(
        self,
        item: Item,
        crop: Box,
        size: tuple[int, int],
        runs: Sequence[tuple[int, int, str]],
        captions: Sequence[tuple[int, int, str, str]],
    ) -> dict[str, Any]:
        source, plan = item.source, item.plan
        start = source.start_s or 0.0
        sync: Mapping[str, Any] = next((found for found in reversed(list(item.record.scores.values())) if found.get("offset_frames") is not None), {})
        whole = crop == (0, 0, item.width, item.height)
        return {
            "key": item.record.key,
            "source": {
                "uri": item.uri,
                "sha256": item.sha256,
                "start_s": round(start + plan.span.first / FRAMES_PER_SECOND, 3),
                "end_s": round(start + plan.span.end / FRAMES_PER_SECOND, 3),
                "license": plan.license or source.license or UNKNOWN,
                "consent": plan.consent or source.consent or UNKNOWN,
            },
            "identity": item.identity,
            "split": item.split,
            "frames": plan.span.frames,
            "fps": FRAMES_PER_SECOND,
            "width": size[0],
            "height": size[1],
            "crop": None if whole else list(crop),
            "audio": {"sample_rate": SAMPLE_RATE, "lufs": plan.lufs},
            "sync": {"offset_frames": sync["offset_frames"], "confidence": sync.get("confidence"), "shift": plan.shift, "method": sync.get("method")}
            if sync
            else None,
            "speech": to_entries("speech", plan.speech),
            "states": to_entries("states", runs),
            "captions": to_entries("captions", captions),
            "scores": {step: {name: _as_float(value) for name, value in found.items()} for step, found in item.record.scores.items()},
            "tool": {"name": "flowact-data build", "version": version("flowact"), "plan": self.hash(item)},
        }


def without_nothing(value: Any) -> Any:
    """Plain values without entries that hold None, an empty list or an empty mapping: table readers infer types from the first clips they see."""
    if isinstance(value, Mapping):
        found = {name: without_nothing(entry) for name, entry in value.items()}
        return {name: entry for name, entry in found.items() if entry is not None and entry != [] and entry != {}}
    return [without_nothing(entry) for entry in value] if isinstance(value, list) else value


def _as_float(value: Any) -> Any:
    """Numbers as floats, so that a score has one type in all clips."""
    if isinstance(value, list):
        return [_as_float(entry) for entry in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def uri_of(source: Source, inputs: Sequence[str]) -> str:
    """How a sample names its recording: below the input that holds it, so that moving the input changes nothing."""
    if (place := member_of(source.address)) is not None:
        return f"{place[0]}::{Path(place[1]).name}"
    address = normal(source.address)
    inside = (address.removeprefix(root) for root in map(normal, inputs) if address.startswith(root + "/"))
    return next(inside, source.address).lstrip("/")


def normal(address: str) -> str:
    """An address by which ways to write one place are equal."""
    scheme, remote, path = address.partition("://")
    return f"{scheme}://{path.strip('/')}" if remote else os.path.realpath(address)


def fit_crop(crop: Box, size: tuple[int, int] | None) -> Box:
    """The largest part in the middle of a crop that has the aspect of `size`, with even sides; only even sides where there is no size.

    >>> fit_crop((0, 0, 640, 360), (256, 256))
    (140, 0, 500, 360)
    """
    left, top, right, bottom = crop
    width, height = right - left, bottom - top
    if size is not None:
        wide = width * size[1] > height * size[0]
        width, height = (round(height * size[0] / size[1]), height) if wide else (width, round(width * size[1] / size[0]))
    width, height = max(width // 2 * 2, 2), max(height // 2 * 2, 2)
    left, top = left + (right - left - width) // 2, top + (bottom - top - height) // 2
    return left, top, left + width, top + height


def boxes_in_crop(boxes_TX4: np.ndarray, crop: Box, width: int, height: int) -> np.ndarray:
    """Boxes as shares of the whole picture -> as shares of the crop; NaN where nothing of a box is inside."""
    left, top, right, bottom = crop
    scale, origin = np.array([width, height] * 2), np.array([left, top] * 2)
    inside = np.clip((boxes_TX4 * scale - origin) / np.array([right - left, bottom - top] * 2), 0.0, 1.0).astype(np.float32)
    empty = (inside[..., :2] >= inside[..., 2:]).any(axis=-1) | ~np.isfinite(inside).all(axis=-1)
    inside[empty] = np.nan
    return inside


def states_array(runs: Sequence[tuple[int, int, str]], frames: int) -> np.ndarray:
    """Runs as an index into the states for each frame, uint8 (T,)."""
    states_T = np.full(frames, STATES.index(DEFAULT_STATE), np.uint8)
    for first, end, state in runs:
        states_T[first:end] = STATES.index(state)
    return states_T


def _keep_first(frames: Iterator[av.VideoFrame], head: list[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    for frame in frames:
        if not head:
            head.append(frame)
        yield frame


# --- in the workers ---------------------------------------------------------------------------------------------------------------------------------

_maker: Maker | None = None


def start(recipe_file: Path, out: Path, plugins: Sequence[str], trusted: Sequence[str]) -> None:
    """Prepare a worker: it reads the recipe that the build wrote down."""
    global _maker
    from flowact import registry

    registry.trust(*trusted)
    for file in plugins:
        registry.load_plugin_file(file)
    _maker = Maker(read_recipe(recipe_file)[0], out)


def run(item: Item) -> Made:
    """Make one clip in a worker that was started."""
    assert _maker is not None  # set by start
    return _maker.make(item)
