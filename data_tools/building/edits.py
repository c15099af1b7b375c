"""What people changed in a built dataset by hand, so that a later build does not undo it.

Deleted clips stay out. A relabelled clip or a renamed person stays as it is as long as the recipe would make the same clip. People stay in the split
that they were moved to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.building.ledger import ClipRecord
from data_tools.manifest import read_clips
from data_tools.rewrite import CHANGES_FILE
from data_tools.steps.base import Rejection
from flowact.data.schema import DATASET_FILE, SplitBy

#: what rejects a clip that was deleted by hand; reports call it so
DELETED = "Deleted"


@dataclass(frozen=True)
class Edits:
    """Changes that a build respects.

    Attributes:
        deleted: keys.
        touched: keys whose labels or captions were changed.
        split_of: person (or recording) -> split, where they were moved by hand.
    """

    deleted: frozenset[str] = frozenset()
    touched: frozenset[str] = frozenset()
    split_of: Mapping[str, str] | None = None

    def reject(self, clip: ClipRecord) -> Rejection | None:
        """Why a clip that passed all steps is out."""
        return Rejection(DELETED, "deleted by hand (flowact-data edit)") if clip.key in self.deleted else None


def read_edits(root: Path, split_by: SplitBy = "person") -> Edits:
    """Edits of a dataset whose splits keep persons or recordings together; none where it was never changed."""
    path = root / CHANGES_FILE
    if not path.is_file() or not (root / DATASET_FILE).is_file():
        return Edits()
    requests: list[dict[str, Any]] = json.loads(path.read_bytes())
    deleted = {key for request in requests if request["verb"] == "edit delete" for key in request["keys"]}
    touched = {request["key"] for request in requests if request["verb"] == "edit relabel"}
    moved = any(request["verb"] == "split" for request in requests)
    clips = [(clip.metadata, clip.split) for clip in read_clips(root)] if moved else []
    split_of = {metadata["identity"] if split_by == "person" else metadata["source"]["uri"]: split for metadata, split in clips} or None
    return Edits(frozenset(deleted), frozenset(touched), split_of)
