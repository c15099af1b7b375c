"""The Lightning data modules: windows of encoded clips for the stages, pixel clips for training an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from flowact.data.cache import WorkerCache
from flowact.data.columns import dataset_of, find_columns, temporal_stride
from flowact.data.encoded import EncodedClips, around, collate_windows
from flowact.data.mixing import Source
from flowact.data.module import WindowDataModule
from flowact.data.pixels import PixelClips, collate_frames
from flowact.data.references import ReferencePolicy, check_policy
from flowact.data.schema import COLUMNS, read_column
from flowact.data.shards import Split
from flowact.errors import UserError
from flowact.types import FRAMES_PER_SECOND

__all__ = [
    "EncodedClips",
    "FrameDataModule",
    "PixelClips",
    "ShardDataModule",
    "Source",
    "WindowDataModule",
    "around",
    "collate_frames",
    "collate_windows",
]

#: entries of KEY.json that shards made elsewhere may lack -> what is taken for them
_ASSUMED = {"identity": "each is a person of its own", "captions": "the whole KEY.txt is their caption, without a state"}


@final
class ShardDataModule(WindowDataModule[EncodedClips]):
    """Windows of encoded clips: latents with sound and captions of the same pixel frames, and a reference picture.

    Yields `Batch` with F = history_frames + window_frames. The order is a pure function of (seed, epoch, position); a resumed run goes on
    exactly where it was saved, with any number of workers. Where clips have pictures of several sizes a batch holds one of them, the same in
    every process.

    Args:
        train: folder of shards or brace string, e.g. DIR/shards/train; or a list of such, and of {folder, weight, columns, where, keys}.
        val: likewise, without weights; None for no validation. Validation sees the same windows each time.
        columns: folder with the encoded columns; the default is `columns` beside the split.
        latents: name of the column to use, e.g. latents-CausalVideoAutoencoder-1a2b3c4d; needed only when there are several.
        audio: likewise.
        text: likewise.
        batch_size: windows a step and process.
        history_frames: motion latents before the part that is trained on, for the memory.
        window_frames: motion latents of the stream.
        num_workers: processes that read ahead; 0 reads in the training process.
        seed: of the order and of every random draw.
        reference: reference picture of a window: the clip's own ('first'), one of its stored candidates ('random'), the candidate farthest in time
            from the window ('far'), or one of another clip of the same person ('other'). Validation takes 'first'.
        where: conditions that clips are trained on under, such as `scores.Sync.confidence >= 0.3`: names are entries of KEY.json.
        keys: names of members in shards made elsewhere, our suffix -> theirs, e.g. {mp4: video.mp4, txt: caption.txt}.
        windows_per_clip: windows of a clip in one epoch; sets the length of an epoch.
        max_captions: different captions a window may hold.
        cache_bytes: decoded clips kept in memory, over all workers of a process.
        shards_in_flight: shards that windows are mixed from at a time.
        boxes: read the boxes of face and mouth too, for stages that weight the loss there.
        limit_clips: use only so many clips of each split, the first ones; 1 is for "does it learn one clip by heart?".
    """

    _collate = staticmethod(collate_windows)

    def __init__(
        self,
        train: str | list[str | Source],
        val: str | list[str | Source] | None = None,
        columns: str | None = None,
        latents: str | None = None,
        audio: str | None = None,
        text: str | None = None,
        batch_size: int = 16,
        history_frames: int = 0,
        window_frames: int = 12,
        num_workers: int = 0,
        seed: int = 0,
        reference: ReferencePolicy = "random",
        where: Sequence[str] = (),
        keys: dict[str, str] | None = None,
        windows_per_clip: int = 8,
        max_captions: int = 4,
        cache_bytes: int = 512 << 20,
        shards_in_flight: int = 16,
        boxes: bool = False,
        limit_clips: int | None = None,
    ) -> None:
        super().__init__(train, val, where, keys)
        if window_frames < 1 or history_frames < 0:
            raise UserError(f"window_frames={window_frames} and history_frames={history_frames}: a window has at least 1 frame, history at least 0")
        if max_captions < 1:
            raise UserError(f"max_captions is {max_captions}, must be at least 1")
        self.columns = columns
        self.names = {"latents": latents, "audio": audio, "text": text}
        self.batch_size = batch_size
        self.history_frames = history_frames
        self.window_frames = window_frames
        self.num_workers = num_workers
        self.seed = seed
        self.reference = check_policy(reference)
        self.windows_per_clip = windows_per_clip
        self.max_captions = max_captions
        self.cache: WorkerCache[Any] = WorkerCache(cache_bytes)
        self.shards_in_flight = shards_in_flight
        self.boxes = boxes
        self.limit_clips = limit_clips

    @property
    def num_frames(self) -> int:
        """Motion latents of a window."""
        return self.history_frames + self.window_frames

    @property
    def conditions(self) -> dict[str, Any]:
        """What the features are: read from the column.yaml files of the first training set, without opening a shard.

        Returns:
            latent_space (hash), autoencoder {class_path, init_args}, autoencoder_path (folder with its weights), encoders {text, audio}, fps,
            temporal_stride, latent_shape [C, H, W], text_shape [L, D], audio_shape [A, D], character, states, columns {name: folder name}.
        """
        folders = self._columns(self.sources["train"][0])
        infos = {name: read_column(folder) for name, folder in folders.items()}
        stride = temporal_stride(infos["latents"])
        dataset = dataset_of(self.train)
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
        """`conditions` without paths, and `training_data`: what a checkpoint stores and compares."""
        return {name: value for name, value in self.conditions.items() if name != "autoencoder_path"} | self._rights

    def setup(self, stage: str | None = None) -> None:
        """Open the splits and check that every clip is long enough and has all columns, and that the features of all sets are of one kind."""
        super().setup(stage)
        if len(self._clips) == 2:
            ours, theirs = (self._clips[name].parts[0].infos for name in ("train", "val"))
            for column in COLUMNS:
                if ours[column].hash != theirs[column].hash:
                    raise UserError(
                        f"train and val hold {column} of different encoders, {ours[column].folder_name} and {theirs[column].folder_name}; "
                        "encode both with one"
                    )

    def _columns(self, source: Source) -> dict[str, Path]:
        return find_columns(source.folder, source.columns or self.columns, self.names)

    def _open(self, name: str, source: Source, split: Split) -> EncodedClips:
        clips = EncodedClips(
            split,
            self._columns(source),
            num_frames=self.num_frames,
            max_captions=self.max_captions,
            reference=self.reference if name == "train" else "first",
            cache=self.cache,
            boxes=self.boxes,
        )
        for name, assumed in _ASSUMED.items():
            if clips.assumed[name]:
                rank_zero_info(f"data: {split.folder}: {clips.assumed[name]} of {len(split)} clips state no {name}: {assumed}")
        if clips.reference == "other" and clips.companions.num_alone:
            rank_zero_info(
                f"data: {split.folder}: {clips.companions.num_alone} of {len(split)} clips are the only one of their person and size of pictures; "
                "their reference picture is one of their own"
            )
        return clips


@final
class FrameDataModule(WindowDataModule[PixelClips]):
    """Windows of pixel frames for training an autoencoder; order and resume as in `ShardDataModule`.

    Args:
        train: folder of shards or brace string, or several; see `ShardDataModule`.
        val: likewise; None for no validation.
        batch_size: windows a step and process.
        num_frames: pixel frames of a window, 1 + n times the temporal stride of the autoencoder.
        num_workers: processes that decode ahead; 0 decodes in the training process.
        seed: of the order and of every random draw.
        where: conditions that clips are trained on under; see `ShardDataModule`.
        keys: names of members in shards made elsewhere; see `ShardDataModule`.
        windows_per_clip: windows of a clip in one epoch.
        cache_bytes: decoded frames kept in memory, over all workers of a process.
        shards_in_flight: shards that windows are mixed from at a time.
        limit_clips: see `ShardDataModule`.
    """

    _collate = staticmethod(collate_frames)

    def __init__(
        self,
        train: str | list[str | Source],
        val: str | list[str | Source] | None = None,
        batch_size: int = 8,
        num_frames: int = 17,
        num_workers: int = 0,
        seed: int = 0,
        where: Sequence[str] = (),
        keys: dict[str, str] | None = None,
        windows_per_clip: int = 8,
        cache_bytes: int = 1 << 30,
        shards_in_flight: int = 16,
        limit_clips: int | None = None,
    ) -> None:
        super().__init__(train, val, where, keys)
        if num_frames < 1:
            raise UserError(f"num_frames is {num_frames}, must be at least 1")
        self.batch_size = batch_size
        self.num_frames = num_frames
        self.num_workers = num_workers
        self.seed = seed
        self.windows_per_clip = windows_per_clip
        self.cache: WorkerCache[Any] = WorkerCache(cache_bytes)
        self.shards_in_flight = shards_in_flight
        self.limit_clips = limit_clips

    @property
    def conditions(self) -> dict[str, Any]:
        """fps, character and states of the dataset."""
        dataset = dataset_of(self.train)
        return {
            "fps": dataset.fps if dataset else FRAMES_PER_SECOND,
            "character": dataset.character if dataset else None,
            "states": list(dataset.states) if dataset else None,
        }

    @property
    def lineage(self) -> dict[str, Any]:
        """`conditions`, and `training_data`: what a checkpoint stores and compares."""
        return self.conditions | self._rights

    def _open(self, name: str, source: Source, split: Split) -> PixelClips:
        return PixelClips(split, self.num_frames, self.cache)
