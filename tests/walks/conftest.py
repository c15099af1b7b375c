"""The wheel, and environments in which nothing but what a page installs is found."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from walking import Environment, build_wheel, make_environment

#: `real`: every package is downloaded and installed anew, some 6 GB and minutes for each environment
REAL = os.environ.get("FLOWACT_WALKS") == "real"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("release"))


@pytest.fixture
def fresh(wheel, tmp_path) -> Callable[..., Environment]:
    """`fresh(*requirements)`: a new environment after `pip install` of them."""

    def make(*requirements: str) -> Environment:
        environment = make_environment(tmp_path / "environment", wheel.parent, lend=not REAL)
        if requirements:
            done = environment.run(["pip", "install", *requirements], tmp_path, timeout=1800)
            assert done.returncode == 0, done.stdout
        return environment

    return make
