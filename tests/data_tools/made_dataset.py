"""Small datasets with everything that records hold, their columns, and a child process that is killed at a chosen call."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from clip_folder import write_clip

from data_tools.cli import main

KILLED = 9


def write_dataset_folder(root: Path, clips: int = 6, *, val: str = "p1", start: int = 0, prefix: str = "c", truth: bool = False) -> Path:
    """A packed dataset with audio and text columns: clip cN shows person p(N // 2), two clips a shard."""
    for number in range(start, start + clips):
        path = write_clip(root / "clips", f"{prefix}{number}", identity=f"p{number // 2}", truth=truth)
        describe(path.with_suffix(".json"), number)
    arguments = ["--shard-clips", "2", "--val-identities", val, "--name", root.name]
    assert main(["pack", str(root / "clips"), "--out", str(root / "shards"), *arguments]) == 0
    for column in ("audio", "text"):
        assert main(["encode", column, str(root / "shards")]) == 0
    return root / "shards"


def describe(path: Path, number: int) -> None:
    """Give a clip's metadata what `build` writes."""
    metadata = json.loads(path.read_bytes())
    metadata["source"] |= {"uri": f"takes/{number}.mp4", "sha256": f"{number:064x}", "start_s": 0.0, "end_s": 0.84}
    metadata["sync"] = {"offset_frames": number % 3 - 1, "confidence": 0.5 + number / 100, "method": "mouth"}
    metadata["speech"] = [{"start_s": 0.0, "end_s": 0.4, "who": "self"}]
    metadata["states"] = [{"first": 0, "end": 10, "state": "speaking"}, {"first": 10, "end": 21, "state": "idle"}]
    metadata["scores"] = {"Sync": {"confidence": 0.5 + number / 100}, "Scenes": {"cuts": number, "mode": "content", "flash": False}}
    path.write_text(json.dumps(metadata))


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a folder by its name in it."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def run_killed(arguments: list[str], call: int) -> bool:
    """Run a command in a child that dies, without cleaning up, right before the `call`-th change of the file system.

    Returns:
        whether it was killed; False when it was done before.
    """
    child = os.fork()
    if child == 0:
        count = 0

        def deadly(function: Callable[..., object]) -> Callable[..., object]:
            def call_or_die(*positional: object, **named: object) -> object:
                nonlocal count
                count += 1
                if count == call:
                    os._exit(KILLED)
                return function(*positional, **named)

            return call_or_die

        for name in ("replace", "unlink", "rmdir", "link", "mkdir"):
            setattr(os, name, deadly(getattr(os, name)))
        code = 1
        try:
            code = main(arguments)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED
