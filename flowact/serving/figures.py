"""Figures of a server in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowact.serving.manager import SessionManager

COUNTERS = {
    "sessions": "sessions that were opened",
    "refused_sessions": "sessions that were refused",
    "failed_sessions": "sessions that failed",
    "chunks": "chunks that left a stream",
    "frames": "frames that left a stream",
    "held_chunks": "still pictures in the place of a late chunk",
    "deadline_misses": "chunks that were late",
    "refused_events": "events of clients that were refused",
    "sent_bytes": "bytes of picture and sound that were sent over WebSockets",
}


def prometheus_text(manager: SessionManager) -> str:
    """All figures, one sample per line."""
    lines: list[str] = []

    def add(name: str, kind: str, meaning: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> None:
        rows = list(samples)
        if rows:
            lines.extend((f"# HELP flowact_{name} {meaning}", f"# TYPE flowact_{name} {kind}"))
            lines.extend(f"flowact_{name}{_labels(labels)} {value:.10g}" for labels, value in rows)

    running = manager.running
    add("running_sessions", "gauge", "sessions that move", [({}, len(running))])
    add("waiting_sessions", "gauge", "sessions in the queue", [({}, manager.num_waiting)])
    add("max_sessions", "gauge", "sessions that may move at the same time", [({}, manager.limits.max_sessions)])
    add("viewers", "gauge", "connections that watch", [({}, sum(session.num_clients for session in running))])
    for name, meaning in COUNTERS.items():
        add(f"{name}_total", "counter", meaning, [({}, manager.totals[name])])
    figures = [(session.id, session.metrics()) for session in running]
    for name, key, meaning in (
        ("ttff_seconds", "ttff_seconds", "time to the first frame"),
        ("frames_per_second", "frames_per_second", "frames that could be made in a second"),
        ("queued_seconds", "queued_seconds", "speech that waits to be spoken"),
    ):
        add(name, "gauge", meaning, [({"session": who}, known[key]) for who, known in figures if known.get(key) is not None])
    quantiles = {"0.5": "p50", "0.95": "p95", "0.99": "p99"}
    samples = [
        ({"session": who, "quantile": quantile}, known["chunk_ms"][key] / 1000)
        for who, known in figures
        for quantile, key in quantiles.items()
        if known.get("chunk_ms", {}).get(key) is not None
    ]
    add("chunk_seconds", "gauge", "time spent on a chunk, by quantile", samples)
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}" if labels else ""
