"""Lightning data modules: windows of encoded clips for the stages, pixel clips for training an autoencoder. Legend: flowact/types.py."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, final

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import get_worker_info

from flowact.data.media import decode_video
from flowact.data.pipeline import ByteCache, ShardLoader, Window, WindowSource
from flowact.data.schema import (
    COLUMNS,
    COLUMNS_FOLDER,
    DATASET_FILE,
    Captions,
    ColumnInfo,
    DatasetInfo,
    check_metadata,
    parse_captions,
    read_column,
    read_dataset,
    split_column_folder_name,
    wrong_optional_member,
)
from flowact.data.shards import ClipRef, ShardError, Split, open_split
from flowact.errors import UserError, did_you_mean
from flowact.types import FRAMES_PER_SECOND, Batch, FrameBatch

# Lightning can not know that the length counts batches of the process, workers included
warnings.filterwarnings("ignore", message=".*IterableDataset. has `__len__` defined.*")


@dataclass(frozen=True)
class ClipFeatures:
    """Decoded columns of a clip, as stored.

    Attributes:
        latents_FCHW: float16, image latent 0 first.
        reference_RCHW: float16, candidate reference pictures.
        audio_TD: float16.
        text_NLD: float16, one per caption.
        boxes_TX4: float32; None unless boxes are read.
    """

    latents_FCHW: np.ndarray
    reference_RCHW: np.ndarray
    audio_TD: np.ndarray
    text_NLD: np.ndarray
    boxes_TX4: np.ndarray | None = None

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in vars(self).values() if array is not None)


class EncodedClips:
    """Windows of the clips of one split, with captions and sound of the same pixel frames.

    Motion latent f of a clip is its stored latent f + 1; it covers pixel frames s f + 1 .. s f + s for the temporal stride s, and owns the audio
    features of just these frames. Its caption is the one in force at the middle of them, frame s f + 1 + s // 2.

    Args:
        split: the clips.
        columns: column name -> its folder.
        num_frames: motion latents of a window.
        max_captions: different captions that a window may hold; text is zero padded to that many.
        reference: 'first' always takes the clip's own reference picture, 'random' one of the stored candidates.
        cache_bytes: decoded clips kept in memory.
        boxes: read the boxes of face and mouth too.

    Raises:
        UserError: columns of other clips, a clip shorter than the window or without the boxes that are asked for, or a window with more captions.
    """

    def __init__(
        self,
        split: Split,
        columns: dict[str, Path],
        *,
        num_frames: int,
        max_captions: int,
        reference: Literal["first", "random"],
        cache_bytes: int,
        boxes: bool = False,
    ) -> None:
        self.split = split
        self.boxes = boxes
        self.infos = {name: read_column(folder) for name, folder in columns.items()}
        self.columns = {name: split.column(folder) for name, folder in columns.items()}
        self.num_frames = num_frames
        self.max_captions = max_captions
        self.reference = reference
        self.stride = _stride(self.infos["latents"])
        self._cache_bytes = cache_bytes
        self._cache: ByteCache[ClipFeatures] | None = None
        self._check_lengths()
        if boxes:
            self._check_boxes()
        self.captions = [self._captions(number) for number in range(len(split))]

    def _check_lengths(self) -> None:
        need = self.num_frames * self.stride + 1
        short = [clip for clip in self.split.clips if clip.frames < need]
        if short:
            longest = max(clip.frames for clip in self.split.clips)
            fits = (longest - 1) // self.stride
            fix = f"lower window_frames so that history_frames + window_frames is at most {fits}, or pack longer clips"
            if len(short) < len(self.split):
                fix += f"; or exclude the short clips in dataset.yaml: [{_listed(self.split, short)}]"
            raise UserError(
                f"{len(short)} of {len(self.split)} clips in {self.split.folder} are shorter than the window: {self.num_frames} motion latents "
                f"need {need} pixel frames; {fix}"
            )

    def _check_boxes(self) -> None:
        without = [clip for clip in self.split.clips if "boxes.npy" not in self.split.shards[clip.shard].entries[clip.sample].members]
        if without:
            raise UserError(
                f"{len(without)} of {len(self.split)} clips in {self.split.folder} carry no boxes of face and mouth, the first is {without[0].key}; "
                "set data.boxes to false, or pack clips that have a KEY.boxes.npy beside each (`flowact-data synth` writes them)"
            )

    def _captions(self, number: int) -> Captions:
        clip, where = self.split.clips[number], self.split.where(self.split.clips[number])
        captions = parse_captions(check_metadata(self.split.decode(clip, "json"), where), where)
        # distinct captions of a window are bounded by the changes inside it; only where that bound is broken they are counted
        index_F = self.caption_index(captions, 0, (clip.frames - 1) // self.stride)
        changes = np.concatenate([[0], np.cumsum(np.diff(index_F) != 0)])
        last = self.num_frames - 1
        for start in np.flatnonzero(changes[last:] - changes[: len(changes) - last] >= self.max_captions).tolist():
            found = len({captions.texts[i] for i in index_F[start : start + self.num_frames].tolist()})
            if found > self.max_captions:
                raise UserError(
                    f"{where}: the window at latent {start} holds {found} different captions, max_captions is {self.max_captions}; raise it"
                )
        return captions

    def caption_index(self, captions: Captions, first: int, count: int) -> np.ndarray:
        """Caption in force at the middle of each of `count` motion latents."""
        return captions.at(np.arange(first, first + count) * self.stride + 1 + self.stride // 2)

    def features(self, number: int) -> ClipFeatures:
        """Columns of a clip, from memory or from its shards."""
        if self._cache is None:  # made where it is used: each worker has its share
            worker = get_worker_info()
            self._cache = ByteCache(self._cache_bytes // (worker.num_workers if worker else 1))
        found = self._cache.get(number)
        if found is None:
            clip = self.split.clips[number]
            found = ClipFeatures(
                latents_FCHW=self.columns["latents"].decode(clip, "latents.npy"),
                reference_RCHW=self.columns["latents"].decode(clip, "reference.npy"),
                audio_TD=self.columns["audio"].decode(clip, "audio.npy"),
                text_NLD=self.columns["text"].decode(clip, "text.npy"),
                boxes_TX4=self.split.decode(clip, "boxes.npy") if self.boxes else None,
            )
            self._check_features(found, number)
            self._cache.put(number, found, found.num_bytes)
        return found

    def _check_features(self, found: ClipFeatures, number: int) -> None:
        clip, shapes = self.split.clips[number], {suffix: shape for info in self.infos.values() for suffix, shape in info.shapes.items()}
        expected = {
            "latents.npy": (found.latents_FCHW, [(clip.frames - 1) // self.stride + 1, *shapes["latents.npy"]]),
            "reference.npy": (found.reference_RCHW, [max(len(found.reference_RCHW), 1), *shapes["reference.npy"]]),
            "audio.npy": (found.audio_TD, [clip.frames, *shapes["audio.npy"]]),
            "text.npy": (found.text_NLD, [len(self.captions[number].texts), *shapes["text.npy"]]),
        }
        for suffix, (array, shape) in expected.items():
            if list(array.shape) != shape:
                raise ShardError(
                    f"{self.split.where(clip)}: column member .{suffix} has shape {list(array.shape)}, expected {shape}; encode the column again"
                )
        if found.boxes_TX4 is not None and (wrong := wrong_optional_member("boxes.npy", found.boxes_TX4, clip.frames)):
            raise ShardError(f"{self.split.where(clip)}: {wrong}")

    def read(self, window: Window) -> dict[str, Any]:
        """The window's arrays, by the names of `Batch`."""
        clip, captions = self.split.clips[window.clip], self.captions[window.clip]
        features = self.features(window.clip)
        generator = window.generator()
        count, stride = self.num_frames, self.stride
        first = int(generator.integers((clip.frames - 1) // stride - count + 1))
        candidate = int(generator.integers(len(features.reference_RCHW))) if self.reference == "random" else 0
        audio_TD = features.audio_TD[first * stride + 1 : (first + count) * stride + 1]
        index_F = self.caption_index(captions, first, count)
        # equal captions share one slot, in order of appearance
        slots: dict[str, int] = {}
        slot_F = [slots.setdefault(captions.texts[i], len(slots)) for i in index_F.tolist()]
        text_NLD = np.zeros((self.max_captions, *features.text_NLD.shape[1:]), dtype=np.float16)
        for i, slot in zip(index_F.tolist(), slot_F):
            text_NLD[slot] = features.text_NLD[i]
        boxes = {}
        if features.boxes_TX4 is not None:
            boxes["boxes_BFX4"] = around(features.boxes_TX4[first * stride + 1 : (first + count) * stride + 1], stride)
        return {
            "latents_BFCHW": features.latents_FCHW[first + 1 : first + 1 + count],
            "reference_BFCHW": features.reference_RCHW[candidate : candidate + 1],
            "audio_BFAD": audio_TD.reshape(count, stride, -1),
            "text_BNLD": text_NLD,
            "text_index_BF": np.asarray(slot_F, dtype=np.int64),
            **boxes,
            "key": f"{clip.key}@{first}",
        }


def around(boxes_TX4: np.ndarray, stride: int) -> np.ndarray:
    """The smallest boxes [F, X, 4] around those of each latent frame's pixel frames; NaN where none of them is known."""
    corners = boxes_TX4.reshape(-1, stride, *boxes_TX4.shape[1:])
    return np.concatenate([np.fmin.reduce(corners[..., :2], axis=1), np.fmax.reduce(corners[..., 2:], axis=1)], axis=-1)


def collate_windows(samples: Sequence[dict[str, Any]]) -> Batch:
    """A batch of windows; features in float32."""
    keys = tuple(sample["key"] for sample in samples)
    tensors = {}
    for name in samples[0]:
        if name != "key":
            stacked = torch.from_numpy(np.stack([sample[name] for sample in samples]))
            tensors[name] = stacked.float() if stacked.is_floating_point() else stacked
    return Batch(**tensors, keys=keys)


class Clips(Protocol):
    """Windows of the clips of one split."""

    split: Split

    def read(self, window: Window) -> Any: ...


OpenClips = TypeVar("OpenClips", bound=Clips)


class WindowDataModule(pl.LightningDataModule, ABC, Generic[OpenClips]):
    """What data modules share: two splits, opened when they are needed, and a loader for each. Their arguments are the subclass's."""

    train: str
    val: str | None
    batch_size: int
    num_workers: int
    seed: int
    windows_per_clip: int
    shards_in_flight: int
    _collate: Callable[[list[Any]], Any]

    def __init__(self) -> None:
        super().__init__()
        self._clips: dict[str, OpenClips] = {}

    @abstractmethod
    def _open(self, name: str, spec: str) -> OpenClips:
        """Open the split `name` and check its clips."""

    def setup(self, stage: str | None = None) -> None:
        """Open the splits that a trainer's stage needs."""
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("val",)}.get(stage or "", ("train", "val"))
        for name in wanted:
            spec = {"train": self.train, "val": self.val}[name]
            if spec is not None and name not in self._clips:
                self._clips[name] = self._open(name, spec)

    def train_dataloader(self) -> ShardLoader:
        """Shuffled windows of the train split, `windows_per_clip` a clip and epoch."""
        self.setup("fit")
        return self.loader("train", *_place(self.trainer))

    def val_dataloader(self) -> ShardLoader | list[Any]:
        """The same windows of the val split every time."""
        if self.val is None:
            return []
        self.setup("validate")
        return self.loader("val", *_place(self.trainer))

    def loader(self, split: Literal["train", "val"], rank: int = 0, world_size: int = 1) -> ShardLoader:
        """The loader of one process, for use without a Trainer too (after `setup`)."""
        clips = self._clips[split]
        return _loader(clips.split, clips.read, self._collate, self, split, rank, world_size)


@final
class ShardDataModule(WindowDataModule[EncodedClips]):
    """Windows of encoded clips: latents with sound and captions of the same pixel frames, and a reference picture.

    Yields `Batch` with F = history_frames + window_frames. The order is a pure function of (seed, epoch, position); a resumed run goes on
    exactly where it was saved, with any number of workers.

    Args:
        train: folder of shards or brace string, e.g. DIR/shards/train.
        val: likewise; None for no validation. Validation sees the same windows each time.
        columns: folder with the encoded columns; the default is `columns` beside the split.
        latents: name of the column to use, e.g. latents-CausalVideoAutoencoder-1a2b3c4d; needed only when there are several.
        audio: likewise.
        text: likewise.
        batch_size: windows a step and process.
        history_frames: motion latents before the part that is trained on, for the memory.
        window_frames: motion latents of the stream.
        num_workers: processes that read ahead; 0 reads in the training process.
        seed: of the order and of every random draw.
        reference: reference picture of a window: always the clip's own ('first'), or one of the stored candidates ('random').
        windows_per_clip: windows of a clip in one epoch; sets the length of an epoch.
        max_captions: different captions a window may hold.
        cache_bytes: decoded clips kept in memory, over all workers of a process.
        shards_in_flight: shards that windows are mixed from at a time.
        boxes: read the boxes of face and mouth too, for stages that weight the loss there.
        limit_clips: use only so many clips of a split, the first ones; 1 is for "does it learn one clip by heart?".
    """

    _collate = staticmethod(collate_windows)

    def __init__(
        self,
        train: str,
        val: str | None = None,
        columns: str | None = None,
        latents: str | None = None,
        audio: str | None = None,
        text: str | None = None,
        batch_size: int = 16,
        history_frames: int = 0,
        window_frames: int = 12,
        num_workers: int = 0,
        seed: int = 0,
        reference: Literal["first", "random"] = "random",
        windows_per_clip: int = 8,
        max_captions: int = 4,
        cache_bytes: int = 512 << 20,
        shards_in_flight: int = 16,
        boxes: bool = False,
        limit_clips: int | None = None,
    ) -> None:
        super().__init__()
        if window_frames < 1 or history_frames < 0:
            raise UserError(f"window_frames={window_frames} and history_frames={history_frames}: a window has at least 1 frame, history at least 0")
        if max_captions < 1:
            raise UserError(f"max_captions is {max_captions}, must be at least 1")
        if reference not in ("first", "random"):
            raise UserError(f"reference is {reference!r}, must be 'first' or 'random'")
        self.train, self.val, self.columns = train, val, columns
        self.names = {"latents": latents, "audio": audio, "text": text}
        self.batch_size = batch_size
        self.history_frames = history_frames
        self.window_frames = window_frames
        self.num_workers = num_workers
        self.seed = seed
        self.reference: Literal["first", "random"] = reference
        self.windows_per_clip = windows_per_clip
        self.max_captions = max_captions
        self.cache_bytes = cache_bytes
        self.shards_in_flight = shards_in_flight
        self.boxes = boxes
        self.limit_clips = limit_clips

    @property
    def num_frames(self) -> int:
        """Motion latents of a window."""
        return self.history_frames + self.window_frames

    @property
    def conditions(self) -> dict[str, Any]:
        """What the features are: read from the column.yaml files, without opening a shard.

        Returns:
            latent_space (hash), autoencoder {class_path, init_args}, autoencoder_path (folder with its weights), encoders {text, audio}, fps,
            temporal_stride, latent_shape [C, H, W], text_shape [L, D], audio_shape [A, D], character, states, columns {name: folder name}.
        """
        folders = self._folders(self.train)
        infos = {name: read_column(folder) for name, folder in folders.items()}
        stride = _stride(infos["latents"])
        dataset = _dataset_of(self.train)
        return {
            "latent_space": infos["latents"].hash,
            "autoencoder": infos["latents"].encoder,
            "autoencoder_path": str(folders["latents"] / "autoencoder"),
            "encoders": {"text": infos["text"].encoder, "audio": infos["audio"].encoder},
            "fps": infos["latents"].fps,
            "temporal_stride": stride,
            "latent_shape": infos["latents"].shapes["latents.npy"],
            "text_shape": infos["text"].shapes["text.npy"],
            "audio_shape": [stride, *infos["audio"].shapes["audio.npy"]],
            "character": dataset.character if dataset else None,
            "states": list(dataset.states) if dataset else None,
            "columns": {name: folder.name for name, folder in folders.items()},
        }

    @property
    def lineage(self) -> dict[str, Any]:
        """`conditions` without paths: what a checkpoint stores and compares."""
        return {name: value for name, value in self.conditions.items() if name != "autoencoder_path"}

    def setup(self, stage: str | None = None) -> None:
        """Open the splits and check that every clip is long enough and has all columns."""
        super().setup(stage)
        if len(self._clips) == 2:
            ours, theirs = (self._clips[name].infos for name in ("train", "val"))
            for column in COLUMNS:
                if ours[column].hash != theirs[column].hash:
                    raise UserError(
                        f"train and val hold {column} of different encoders, {ours[column].folder_name} and {theirs[column].folder_name}; "
                        "encode both with one"
                    )

    def _open(self, name: str, spec: str) -> EncodedClips:
        return EncodedClips(
            _first_clips(open_split(spec), self.limit_clips),
            self._folders(spec),
            num_frames=self.num_frames,
            max_captions=self.max_captions,
            reference=self.reference if name == "train" else "first",
            cache_bytes=self.cache_bytes,
            boxes=self.boxes,
        )

    def _folders(self, spec: str) -> dict[str, Path]:
        folder = _split_folder(spec)
        root = Path(self.columns) if self.columns is not None else folder.parent / COLUMNS_FOLDER
        found: dict[str, list[Path]] = {name: [] for name in COLUMNS}
        for path in sorted(root.iterdir()) if root.is_dir() else []:
            parts = split_column_folder_name(path.name)
            if parts and path.is_dir():
                found[parts[0]].append(path)
        chosen = {}
        for column, folders in found.items():
            name = self.names[column]
            if name is not None:
                if name not in [path.name for path in folders]:
                    raise UserError(f"{root} has no {column} column {name!r}.{did_you_mean(name, [path.name for path in folders])}")
                chosen[column] = root / name
            elif not folders:
                raise UserError(f"{root} has no {column} column; make it with: flowact-data encode {column} {folder.parent}")
            elif len(folders) > 1:
                raise UserError(f"{root} has {len(folders)} {column} columns: {', '.join(p.name for p in folders)}; name one with {column}=NAME")
            else:
                chosen[column] = folders[0]
        return chosen


class PixelClips:
    """Windows of pixel frames. Decoded clips are kept as uint8 while they fit; beyond that only the window is decoded.

    Args:
        split: the clips.
        num_frames: pixel frames of a window.
        cache_bytes: decoded clips kept in memory.

    Raises:
        UserError: a clip shorter than the window.
    """

    def __init__(self, split: Split, num_frames: int, cache_bytes: int) -> None:
        self.split = split
        self.num_frames = num_frames
        self.fps = split.info.fps if split.info else FRAMES_PER_SECOND
        self._cache_bytes = cache_bytes
        self._cache: ByteCache[np.ndarray] | None = None
        self._frame_bytes = 0
        short = [clip for clip in split.clips if clip.frames < num_frames]
        if short:
            shortest = min(clip.frames for clip in short)
            raise UserError(
                f"{len(short)} of {len(split)} clips in {split.folder} have fewer than num_frames={num_frames} frames, the shortest {shortest}; "
                f"lower num_frames, or exclude them in dataset.yaml: [{_listed(split, short)}]"
            )

    def read(self, window: Window) -> tuple[np.ndarray, str]:
        """uint8 frames (T, H, W, 3) and the key with the first frame."""
        if self._cache is None:
            worker = get_worker_info()
            self._cache = ByteCache(self._cache_bytes // (worker.num_workers if worker else 1))
        clip = self.split.clips[window.clip]
        first = int(window.generator().integers(clip.frames - self.num_frames + 1))
        frames = self._cache.get(window.clip)
        if frames is None:
            video, where = self.split.read(clip, "mp4"), self.split.where(clip)
            if not self._cache.has_room(self._frame_bytes * clip.frames):
                return decode_video(video, where, first=first, count=self.num_frames, fps=self.fps), f"{clip.key}@{first}"
            frames = decode_video(video, where, count=clip.frames, fps=self.fps)
            self._frame_bytes = frames[0].nbytes  # known from the first clip on
            self._cache.put(window.clip, frames, frames.nbytes)
        return frames[first : first + self.num_frames], f"{clip.key}@{first}"


def collate_frames(samples: Sequence[tuple[np.ndarray, str]]) -> FrameBatch:
    """A batch of pixel windows in [-1, 1].

    Raises:
        UserError: clips of different picture size.
    """
    shapes = {frames.shape[1:3]: key for frames, key in samples}
    if len(shapes) > 1:
        raise UserError(f"clips differ in size: {', '.join(f'{key} is {w}x{h}' for (h, w), key in shapes.items())}; pack them at one --size")
    frames_BTHWC = torch.from_numpy(np.stack([frames for frames, _ in samples]))
    return FrameBatch(frames_BTHWC.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1.0).contiguous(), tuple(key for _, key in samples))


@final
class FrameDataModule(WindowDataModule[PixelClips]):
    """Windows of pixel frames for training an autoencoder; order and resume as in `ShardDataModule`.

    Args:
        train: folder of shards or brace string.
        val: likewise; None for no validation.
        batch_size: windows a step and process.
        num_frames: pixel frames of a window, 1 + n times the temporal stride of the autoencoder.
        num_workers: processes that decode ahead; 0 decodes in the training process.
        seed: of the order and of every random draw.
        windows_per_clip: windows of a clip in one epoch.
        cache_bytes: decoded frames kept in memory, over all workers of a process.
        shards_in_flight: shards that windows are mixed from at a time.
        limit_clips: see `ShardDataModule`.
    """

    _collate = staticmethod(collate_frames)

    def __init__(
        self,
        train: str,
        val: str | None = None,
        batch_size: int = 8,
        num_frames: int = 17,
        num_workers: int = 0,
        seed: int = 0,
        windows_per_clip: int = 8,
        cache_bytes: int = 1 << 30,
        shards_in_flight: int = 16,
        limit_clips: int | None = None,
    ) -> None:
        super().__init__()
        if num_frames < 1:
            raise UserError(f"num_frames is {num_frames}, must be at least 1")
        self.train, self.val = train, val
        self.batch_size = batch_size
        self.num_frames = num_frames
        self.num_workers = num_workers
        self.seed = seed
        self.windows_per_clip = windows_per_clip
        self.cache_bytes = cache_bytes
        self.shards_in_flight = shards_in_flight
        self.limit_clips = limit_clips

    @property
    def conditions(self) -> dict[str, Any]:
        """fps, character and states of the dataset."""
        dataset = _dataset_of(self.train)
        return {
            "fps": dataset.fps if dataset else FRAMES_PER_SECOND,
            "character": dataset.character if dataset else None,
            "states": list(dataset.states) if dataset else None,
        }

    @property
    def lineage(self) -> dict[str, Any]:
        """What a checkpoint stores and compares."""
        return self.conditions

    def _open(self, name: str, spec: str) -> PixelClips:
        return PixelClips(_first_clips(open_split(spec), self.limit_clips), self.num_frames, self.cache_bytes)


def _loader(
    clips: Split,
    read: Callable[[Window], Any],
    collate: Callable[[list[Any]], Any],
    module: WindowDataModule[Any],
    split: str,
    rank: int,
    world_size: int,
) -> ShardLoader:
    batch_size = module.batch_size
    if split == "val":  # a small val split is worth more than a full batch
        batch_size = min(batch_size, max(len(clips) * module.windows_per_clip // world_size, 1))
    source = WindowSource(
        [clip.shard for clip in clips.clips],
        windows_per_clip=module.windows_per_clip,
        batch_size=batch_size,
        seed=module.seed,
        rank=rank,
        world_size=world_size,
        shuffle=split == "train",
        shards_in_flight=module.shards_in_flight,
    )
    return ShardLoader(source, read, collate, module.num_workers)


def _first_clips(split: Split, limit: int | None) -> Split:
    if limit is None:
        return split
    if limit < 1:
        raise UserError(f"limit_clips is {limit}; it is at least 1, or null for all clips")
    return Split(split.folder, split.shards, split.clips[:limit], split.info)


def _place(trainer: pl.Trainer | None) -> tuple[int, int]:
    return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)


def _listed(split: Split, clips: Sequence[ClipRef]) -> str:
    return ", ".join(f"'{split.where(clip)}'" for clip in clips[:5]) + (", ..." if len(clips) > 5 else "")


def _stride(latents: ColumnInfo) -> int:
    if not latents.temporal_stride:
        raise UserError(f"column {latents.folder_name} does not say its temporal_stride; encode the latents again")
    return latents.temporal_stride


def _split_folder(spec: str) -> Path:
    return Path(spec).parent if spec.endswith(".tar") else Path(spec)


def _dataset_of(spec: str) -> DatasetInfo | None:
    root = _split_folder(spec).parent
    return read_dataset(root) if (root / DATASET_FILE).is_file() else None
