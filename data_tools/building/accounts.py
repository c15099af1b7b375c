"""The accounts of a build: how many clips reached and left each step, and the records beside the shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_tools.building.edits import DELETED
from data_tools.building.examine import READING
from data_tools.building.ledger import ClipRecord
from data_tools.building.recipe import BuildRecipe
from data_tools.card import CARD_FILE, is_ours, write_card
from data_tools.manifest import REJECTED_FILE, write_manifest, write_rejected, write_shard_lists, write_stats

#: what rejects a clip that could not be made; reports call it so
MAKING = "Making"


def funnel(recipe: BuildRecipe, clips: Sequence[ClipRecord]) -> list[tuple[str, int, int]]:
    """(step, clips that reached it, clips that it rejected), in order; reading first, making last."""
    names = [READING, *(step.name for step in recipe.chain), DELETED, MAKING]
    left, rows = len(clips), []
    for name in names:
        out = sum(clip.rejection is not None and clip.rejection.step == name for clip in clips)
        rows.append((name, left, out))
        left -= out
    return rows


def funnel_text(recipe: BuildRecipe, clips: Sequence[ClipRecord]) -> str:
    """The funnel in lines, with the commonest reason of each step and how to let more through."""
    lines = []
    for name, reached, out in funnel(recipe, clips):
        if not out:
            continue
        rejections = [clip.rejection for clip in clips if clip.rejection is not None and clip.rejection.step == name]
        lines.append(f"  {name}: {out} of {reached} out, e.g. {rejections[0].reason}")
    return "\n".join([*lines, "change the thresholds in the recipe (what was measured is kept), or look at one with: flowact-data explain KEY"])


def write_records(out: Path, clips: Sequence[ClipRecord]) -> None:
    """Manifest, rejections, numbers, shard lists and card."""
    rejected = [
        {
            "key": clip.key,
            "source": clip.source,
            "step": clip.rejection.step,
            "score": clip.rejection.score,
            "value": clip.rejection.value,
            "rule": clip.rejection.relation,
            "threshold": clip.rejection.bound,
            "reason": clip.rejection.reason,
        }
        for clip in clips
        if clip.rejection is not None
    ]
    write_rejected(out / REJECTED_FILE, rejected)
    write_manifest(out)
    write_stats(out)
    write_shard_lists(out)
    if is_ours(out / CARD_FILE) or not (out / CARD_FILE).exists():
        write_card(out)
