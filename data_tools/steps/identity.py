"""Whose face and voice a clip holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, final

from data_tools.inputs import MAX_ID
from data_tools.steps.base import Clip, Plain, Plan, Step
from flowact.errors import UserError

SEPARATOR = "--"


@final
class Identity(Step):
    """Names the person of each clip, and keeps all people of one recording in one split.

    Faces are not compared: who looks alike is not known. A step that knows (by weights of a face embedding) may join clips by its `groups`, and name
    them by its `apply`, later in the recipe. Where FaceTracks makes clips of each person, the tracks' numbers tell people of one recording apart: the
    first keeps the name, the others get it with -p1, -p2.

    Args:
        who: 'source' takes what a table, a sidecar or the first folder says; 'folder' the folder in which the file lies, all levels of it;
            'file' makes every recording a person of its own.
        name: of the one person whom all recordings show; in place of `who`. Their recordings are then held out by `output.split_by: recording`.
    """

    thresholds = ("who", "name")

    def __init__(self, who: Literal["source", "folder", "file"] = "source", name: str = "") -> None:
        if who not in ("source", "folder", "file"):
            raise UserError(f"Identity: who {who!r} must be one of source, folder, file")
        self.who, self.name_of_all = who, name

    def score(self, clip: Clip) -> Mapping[str, Plain]:
        source = clip.recording.source
        return {"source": source.identity, "folder": folder_of_id(source.id), "file": source.id}

    def apply(self, clip: Clip, scores: Mapping[str, Plain]) -> Plan:
        before, said = clip.plan.identity, clip.recording.source.identity
        track = before.removeprefix(said) if before.startswith(said) else ""
        return clip.with_plan(identity=(self.name_of_all or scores[self.who]) + track)

    def groups(self, scores: Mapping[str, Mapping[str, Plain]]) -> Sequence[Sequence[str]]:
        """Clips of one recording: whoever sits beside somebody in it is heard and half seen in their clips."""
        together: dict[str, list[str]] = {}
        for key, found in scores.items():
            together.setdefault(found["file"], []).append(key)
        return [keys for keys in together.values() if len(keys) > 1]


def folder_of_id(id_: str) -> str:
    """The folder that a recording's id names; the id itself where it names none (a file right in the input, or a path too long for an id).

    >>> folder_of_id("show--anna--01")
    'show--anna'
    >>> folder_of_id("01")
    '01'
    """
    folder, separator, _ = id_.rpartition(SEPARATOR)
    return folder if separator and len(id_) < MAX_ID else id_
