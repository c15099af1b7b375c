"""Figures for people: three digits and a unit."""

from __future__ import annotations


def flops_text(flops: float) -> str:
    """Floating-point operations, such as "111 TFLOP"."""
    return _scaled(flops, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def bytes_text(num_bytes: float) -> str:
    """Memory, such as "12.7 GiB"."""
    return _scaled(num_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def seconds_text(seconds: float) -> str:
    """Time, such as "946 ms" or "7.57 s"."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def rate_text(value: float) -> str:
    """A rate without unit."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _scaled(value: float, step: int, units: tuple[str, ...]) -> str:
    power = 0
    while value >= 999.5 and power + 1 < len(units):
        value, power = value / step, power + 1
    return f"{value:.0f} {units[power]}" if value >= 99.95 or not value else f"{value:.3g} {units[power]}"
