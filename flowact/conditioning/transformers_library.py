"""The one place of the conditioning room that imports `transformers`."""

from __future__ import annotations

from typing import Any

from flowact.errors import UserError


def transformers_for(component: str) -> Any:
    """The library, for the component of this name.

    Raises:
        UserError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"{component} needs transformers; install it with: pip install 'flowact[hf]'") from error
    return transformers
