"""Records that cross rooms. All are frozen; a changed record is a new record.

Axis alphabet, used in every tensor name of the project:
    B batch, F latent frames, T pixel frames, C channels, H W height and width (pixels or latent cells),
    L tokens, D feature width, N captions of a clip, A audio features of one latent frame, S segments, K chunks, P truth channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:  # what prepares data, completes a command line or reads a shard needs the numbers and names here, and no torch
    from torch import Tensor

FRAMES_PER_SECOND = 25
SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FRAMES_PER_SECOND
#: Frame 0 of a clip is the picture that its image latent stands for; motion latents, and so a stream, begin at frame 1.
FIRST_STREAMED_FRAME = 1
STATES = ("speaking", "listening", "thinking", "idle")
#: parts of a person whose boxes a clip may carry, in this order
BOXES = ("face", "mouth")

SegmentKind = Literal["reference", "long", "short", "stream"]
Record = TypeVar("Record", bound="TensorRecord")


class TensorRecord:
    """A frozen dataclass whose tensor fields move together."""

    def to(self: Record, *args: Any, **kwargs: Any) -> Record:
        """Same record with every tensor moved or cast as by `torch.Tensor.to`; integer tensors keep their type."""

        from torch import Tensor

        def moved(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(moved(part) for part in value)
            if isinstance(value, TensorRecord):
                return value.to(*args, **kwargs)
            if not isinstance(value, Tensor):
                return value
            target = value.to(*args, **kwargs)
            return target if value.is_floating_point() else target.to(value.dtype)

        return replace(self, **{field.name: moved(getattr(self, field.name)) for field in fields(self)})  # type: ignore[arg-type, type-var]


@dataclass(frozen=True)
class Batch(TensorRecord):
    """Windows of clips, as the data room hands them to a stage.

    Latent frame f of a window and its audio describe the same `temporal_stride` pixel frames.

    Attributes:
        latents_BFCHW: normalised latents of consecutive motion latent frames.
        reference_BFCHW: the reference picture's image latent, F = 1, of the same character.
        audio_BFAD: audio features at 25 Hz, A = temporal stride of the autoencoder.
        text_BNLD: text features of the captions that occur in the window, zero padded to N.
        text_index_BF: which of the N captions describes latent frame f.
        keys: clip key and first latent frame of each sample ("000012-spk@40"), for error messages and skip lists.
        boxes_BFX4: left, top, right, bottom of each of the X = 2 `BOXES` over the pixel frames of a latent frame, as shares of the picture's width
            and height; NaN where unknown. None if the data module was not asked for them.
    """

    latents_BFCHW: Tensor
    reference_BFCHW: Tensor
    audio_BFAD: Tensor
    text_BNLD: Tensor
    text_index_BF: Tensor
    keys: tuple[str, ...] = ()
    boxes_BFX4: Tensor | None = None


@dataclass(frozen=True)
class FrameBatch(TensorRecord):
    """Pixel clips for training an autoencoder: frames_BCTHW in [-1, 1], T = stride * n + 1."""

    frames_BCTHW: Tensor
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chunk(TensorRecord):
    """n consecutive latent frames with their own conditions: the unit that streams.

    Attributes:
        latents_BFCHW: F = n.
        audio_BFAD: audio features of the same frames.
        text_BLD: features of the one caption that is in force for the chunk.
        identity: number that the stream gave it; chunks cut from it keep the number, chunks made of changed contents have None.
        trail: what a solver remembers of the chunk's way down the stairs; None before its first step, after its last, and where that is nothing.
    """

    latents_BFCHW: Tensor
    audio_BFAD: Tensor
    text_BLD: Tensor
    identity: int | None = None
    trail: TensorRecord | None = None

    @property
    def num_frames(self) -> int:
        return self.latents_BFCHW.shape[1]

    def noised(self, sigma: float | Tensor, noise_BFCHW: Tensor) -> Chunk:
        """The chunk at a noise level, one for all samples or one of each: x = (1 - sigma) x0 + sigma eps. Its way down begins there."""
        from torch import Tensor

        level = sigma.to(self.latents_BFCHW)[:, None, None, None, None] if isinstance(sigma, Tensor) else sigma
        return replace(self, latents_BFCHW=(1 - level) * self.latents_BFCHW + level * noise_BFCHW, trail=None)


@dataclass(frozen=True)
class Segment:
    """A run of latent frames in the denoiser's window.

    Attributes:
        kind: its part in the structured memory (FlowAct-R1, Figure 2).
        num_frames: latent frames.
        position: temporal rotary position of its first frame; the first stream frame has position 0.
    """

    kind: SegmentKind
    num_frames: int
    position: int

    @property
    def is_memory(self) -> bool:
        return self.kind != "stream"


@dataclass(frozen=True)
class Visibility:
    """Who may attend to whom in a window. The paper states none but that memory may not see the stream.

    Attributes:
        causal: memory may not see the stream ("fake causal", FlowAct-R1 section on the autoregressive adaptation);
            False is the full visibility of the base model, whatever the other two say.
        stream: a chunk of the stream sees all chunks ("bidirectional") or none that come after it ("block_causal").
        memory: a memory entry sees all entries ("full") or itself alone ("isolated"); then its features stay the same for as long as it is kept.
    """

    causal: bool = True
    stream: Literal["bidirectional", "block_causal"] = "bidirectional"
    memory: Literal["full", "isolated"] = "full"

    def __post_init__(self) -> None:
        for name, value, known in (("stream", self.stream, ("bidirectional", "block_causal")), ("memory", self.memory, ("full", "isolated"))):
            if value not in known:
                raise ValueError(f"visibility.{name} is {value!r}; it is {' or '.join(known)}")


FULL_VISIBILITY = Visibility(causal=False)


@dataclass(frozen=True)
class WindowLayout:
    """The one owner of a window's geometry: ordered segments, memory first, then the stream's chunks. Memory may stand alone, to be encoded once.

    Args:
        segments: at least one; memory segments stand before all stream segments.
        visibility: who may attend to whom.

    Raises:
        ValueError: no segment, memory after stream, or segments whose rotary positions overlap.
    """

    segments: tuple[Segment, ...]
    visibility: Visibility = Visibility()

    def __post_init__(self) -> None:
        kinds = [segment.is_memory for segment in self.segments]
        if not kinds:
            raise ValueError("a window needs at least one segment")
        if kinds != sorted(kinds, reverse=True):
            raise ValueError(f"memory segments stand before stream segments, got {[s.kind for s in self.segments]}")
        in_time = sorted(self.segments, key=lambda segment: segment.position)
        for before, after in pairwise(in_time):
            if before.position + before.num_frames > after.position:
                raise ValueError(
                    f"{before.kind} at position {before.position} with {before.num_frames} frames overlaps {after.kind} at {after.position}; "
                    "two frames may not stand at one position (a reference anchored in the future stands behind the whole stream)"
                )

    @property
    def memory(self) -> WindowLayout:
        """The memory segments alone."""
        return replace(self, segments=tuple(segment for segment in self.segments if segment.is_memory))

    @property
    def num_memory_segments(self) -> int:
        return sum(segment.is_memory for segment in self.segments)

    @property
    def num_frames(self) -> int:
        return sum(segment.num_frames for segment in self.segments)

    @property
    def num_memory_frames(self) -> int:
        return sum(segment.num_frames for segment in self.segments if segment.is_memory)

    @property
    def num_stream_frames(self) -> int:
        return self.num_frames - self.num_memory_frames

    @property
    def frame_positions(self) -> tuple[int, ...]:
        """Temporal rotary position of each latent frame, in window order."""
        return tuple(segment.position + i for segment in self.segments for i in range(segment.num_frames))

    @property
    def frame_segments(self) -> tuple[int, ...]:
        """Index of the segment that each latent frame belongs to."""
        return tuple(i for i, segment in enumerate(self.segments) for _ in range(segment.num_frames))

    def visible(self, query: int, key: int) -> bool:
        """Whether segment `query` may attend to segment `key` (indices into `segments`)."""
        if not self.visibility.causal or query == key:
            return True
        query_segment, key_segment = self.segments[query], self.segments[key]
        if query_segment.is_memory:
            return key_segment.is_memory and self.visibility.memory == "full"
        if key_segment.is_memory or self.visibility.stream == "bidirectional":
            return True
        return key <= query


@dataclass(frozen=True)
class ConditionTokens(TensorRecord):
    """Conditions of a window; each segment owns its text and each latent frame its audio.

    With text shared between segments the stream would leak into memory after two joint-attention layers, so text is per segment.

    Attributes:
        text_BSLD: one caption's features per segment of the layout. Zeros mean "no text" (classifier-free guidance).
        audio_BFAD: audio features per latent frame of the layout. Zeros mean "no audio".
        guidance_BG: guidance scales (text, audio) that a distilled model is asked for, G = 2; None asks for none. They reach the stream only.
    """

    text_BSLD: Tensor
    audio_BFAD: Tensor
    guidance_BG: Tensor | None = None

    def drop(self, *, text_B: Tensor | None = None, audio_B: Tensor | None = None) -> ConditionTokens:
        """Zero the text or audio of the samples where the boolean mask is true."""
        text, audio = self.text_BSLD, self.audio_BFAD
        if text_B is not None:
            text = text.masked_fill(text_B[:, None, None, None], 0.0)
        if audio_B is not None:
            audio = audio.masked_fill(audio_B[:, None, None, None], 0.0)
        return replace(self, text_BSLD=text, audio_BFAD=audio)

    def part(self, segments: slice, frames: slice) -> ConditionTokens:
        """The conditions of some segments and of some frames."""
        return replace(self, text_BSLD=self.text_BSLD[:, segments], audio_BFAD=self.audio_BFAD[:, frames])


@dataclass(frozen=True)
class MemoryFeatures(TensorRecord):
    """What a denoiser's attention layers keep of memory, so that it is computed once per change of memory and not once per evaluation.

    Attributes:
        keys: [B, L, N, D] per attention layer, before rotation: positions may change while an entry is kept.
        values: [B, L, N, D] per attention layer.
        reference_BFCHW: the clean reference picture, for denoisers that take it beside every frame; else None.
        key_mask_BL: False for keys that nobody may see (padding of captions); None if all may be seen.
        lengths: tokens of each segment, where segments are isolated and so can be taken apart; else empty.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    reference_BFCHW: Tensor | None = None
    key_mask_BL: Tensor | None = None
    lengths: tuple[int, ...] = ()

    @staticmethod
    def joined(parts: Sequence[MemoryFeatures]) -> MemoryFeatures:
        """Features of several memory entries, side by side."""
        import torch

        if len(parts) == 1:
            return parts[0]
        layers = range(len(parts[0].keys))
        keys, values = (tuple(torch.cat([getattr(part, name)[i] for part in parts], dim=1) for i in layers) for name in ("keys", "values"))
        references = [part.reference_BFCHW for part in parts if part.reference_BFCHW is not None]
        masks = [part.key_mask_BL for part in parts if part.key_mask_BL is not None]
        lengths = tuple(length for part in parts for length in part.lengths)
        return MemoryFeatures(keys, values, references[0] if references else None, torch.cat(masks, dim=1) if masks else None, lengths)

    def split(self) -> list[MemoryFeatures]:
        """Features of each segment; the inverse of `joined`."""
        keys, values = (zip(*(tensor.split(self.lengths, dim=1) for tensor in tensors), strict=True) for tensors in (self.keys, self.values))
        masks = [None] * len(self.lengths) if self.key_mask_BL is None else self.key_mask_BL.split(self.lengths, dim=1)
        return [
            MemoryFeatures(key, value, self.reference_BFCHW, mask, (length,))
            for key, value, mask, length in zip(keys, values, masks, self.lengths, strict=True)
        ]


