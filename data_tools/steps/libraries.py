"""Libraries of the extra `data`, imported where they are used; a missing one is told with its cure."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from flowact.errors import UserError

DATA_EXTRA = "pip install 'flowact[data]'"


def need(module: str, user: str, cure: str = DATA_EXTRA) -> Any:
    """The module, imported.

    Args:
        module: dotted name.
        user: the step or detector that needs it, for the message.
        cure: the command that installs it.

    Raises:
        UserError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{user} needs {module.partition('.')[0]}, which does not import ({error}); {cure}") from error


def folder_of(package: str, user: str, cure: str) -> Path:
    """Where a package lies, without importing it: of some only the files are wanted, and importing would load what they declare.

    Raises:
        UserError: it is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"{user} needs the package {package}, which is not installed; {cure}")
    return Path(found.submodule_search_locations[0])
