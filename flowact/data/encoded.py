"""Windows of encoded clips: latents with sound and captions of the same pixel frames, and a reference picture. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import get_worker_info

from flowact.data.columns import temporal_stride
from flowact.data.pipeline import ByteCache, Window
from flowact.data.schema import Captions, check_metadata, parse_captions, read_column, wrong_optional_member
from flowact.data.shards import ShardError, Split
from flowact.errors import UserError
from flowact.types import Batch


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
        self.stride = temporal_stride(self.infos["latents"])
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
                fix += f"; or exclude the short clips in dataset.yaml: [{self.split.listed(short)}]"
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
