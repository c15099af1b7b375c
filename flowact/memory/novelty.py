"""Long memory that keeps what is new, not what is recent. Legend: flowact/types.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from flowact.memory.base import MemoryBank
from flowact.memory.entries import MemoryState, ReferencePosition, Which
from flowact.memory.structured import StructuredMemory
from flowact.types import Chunk, MemoryView


@dataclass(frozen=True)
class NoveltyState(MemoryState):
    """Candidates and the short memory.

    Attributes:
        num_written_B: chunks written so far, counted up to where all candidates are chunks and none is the reference any more.
    """

    num_written_B: Tensor = field(kw_only=True)


class NoveltyMemory(MemoryBank[NoveltyState]):
    """Structured memory whose long entries are chosen from the last `among` chunks by how new they are, in order of age.

    A first-in-first-out queue of a person who sits still holds three times the same picture. Here each sample of a batch keeps its own choice:

    - "coverage" takes the newest candidate, and then again and again the one that is farthest from all that are taken (the greedy answer to the
      k-center problem, Gonzalez 1985), so that the entries spread over what was seen.
    - "surprise" takes the candidates that differ most from the chunk before them.

    Distance is Euclidean between latents. The choice is made anew from the candidates at every read and depends on nothing else: so training sees the
    same memory as a stream, and neither another reference nor a refined short memory changes it. Which chunk an entry is differs from sample to
    sample while positions are shared, so entries stand by rank, at the places of a queue. For the same reason they have no numbers, and features of
    isolated entries are computed again with every chunk. Places that nothing has reached yet, where the person stood still, are chosen last.

    Args:
        long: long entries.
        among: candidates: chunks that have left the short memory.
        choose: what counts as new.
        short: latent frames of the short memory.
        positions: "elapsed" places entries a chunk apart, "contiguous" next to each other.
        chunk_frames: latent frames of the chunks that are written.
        reference_gap: latent frames from the reference to the oldest other entry.
        reference_position: see `StructuredMemory`.
        entry: what of a chunk an entry is; see `StructuredMemory`.
        which: the frame of the chunk that an entry of one latent is.

    Raises:
        ValueError: no long entry, not more candidates than entries, an unknown choice, or what `StructuredMemory` refuses.
    """

    def __init__(
        self,
        long: int = 3,
        among: int = 9,
        choose: Literal["coverage", "surprise"] = "coverage",
        short: int = 1,
        positions: Literal["elapsed", "contiguous"] = "elapsed",
        chunk_frames: int = 3,
        reference_gap: int = 3,
        reference_position: ReferencePosition = "offset",
        entry: Literal["latent", "chunk", "compressed"] = "latent",
        which: Which = "last",
    ) -> None:
        if long < 1 or among <= long:
            raise ValueError(f"there is a choice only where long >= 1 and among > long, got long={long}, among={among}")
        if choose not in ("coverage", "surprise"):
            raise ValueError(f"choose is {choose!r}; it is coverage or surprise")
        self.long = long
        self.among = among
        self.choose = choose
        self.chunk_frames: int = chunk_frames
        self.candidates = StructuredMemory(among, short, positions, chunk_frames, reference_gap, reference_position, entry, which)
        self.chosen = StructuredMemory(long, short, positions, chunk_frames, reference_gap, reference_position, entry, which)

    @property
    def num_frames(self) -> int:
        """See `MemoryBank.num_frames`."""
        return self.chosen.num_frames

    @property
    def num_segments(self) -> int:
        """See `MemoryBank.num_segments`."""
        return self.chosen.num_segments

    @property
    def history_chunks(self) -> int:
        """See `MemoryBank.history_chunks`."""
        return self.candidates.history_chunks

    def reset(self, reference: Chunk) -> NoveltyState:
        """See `MemoryBank.reset`."""
        still, latents = self.candidates.reset(reference), reference.latents_BFCHW
        none_B = torch.zeros(latents.shape[0], dtype=torch.long, device=latents.device)
        return NoveltyState(still.reference, still.entries, still.waiting, num_written_B=none_B)

    def write(self, state: NoveltyState, chunk: Chunk) -> NoveltyState:
        """See `MemoryBank.write`."""
        after = self.candidates.write(MemoryState(state.reference, state.entries, state.waiting), chunk)
        written_B = (state.num_written_B + 1).clamp(max=self.history_chunks)
        return NoveltyState(after.reference, after.entries, after.waiting, num_written_B=written_B)

    def read(self, state: NoveltyState) -> MemoryView:
        """See `MemoryBank.read`."""
        *candidates, short = state.entries
        points_BPV = torch.stack([as_point(entry) for entry in candidates], dim=1)
        age_P = torch.arange(self.among, 0, -1, device=points_BPV.device)  # chunks that were written after a candidate
        empty_BP = age_P >= state.num_written_B[:, None]
        chosen_BE = (spread if self.choose == "coverage" else most_surprising)(points_BPV, empty_BP, self.long)
        return self.chosen.read(MemoryState(state.reference, (*taken(candidates, chosen_BE), short)))


def as_point(entry: Chunk) -> Tensor:
    """Point [B, V] of an entry: its latents, averaged over its frames."""
    return entry.latents_BFCHW.float().mean(1).flatten(1)


#: stand-ins for a distance: an empty place is taken after all others, what is taken already not at all
EMPTY, TAKEN = -1.0, -2.0


def spread(points_BPV: Tensor, empty_BP: Tensor, count: int) -> Tensor:
    """Indices [B, count], ascending: the last point, and then one by one the point that is farthest from those before it."""
    # the formula by matrix products would not give exactly 0 between equal points
    apart_BPP = torch.cdist(points_BPV, points_BPV, compute_mode="donot_use_mm_for_euclid_dist")
    newest_B = torch.full(points_BPV.shape[:1], points_BPV.shape[1] - 1, device=points_BPV.device)
    chosen, nearest_BP = [newest_B], torch.full_like(apart_BPP[:, 0], float("inf")).masked_fill(empty_BP, EMPTY)
    while len(chosen) < count:
        to_last_BP = apart_BPP.gather(1, chosen[-1][:, None, None].expand(-1, 1, apart_BPP.shape[2])).squeeze(1)
        nearest_BP = torch.minimum(nearest_BP, to_last_BP).scatter(1, chosen[-1][:, None], TAKEN)
        chosen.append(nearest_BP.argmax(1))
    return torch.stack(chosen, dim=1).sort(dim=1).values


def most_surprising(points_BPV: Tensor, empty_BP: Tensor, count: int) -> Tensor:
    """Indices [B, count], ascending, of the points that are farthest from the point before them; the first has none and comes last."""
    from_before_BP = (points_BPV[:, 1:] - points_BPV[:, :-1]).norm(dim=2)
    surprise_BP = torch.cat([torch.full_like(from_before_BP[:, :1], EMPTY), from_before_BP], dim=1)
    return surprise_BP.masked_fill(empty_BP, EMPTY).topk(count, dim=1).indices.sort(dim=1).values


def taken(entries: list[Chunk], chosen_BE: Tensor) -> tuple[Chunk, ...]:
    """Of each sample its own entries, whole: latents, sound and text."""
    sample_B = torch.arange(chosen_BE.shape[0], device=chosen_BE.device)
    together = [torch.stack([getattr(e, name) for e in entries], dim=1) for name in ("latents_BFCHW", "audio_BFAD", "text_BLD")]
    rows = ([tensor[sample_B, chosen_B] for tensor in together] for chosen_B in chosen_BE.unbind(1))
    return tuple(Chunk(latents, audio, text) for latents, audio, text in rows)
