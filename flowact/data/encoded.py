"""Windows of encoded clips: latents with sound and captions of the same pixel frames, and a reference picture. Legend: flowact/types.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowact.data.cache import WorkerCache
from flowact.data.columns import latent_shape, rates, temporal_stride
from flowact.data.pipeline import Window
from flowact.data.references import Companions, ReferencePolicy, farthest
from flowact.data.schema import Captions, parse_captions, read_column, wrong_optional_member
from flowact.data.shards import ClipRef, ShardError, Split
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
        reference: see `ReferencePolicy`.
        cache: decoded clips kept in memory.
        boxes: read the boxes of face and mouth too.

    Attributes:
        shapes: [C, H, W] of each clip's latents.
        captions: of each clip.
        assumed: entries of KEY.json -> clips of shards made elsewhere that do not state them.

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
        reference: ReferencePolicy,
        cache: WorkerCache[Any],
        boxes: bool = False,
    ) -> None:
        self.split = split
        self.boxes = boxes
        self.infos = {name: read_column(folder) for name, folder in columns.items()}
        self.columns = {name: split if self._holds(name, folder) else split.column(folder) for name, folder in columns.items()}
        self.num_frames = num_frames
        self.max_captions = max_captions
        self.reference = reference
        self.stride = temporal_stride(self.infos["latents"])
        self._cache = cache
        self._check_lengths()
        if boxes:
            self._check_boxes()
        self.captions: list[Captions] = []
        self.shapes: list[tuple[int, ...]] = []
        self.assumed: Counter[str] = Counter()
        identities = []
        for clip in split.clips:
            metadata, added = split.metadata(clip)
            self.assumed.update(added)
            self.captions.append(parse_captions(metadata, split.where(clip)))
            self._check_captions(self.captions[-1], clip)
            self.shapes.append(latent_shape(self.infos["latents"], metadata))
            identities.append(metadata["identity"])
        self.companions = Companions.of(identities, self.shapes)

    @property
    def sizes(self) -> list[str]:
        """Size of each clip's pictures, in words; windows of one size only may share a batch."""
        return [f"{width}x{height} latents" for _, height, width in self.shapes]

    @property
    def facts(self) -> dict[str, Any]:
        """What data sets that are mixed have in common."""
        return {**rates(self.split), **{f"{name} column": info.folder_name for name, info in self.infos.items()}}

    def _holds(self, column: str, folder: Path) -> bool:
        """Whether the shards hold a column's features themselves, as shards made elsewhere may."""
        return f"{column}.npy" in self.split.members(self.split.clips[0]) and not (folder / self.split.name).is_dir()

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
        without = [clip for clip in self.split.clips if "boxes.npy" not in self.split.members(clip)]
        if without:
            raise UserError(
                f"{len(without)} of {len(self.split)} clips in {self.split.folder} carry no boxes of face and mouth, the first is {without[0].key}; "
                "set data.boxes to false, or pack clips that have a KEY.boxes.npy beside each (`flowact-data synth` writes them)"
            )

    def _check_captions(self, captions: Captions, clip: ClipRef) -> None:
        # distinct captions of a window are bounded by the changes inside it; only where that bound is broken they are counted
        index_F = self.caption_index(captions, 0, (clip.frames - 1) // self.stride)
        changes = np.concatenate([[0], np.cumsum(np.diff(index_F) != 0)])
        last = self.num_frames - 1
        for start in np.flatnonzero(changes[last:] - changes[: len(changes) - last] >= self.max_captions).tolist():
            found = len({captions.texts[i] for i in index_F[start : start + self.num_frames].tolist()})
            if found > self.max_captions:
                raise UserError(
                    f"{self.split.where(clip)}: the window at latent {start} holds {found} different captions, max_captions is {self.max_captions}; "
                    "raise it"
                )

    def caption_index(self, captions: Captions, first: int, count: int) -> np.ndarray:
        """Caption in force at the middle of each of `count` motion latents."""
        return captions.at(np.arange(first, first + count) * self.stride + 1 + self.stride // 2)

    def features(self, number: int) -> ClipFeatures:
        """Columns of a clip, from memory or from its shards."""
        clip = self.split.clips[number]
        place = (str(self.split.folder), clip.shard, clip.sample)
        found: ClipFeatures | None = self._cache.here.get(place)
        if found is None:
            latents_FCHW = self.columns["latents"].decode(clip, "latents.npy")
            found = ClipFeatures(
                latents_FCHW=latents_FCHW,
                reference_RCHW=latents_FCHW[:1] if not self._has_candidates(clip) else self._candidates(clip),
                audio_TD=self.columns["audio"].decode(clip, "audio.npy"),
                text_NLD=self.columns["text"].decode(clip, "text.npy"),
                boxes_TX4=self.split.decode(clip, "boxes.npy") if self.boxes else None,
            )
            self._check_features(found, number)
            self._cache.here.put(place, found, found.num_bytes)
        return found

    def references(self, number: int) -> np.ndarray:
        """Candidate reference pictures of a clip [R, C, H, W], without its other columns."""
        clip = self.split.clips[number]
        place = (str(self.split.folder), clip.shard, clip.sample, "references")
        found: np.ndarray | None = self._cache.here.get(place)
        if found is None:
            found = self._candidates(clip)
            self._check_shape("reference.npy", found, [max(len(found), 1), *self.shapes[number]], clip)
            self._cache.here.put(place, found, found.nbytes)
        return found

    def _has_candidates(self, clip: ClipRef) -> bool:
        return "reference.npy" in self.columns["latents"].members(clip)

    def _candidates(self, clip: ClipRef) -> np.ndarray:
        """Stored reference pictures [R, C, H, W]; in shards made elsewhere that have none the clip's first frame, image latent 0."""
        column = self.columns["latents"]
        found: np.ndarray = column.decode(clip, "reference.npy") if self._has_candidates(clip) else column.decode(clip, "latents.npy")[:1]
        return found

    def _check_features(self, found: ClipFeatures, number: int) -> None:
        clip, (audio, text) = self.split.clips[number], (self.infos[name].shapes[f"{name}.npy"] for name in ("audio", "text"))
        expected = {
            "latents.npy": (found.latents_FCHW, [(clip.frames - 1) // self.stride + 1, *self.shapes[number]]),
            "reference.npy": (found.reference_RCHW, [max(len(found.reference_RCHW), 1), *self.shapes[number]]),
            "audio.npy": (found.audio_TD, [clip.frames, *audio]),
            "text.npy": (found.text_NLD, [len(self.captions[number].texts), *text]),
        }
        for suffix, (array, shape) in expected.items():
            self._check_shape(suffix, array, shape, clip)
        if found.boxes_TX4 is not None and (wrong := wrong_optional_member("boxes.npy", found.boxes_TX4, clip.frames)):
            raise ShardError(f"{self.split.where(clip)}: {wrong}")

    def _check_shape(self, suffix: str, array: np.ndarray, shape: list[int], clip: ClipRef) -> None:
        if list(array.shape) != shape:
            raise ShardError(
                f"{self.split.where(clip)}: column member .{suffix} has shape {list(array.shape)}, expected {shape}; encode the column again"
            )

    def _reference(self, number: int, own_RCHW: np.ndarray, frames: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
        """The reference picture [1, C, H, W] of a window of pixel frames [first, end) of a clip."""
        candidates_RCHW, candidate = own_RCHW, 0
        if self.reference == "other":
            companion = self.companions.draw(number, generator)
            candidates_RCHW = own_RCHW if companion == number else self.references(companion)
        if self.reference in ("random", "other"):
            candidate = int(generator.integers(len(candidates_RCHW)))
        elif self.reference == "far":
            candidate = farthest(self.split.clips[number].frames, len(own_RCHW), *frames)
        return candidates_RCHW[candidate : candidate + 1]

    def read(self, window: Window) -> dict[str, Any]:
        """The window's arrays, by the names of `Batch`."""
        clip, captions = self.split.clips[window.clip], self.captions[window.clip]
        features = self.features(window.clip)
        generator = window.generator()
        count, stride = self.num_frames, self.stride
        first = int(generator.integers((clip.frames - 1) // stride - count + 1))
        begin, end = first * stride + 1, (first + count) * stride + 1
        reference_BFCHW = self._reference(window.clip, features.reference_RCHW, (begin, end), generator)
        audio_TD = features.audio_TD[begin:end]
        index_F = self.caption_index(captions, first, count)
        # equal captions share one slot, in order of appearance
        slots: dict[str, int] = {}
        slot_F = [slots.setdefault(captions.texts[i], len(slots)) for i in index_F.tolist()]
        text_NLD = np.zeros((self.max_captions, *features.text_NLD.shape[1:]), dtype=np.float16)
        for i, slot in zip(index_F.tolist(), slot_F):
            text_NLD[slot] = features.text_NLD[i]
        boxes = {}
        if features.boxes_TX4 is not None:
            boxes["boxes_BFX4"] = around(features.boxes_TX4[begin:end], stride)
        return {
            "latents_BFCHW": features.latents_FCHW[first + 1 : first + 1 + count],
            "reference_BFCHW": reference_BFCHW,
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
