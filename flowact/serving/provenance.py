"""Who was shown, by which weights, when and with which prompts: one line of JSON per session, without words, pictures or addresses."""

from __future__ import annotations

import json
import logging
import os
import time
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from flowact.errors import UserError

if TYPE_CHECKING:
    from flowact.serving.session import AvatarSession

log = logging.getLogger(__name__)


class SessionLog(ABC):
    """Where sessions that ended are noted."""

    @abstractmethod
    def write(self, session: AvatarSession) -> None:
        """Note a session. Never fails a caller."""


@final
class JsonLinesLog(SessionLog):
    """Appends to a file that only its owner may read.

    Args:
        path: the file; its folder is created.
        watermark: whether pictures carried a visible note.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: str | Path, watermark: bool) -> None:
        self.path = Path(path)
        self.watermark = watermark
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append("")
        except OSError as error:
            raise UserError(f"cannot write the session log {self.path} ({error}); give --session-log FILE, or --no-session-log") from error

    def write(self, session: AvatarSession) -> None:
        """See `SessionLog.write`."""
        try:
            self._append(json.dumps(self.line(session)) + "\n")
        except OSError as error:
            log.error("the session log %s cannot be written: %s", self.path, error)

    def line(self, session: AvatarSession) -> dict[str, Any]:
        """What is noted."""
        now = time.time()
        return {
            "session": session.id,
            "started": _stamp(session.created_wall),
            "ended": _stamp(now),
            "seconds": round(now - session.created_wall, 1),
            "reason": session.reason,
            "model": session.model.name,
            "model_sha256": session.model.sha256,
            "character": session.character.id,
            "pictures_sha256": session.picture_hashes,
            "prompts_sha256": session.prompt_hashes,
            "num_chunks": session.num_chunks,
            "visible_watermark": self.watermark,
        }

    def _append(self, text: str) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, text.encode())  # one call: lines of two servers do not mix
        finally:
            os.close(descriptor)


@final
class NoSessionLog(SessionLog):
    """Notes nothing."""

    def write(self, session: AvatarSession) -> None:
        """See `SessionLog.write`."""


def default_log_path() -> Path:
    """Where a user's programs keep such files."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "flowact" / "sessions.jsonl"


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