@dataclass(frozen=True)
class MemoryView(TensorRecord):
    """What a memory bank offers to the denoiser: latents with conditions, segment by segment.

    Attributes:
        latents_BFCHW: clean latents of all segments, one after the other.
        audio_BFAD: audio features of the same frames.
        text_BSLD: one caption's features per segment.
        segments: kinds, lengths and positions.
        identities: one number per segment; within a stream, equal numbers of segments of equal kind and length mean equal contents. Empty: unknown.
    """

    latents_BFCHW: Tensor
    audio_BFAD: Tensor
    text_BSLD: Tensor
    segments: tuple[Segment, ...]
    identities: tuple[int, ...] = ()

    @property
    def conditions(self) -> ConditionTokens:
        """Text per segment and audio per frame."""
        return ConditionTokens(self.text_BSLD, self.audio_BFAD)

    def entries(self, indices: Sequence[int]) -> MemoryView:
        """Some segments alone, in the given order."""
        import torch

        frames_of = list(self.latents_BFCHW.split([segment.num_frames for segment in self.segments], dim=1))
        audio_of = list(self.audio_BFAD.split([segment.num_frames for segment in self.segments], dim=1))
        return MemoryView(
            torch.cat([frames_of[i] for i in indices], dim=1),
            torch.cat([audio_of[i] for i in indices], dim=1),
            self.text_BSLD[:, list(indices)],
            tuple(self.segments[i] for i in indices),
        )


def concatenate_chunks(chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor, Tensor]:
    """Latents [B, sum F, C, H, W], audio [B, sum F, A, D] and one text per chunk [B, K, L, D]."""
    import torch

    return (
        torch.cat([chunk.latents_BFCHW for chunk in chunks], dim=1),
        torch.cat([chunk.audio_BFAD for chunk in chunks], dim=1),
        torch.stack([chunk.text_BLD for chunk in chunks], dim=1),
    )
