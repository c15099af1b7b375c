"""Optional libraries: a missing one is told with its cure, and a package's folder is found without importing it."""

from __future__ import annotations

import sys

import pytest

from data_tools.steps.libraries import folder_of, need
from flowact.errors import UserError


def test_a_module_that_is_there_is_imported():
    assert need("json.decoder", "Step").JSONDecoder


def test_a_missing_module_is_told_with_who_needs_it_and_how_to_get_it():
    with pytest.raises(UserError, match=r"Voice needs no_such_library, .*; pip install 'flowact\[data\]'"):
        need("no_such_library.part", "Voice")
    with pytest.raises(UserError, match="pip install it"):
        need("no_such_library", "Voice", "pip install it")


def test_a_folder_is_found_without_an_import(install, tmp_path):
    install("weights-only", {}, {"weights_only/__init__.py": "raise RuntimeError('imported')"})
    assert folder_of("weights_only", "Step", "cure").name == "weights_only"
    assert "weights_only" not in sys.modules
    with pytest.raises(UserError, match="Step needs the package no_such_library, which is not installed; cure"):
        folder_of("no_such_library", "Step", "cure")
