"""`metrics.json`: one file for a whole run, to which each evaluation adds its part.

{"truth": M, "stages": {name: M}, "stream": {...}, "seconds": {step: wall time}}, M = `Measurement.to_json()`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowact.errors import UserError

NESTED = ("stages", "stream", "seconds")


def read_metrics(path: str | Path) -> dict[str, Any]:
    """Content of a metrics file; empty if there is none.

    Raises:
        UserError: the file is not a metrics file.
    """
    path = Path(path)
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not a readable JSON file ({error}); move it away, or give another --out") from error
    if not isinstance(found, dict) or not all(isinstance(found.get(name, {}), dict) for name in ("truth", *NESTED)):
        raise UserError(f"{path} is not a metrics file: expected {{truth, stages, stream, seconds}}; give another --out")
    return found


def merge_metrics(path: str | Path, update: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a metrics file, or make it; everything that `update` does not name stays. The file is replaced whole or not at all.

    Args:
        path: the file; its folder is created.
        update: any of truth, stages, stream, seconds. In the last three, entries are added or replaced one by one.

    Returns:
        What the file now holds.

    Raises:
        UserError: there is a file that is not a metrics file; it is left as it is.
    """
    path = Path(path)
    merged = read_metrics(path)
    for name, value in update.items():
        merged[name] = {**merged.get(name, {}), **value} if name in NESTED else value
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(merged, indent=1, allow_nan=False)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=path.name, suffix=".part", delete=False) as file:
        file.write(text + "\n")
    try:
        os.chmod(file.name, 0o644)  # a temporary file is private; a result is for all who may read the folder
        os.replace(file.name, path)
    except OSError:
        os.unlink(file.name)
        raise
    return merged
