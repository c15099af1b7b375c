"""Pictures and films beside the page, named after their content: kept clips come from the shards, rejected ones from their recordings."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from data_tools.building.examine import stamp_of
from data_tools.building.ledger import WORK_FOLDER, ClipRecord, SourceRecord
from data_tools.footage import read_clip, to_png
from data_tools.inputs import fetch
from data_tools.reporting import curves
from data_tools.reporting.contents import Place
from data_tools.reporting.muxing import mux
from flowact.data.media import MediaError, decode_sound, decode_video
from flowact.data.schema import write_atomically
from flowact.data.shards import ShardError, ShardReader, decode

MEDIA_FOLDER = "media"
_NAME = re.compile(r"[0-9a-f]{20}\.(jpg|png|mp4)(\.part)?\Z")
THUMB_HEIGHT = 150
#: containers that are searched by time; in others a frame beyond `FAR` costs minutes
SEARCHABLE = (".mp4", ".mov", ".m4v", ".mkv", ".webm")
FAR = 5 * 60 * 25


class MediaFolder:
    """Files of a report, named after their content: a page that was there before keeps its own until the new one is in place.

    Args:
        folder: of the report.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / MEDIA_FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self.used: set[str] = set()

    def add(self, data: bytes, suffix: str) -> str:
        """Store a file; its address relative to the page."""
        name = f"{hashlib.sha256(data).hexdigest()[:20]}.{suffix}"
        self.used.add(name)
        path = self.folder / name
        if not path.is_file() or path.stat().st_size != len(data):
            write_atomically(path, data)
        return f"{MEDIA_FOLDER}/{name}"

    def finish(self) -> None:
        """Remove files of earlier reports that no page shows any more; call when the new page is in place."""
        for path in self.folder.iterdir():
            if path.name not in self.used and _NAME.match(path.name):
                path.unlink()


@dataclass(frozen=True)
class Shown:
    """A picture of a clip, or why there is none."""

    source: str | None
    note: str = ""


class Shards:
    """Members of clips, by place; each tar is opened once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: dict[str, tuple[ShardReader, dict[str, int]]] = {}

    def members(self, shard: str, key: str) -> Mapping[str, bytes]:
        """All members of a clip.

        Args:
            shard: 'train/000000'.
            key: of the clip.

        Raises:
            ShardError: damaged.
            KeyError: no such clip there.
        """
        reader, numbers = self._shard(shard)
        number = numbers[key]
        return {suffix: reader.read(number, suffix) for suffix in reader.entries[number].members}

    def metadata(self, shard: str, key: str) -> dict[str, Any]:
        """KEY.json of a clip. Raises as `members`."""
        reader, numbers = self._shard(shard)
        return decode("json", reader.read(numbers[key], "json"), f"{shard}/{key}")

    def frame(self, shard: str, key: str) -> np.ndarray:
        """The middle frame, uint8 (H, W, 3). Raises as `members`, and MediaError."""
        reader, numbers = self._shard(shard)
        number = numbers[key]
        middle = reader.entries[number].frames // 2
        return decode_video(reader.read(number, "mp4"), f"{shard}/{key}", first=middle, count=1)[0]

    def _shard(self, shard: str) -> tuple[ShardReader, dict[str, int]]:
        if shard not in self._open:
            reader = ShardReader(self.root / f"{shard}.tar")
            self._open[shard] = reader, {entry.key: number for number, entry in enumerate(reader.entries)}
        return self._open[shard]


class Thumbnails:
    """Small pictures of clips, each made once.

    Args:
        root: of the dataset.
        clips: key -> what the ledger says.
        sources: id -> the recording.
        shards: of the dataset.
        media: where pictures go.
    """

    def __init__(
        self, root: Path, clips: Mapping[str, ClipRecord], sources: Mapping[str, SourceRecord], shards: Shards, media: MediaFolder
    ) -> None:
        self.root = root
        self.clips = clips
        self.sources = sources
        self.shards = shards
        self.media = media
        self._shown: dict[str, Shown] = {}

    def of(self, key: str) -> Shown:
        """The middle frame of a clip: as it is stored where it is, else from its recording."""
        if key not in self._shown:
            self._shown[key] = self._show(self.clips[key])
        return self._shown[key]

    def _show(self, clip: ClipRecord) -> Shown:
        if clip.shard:
            try:
                return Shown(self.media.add(thumbnail(self.shards.frame(clip.shard, clip.key)), "jpg"))
            except (KeyError, ShardError, MediaError):
                return Shown(None, "no longer in its shard")
        record = self.sources.get(clip.source)
        if record is None:
            return Shown(None, "its recording is no longer in the input")
        if "://" in record.source.address.rpartition("::")[2]:
            return Shown(None, "its recording is remote and is not fetched for a picture")
        if record.stamp != stamp_of(record.source):
            return Shown(None, "its recording was moved or changed since")
        if clip.plan and clip.plan.span.first > FAR and PurePosixPath(record.source.address).suffix.lower() not in SEARCHABLE:
            return Shown(None, "it is far inside a recording that can only be read from the start")
        try:
            return Shown(self.media.add(thumbnail(self._frame(clip, record)), "jpg"))
        except (MediaError, OSError, ValueError):
            return Shown(None, "its recording can no longer be read")

    def _frame(self, clip: ClipRecord, record: SourceRecord) -> np.ndarray:
        span = clip.plan.span if clip.plan else None
        middle = (span.first + span.end) // 2 if span else record.frames // 2
        with fetch(record.source, self.root / WORK_FOLDER) as files:
            crop = clip.plan.crop if clip.plan else None
            frames = read_clip(files.video, middle, 1, start_s=record.source.start_s or 0.0, crop=crop)
            return next(iter(frames)).to_ndarray(format="rgb24")


def thumbnail(frame_HWC: np.ndarray, height: int = THUMB_HEIGHT) -> bytes:
    """A small JPEG; a tiny picture grows by a whole factor, so that its pixels stay what they are."""
    picture = Image.fromarray(frame_HWC)
    if picture.height * 2 <= height:
        factor = height // picture.height
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    elif picture.height > height:
        picture = picture.resize((max(round(picture.width * height / picture.height), 1), height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="jpeg", quality=82, subsampling=0)
    return buffer.getvalue()


@dataclass(frozen=True)
class Film:
    """A clip to see and hear.

    Attributes:
        place: of the clip.
        metadata: of the clip.
        video: address of the film; None where it can not be decoded.
        poster: address of its middle frame.
        mel: address of the sound's picture.
        peaks_N2: lowest and highest sample of each column of the sound's wave.
        mouth_T: opening of the mouth, None where unknown.
        note: why there is no film.
    """

    place: Place
    metadata: Mapping[str, Any]
    video: str | None
    poster: str = ""
    mel: str = ""
    peaks_N2: np.ndarray | None = None
    mouth_T: np.ndarray | None = None
    note: str = ""


def film(place: Place, shards: Shards, media: MediaFolder, sample_rate: int) -> Film:
    """Make the files of a clip that is shown with its sound; a damaged clip says so instead."""
    shard = f"{place.split}/{place.shard}"
    metadata = shards.metadata(shard, place.key)
    try:
        members = shards.members(shard, place.key)
        samples = decode_sound(members["wav"], place.where, sample_rate)
        truth, boxes = (decode(name, members[name], place.where) if name in members else None for name in ("truth.npy", "boxes.npy"))
        return Film(
            place,
            metadata,
            media.add(mux(members["mp4"], members["wav"], place.where, sample_rate), "mp4"),
            media.add(thumbnail(shards.frame(shard, place.key), 256), "jpg"),
            media.add(to_png(curves.mel_picture(samples)), "png"),
            curves.wave_peaks(samples),
            curves.mouth_opening(metadata, truth, boxes),
        )
    except (KeyError, MediaError, ShardError) as error:
        return Film(place, metadata, None, note=str(error))
