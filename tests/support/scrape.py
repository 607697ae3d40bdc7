"""Reading what `/metrics` shows, as Prometheus would."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyturn_workers.process.metrics import WorkerMetrics

_NOTHING: Mapping[str, float] = MappingProxyType({})


def samples(text: str) -> dict[str, float]:
    """Each sample, by its name and its labels as they are written."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def rise(now: Mapping[str, float], since: Mapping[str, float]) -> dict[str, float]:
    """By how much each of Keyturn's counters and counts is higher than it was."""
    return {
        name: value - since.get(name, 0)
        for name, value in now.items()
        if name.startswith("keyturn_")
        and ("_total" in name or "_count" in name)
        and value != since.get(name, 0)
    }


def shown(metrics: WorkerMetrics) -> dict[str, float]:
    """What a scrape shows."""
    return samples(metrics.registry.render()[0].decode())


def risen(metrics: WorkerMetrics, since: Mapping[str, float] = _NOTHING) -> dict[str, float]:
    """What was counted, in all or since an earlier scrape."""
    return rise(shown(metrics), since)
