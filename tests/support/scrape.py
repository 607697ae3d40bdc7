"""Reading what `/metrics` shows, as Prometheus would."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.metrics import WorkerMetrics


def samples(text: str) -> dict[str, float]:
    """Each sample, by its name and its labels as they are written."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def risen(metrics: WorkerMetrics) -> dict[str, float]:
    """The counters and counts that are not at zero."""
    return {
        name: value
        for name, value in samples(metrics.exposed()[0].decode()).items()
        if ("_total" in name or "_count" in name) and value
    }
