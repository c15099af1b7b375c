from __future__ import annotations

from pathlib import Path

import pytest
from ramp_dataset import make_dataset


@pytest.fixture(scope="session")
def ramp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven training clips in three shards, two validation clips; do not change it."""
    return make_dataset(tmp_path_factory.mktemp("ramp") / "shards", {"train": [90, 101, 97, 120, 90, 99, 130], "val": [95, 110]})
