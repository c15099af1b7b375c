"""What tests of several commands start from."""

from __future__ import annotations

import pytest
from exportable import write_exportable


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with what `write_exportable` writes."""
    monkeypatch.chdir(tmp_path)
    write_exportable(tmp_path)
    return tmp_path
