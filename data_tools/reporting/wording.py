"""Numbers in words."""

from __future__ import annotations

from typing import Any

import numpy as np


def is_number(value: Any) -> bool:
    """A finite number; truth values are words."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def plain_text(value: Any) -> str:
    """A score's value or a bound in words."""
    if value is None:
        return "not measured"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number_text(value, 4) if is_number(value) else str(value)


def number_text(value: float, digits: int = 3) -> str:
    """A number as a person writes it: no exponent, no tail of zeros; a thin space between thousands.

    >>> number_text(0.30000004), number_text(12_000), number_text(-0.0), number_text(99.97)
    ('0.3', '12\\u202f000', '0', '100')
    """
    rounded = float(f"{value:.{digits}g}") if abs(value) < 10**digits else round(value)
    text = f"{rounded:,.10f}".rstrip("0").rstrip(".").replace(",", "\u202f")
    return "0" if text == "-0" else text


def nice_step(step: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    if step <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(step))
    return float(next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9)))
