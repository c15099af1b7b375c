"""The ledger: what was found about every recording and clip, under the hash of all that decided it. SQLite, written after every recording.

A build reads it before it measures, so what is known is not measured again, and writes into it before it goes on, so a killed build loses at
most what its workers had in hand. The dataset never depends on what is in the ledger, only on recordings and recipe.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from data_tools.inputs import Source
from data_tools.steps.base import Plan, Rejection, Rule
from flowact.errors import UserError

WORK_FOLDER = "work"
LEDGER_FILE = "ledger.sqlite"
RECORDINGS_FOLDER = "recordings"
PREVIOUS_FOLDER = "previous"
SCHEMA_VERSION = 1

_TABLES = """
CREATE TABLE IF NOT EXISTS source (
    id TEXT PRIMARY KEY, address TEXT NOT NULL, stamp TEXT NOT NULL, sha256 TEXT NOT NULL, batch INTEGER NOT NULL,
    examined TEXT NOT NULL, seconds REAL NOT NULL, code TEXT NOT NULL, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS result (
    source TEXT NOT NULL, step TEXT NOT NULL, hash TEXT NOT NULL, value TEXT NOT NULL, seconds REAL NOT NULL, code TEXT NOT NULL,
    PRIMARY KEY (source, step, hash)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS clip (
    key TEXT PRIMARY KEY, source TEXT NOT NULL, position INTEGER NOT NULL, plan TEXT NOT NULL, scores TEXT NOT NULL, rules TEXT NOT NULL,
    rejection TEXT, made TEXT, split TEXT, shard TEXT);
CREATE TABLE IF NOT EXISTS failure (made TEXT PRIMARY KEY, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS person (identity TEXT PRIMARY KEY, split TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class ClipRecord:
    """A clip as it came down the steps.

    Attributes:
        key: of the clip; of the recording where it was rejected as a whole.
        source: id of the recording.
        plan: what the steps decided; None for a whole recording.
        scores: of each step that looked at it.
        rules: step -> the rules that its scores were held to.
        rejection: why it is out, None for a kept clip.
        made: hash of all that decides the clip's bytes; empty for a rejected clip.
        split: train or val; empty until it is assigned.
        shard: 'train/000000' that holds it; empty until it is packed.
    """

    key: str
    source: str
    plan: Plan | None
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rules: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    rejection: Rejection | None = None
    made: str = ""
    split: str = ""
    shard: str = ""


@dataclass(frozen=True)
class Finding:
    """A step's scores of one clip, for the ledger: under which hash, and what they cost."""

    step: str
    hash: str
    value: Any
    seconds: float


@dataclass(frozen=True)
class SourceRecord:
    """A recording as the ledger knows it.

    Attributes:
        source: where it comes from.
        stamp: size and time of change when it was read.
        sha256: of its bytes.
        batch: number of the build that it came with; clips of a later batch go to later shards.
        frames: at 25 a second; 0 where it could not be read.
        seconds: of work that it took.
    """

    source: Source
    stamp: str
    sha256: str
    batch: int
    frames: int
    seconds: float


class Ledger:
    """One dataset's ledger.

    Args:
        folder: of the dataset.
        code: version of FlowAct, noted with everything that is found.
        read_only: write nothing; the folder may be one that can not be written to.

    Raises:
        UserError: a damaged file, one of another version, or none where it is to be read only.
    """

    def __init__(self, folder: Path, code: str = "", read_only: bool = False) -> None:
        self.path = folder / WORK_FOLDER / LEDGER_FILE
        self.code = code
        if read_only and not self.path.is_file():
            raise UserError(f"{folder} has no {WORK_FOLDER}/{LEDGER_FILE}: it was not made by `flowact-data build`, so nothing is known about how")
        try:
            self._db = self._connect_to_read() if read_only else self._connect_to_write()
            version = int(self.fact("schema") or SCHEMA_VERSION)
            if not read_only:
                self.note("schema", str(version))
        except sqlite3.OperationalError:
            raise  # the disk, not the file; the command line says what to do
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.path} is damaged ({error}); delete it: the build measures again and keeps the shards that are right") from error
        if version != SCHEMA_VERSION:
            raise UserError(f"{self.path} has version {version}, this one reads {SCHEMA_VERSION}; delete it: the build measures again")

    @classmethod
    def open(cls, folder: Path) -> Ledger:
        """The ledger of a dataset that was built, to be read only."""
        return cls(folder, read_only=True)

    def _connect_to_write(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self.path, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(_TABLES)
        return db

    def _connect_to_read(self) -> sqlite3.Connection:
        # a folder that can not be written to holds a file that nobody writes: it may be read without a lock
        mode = "mode=ro" if os.access(self.path.parent, os.W_OK) else "immutable=1"
        return sqlite3.connect(f"file:{quote(str(self.path.resolve()))}?{mode}", uri=True, isolation_level=None)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside, or none."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # --- facts ------------------------------------------------------------------------------------------------------------------------------------

    def fact(self, name: str) -> str | None:
        """A noted fact."""
        row = self._db.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def note(self, name: str, value: str) -> None:
        """Note a fact."""
        self._db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, value))

    # --- recordings ---------------------------------------------------------------------------------------------------------------------------------

    def sources(self) -> list[SourceRecord]:
        """Every recording, by id."""
        rows = self._db.execute("SELECT record, stamp, sha256, batch, examined, seconds FROM source ORDER BY id")
        return [
            SourceRecord(Source(**json.loads(record)), stamp, sha, batch, json.loads(examined).get("frames", 0), seconds)
            for record, stamp, sha, batch, examined, seconds in rows
        ]

    def batches(self) -> dict[str, int]:
        """Recording -> number of its batch."""
        return dict(self._db.execute("SELECT id, batch FROM source"))

    def hashes(self) -> dict[tuple[str, str], str]:
        """(address, stamp) of a file that was read -> sha256 of its bytes, so that a file that has not changed is not hashed again."""
        rows = self._db.execute("SELECT address, stamp, sha256 FROM source WHERE sha256 != ''")
        return {(address, stamp): sha256 for address, stamp, sha256 in rows}

    def findings(self, source: str) -> dict[str, Any]:
        """Hash -> scores that are known of a recording's clips."""
        return {hash_: json.loads(value) for hash_, value in self._db.execute("SELECT hash, value FROM result WHERE source = ?", (source,))}

    def add_source(
        self, source: Source, stamp: str, sha256: str, batch: int, examined: Mapping[str, Any], seconds: float, findings: Iterable[Finding]
    ) -> None:
        """Write down a recording with what was found about its clips, all or nothing."""
        with self.transaction():
            row = (source.id, source.address, stamp, sha256, batch, _dump(examined), seconds, self.code, _dump(vars(source)))
            self._db.execute("INSERT OR REPLACE INTO source VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            self._db.executemany(
                "INSERT OR REPLACE INTO result VALUES (?, ?, ?, ?, ?, ?)",
                [(source.id, found.step, found.hash, _dump(found.value), found.seconds, self.code) for found in findings],
            )

    def keep_sources(self, ids: Iterable[str]) -> None:
        """Forget recordings that are no longer in the input."""
        wanted = set(ids)
        with self.transaction():
            for (id_,) in self._db.execute("SELECT id FROM source").fetchall():
                if id_ not in wanted:
                    self._db.execute("DELETE FROM source WHERE id = ?", (id_,))
                    self._db.execute("DELETE FROM result WHERE source = ?", (id_,))

    def spent(self) -> dict[str, float]:
        """Step -> seconds that its scores took."""
        return dict(self._db.execute("SELECT step, SUM(seconds) FROM result GROUP BY step"))

    # --- clips ------------------------------------------------------------------------------------------------------------------------------------

    def replace_clips(self, clips: Iterable[ClipRecord]) -> None:
        """Write down this build's clips in place of the last one's."""
        with self.transaction():
            self._db.execute("DELETE FROM clip")
            self._db.executemany("INSERT INTO clip VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", [_row(i, clip) for i, clip in enumerate(clips)])

    def clips(self, source: str | None = None) -> list[ClipRecord]:
        """Clips of the last build, in the order of recordings and frames."""
        where, values = ("WHERE source = ?", (source,)) if source else ("", ())
        return [_clip(row) for row in self._db.execute(f"SELECT * FROM clip {where} ORDER BY position", values)]

    def clip(self, key: str) -> ClipRecord | None:
        """One clip."""
        row = self._db.execute("SELECT * FROM clip WHERE key = ?", (key,)).fetchone()
        return _clip(row) if row else None

    def keys(self) -> list[str]:
        """Of all clips."""
        return [key for (key,) in self._db.execute("SELECT key FROM clip ORDER BY position")]

    def failures(self) -> dict[str, str]:
        """Hash of a clip that could not be made -> why."""
        return dict(self._db.execute("SELECT made, reason FROM failure"))

    def add_failure(self, made: str, reason: str) -> None:
        """Write down that a clip can not be made, so that it is not tried again."""
        self._db.execute("INSERT OR REPLACE INTO failure VALUES (?, ?)", (made, reason))

    # --- people -----------------------------------------------------------------------------------------------------------------------------------

    def people(self) -> dict[str, str]:
        """identity -> split that it was assigned to."""
        return dict(self._db.execute("SELECT identity, split FROM person"))

    def assign_people(self, splits: Mapping[str, str]) -> None:
        """Remember who is in which split, also when they leave and come back."""
        with self.transaction():
            self._db.executemany("INSERT OR REPLACE INTO person VALUES (?, ?)", splits.items())


def seconds_since(start: float) -> float:
    """Since a value of `time.perf_counter`."""
    return time.perf_counter() - start


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=dict)


def _row(position: int, clip: ClipRecord) -> tuple[Any, ...]:
    plan = None if clip.plan is None else clip.plan.to_json()
    rules = {step: [vars(rule) for rule in found] for step, found in clip.rules.items()}
    rejection = None if clip.rejection is None else _dump(vars(clip.rejection))
    scores = json.dumps(clip.scores)  # in the order of the steps
    return (clip.key, clip.source, position, _dump(plan), scores, json.dumps(rules), rejection, clip.made, clip.split, clip.shard)


def _clip(row: tuple[Any, ...]) -> ClipRecord:
    key, source, _, plan, scores, rules, rejection, made, split, shard = row
    values = json.loads(plan)
    return ClipRecord(
        key,
        source,
        None if values is None else Plan.from_json(values),
        json.loads(scores),
        {step: tuple(Rule(**rule) for rule in found) for step, found in json.loads(rules).items()},
        None if rejection is None else Rejection(**json.loads(rejection)),
        made,
        split,
        shard,
    )
