"""The model's answers for a number of objects, as rows of text (pure)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tools.bench.figures import number
from tools.capacity import model
from tools.capacity.model import LIVE_PAGES, PAGE_KEYS, Setting

if TYPE_CHECKING:
    from tools.capacity.measured import Measured

GIB = 2**30
_TIB = 2**40
_HOUR_S = 3600


@dataclass(frozen=True)
class CapacityRequest:
    """A requested plan; `disk_bytes` is what the broker may use for queued requests."""

    objects: float
    hours: float
    size_bytes: int = 4096
    setting: Setting = field(default_factory=Setting)
    disk_bytes: float = 50 * GIB


def size(size_bytes: float) -> str:
    """Bytes for a person."""
    for unit, name in ((_TIB, "TiB"), (GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size_bytes >= unit:
            return f"{number(size_bytes / unit)} {name}"
    return f"{number(size_bytes)} bytes"


def count(objects: float) -> str:
    """A large number for a person."""
    return f"{objects:,.0f}"


def span(seconds: float) -> str:
    """Seconds for a person."""
    for unit, name in ((_HOUR_S, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{number(seconds / unit)} {name}"
    return f"{number(seconds)} s"


def uploads(measured: Measured, ask: CapacityRequest) -> list[tuple[str, str]]:
    """What uploads need, by name."""
    need = model.uploads(
        measured,
        ask.objects,
        ask.hours,
        ask.size_bytes,
        ask.setting,
        disk_bytes=ask.disk_bytes,
    )
    return [
        ("objects a second", number(need.per_s)),
        ("one worker", f"{number(need.rate.per_s)} /s, bounded by {need.rate.bound}"),
        ("upload workers", count(need.workers)),
        ("cores of publishers", number(need.publisher_cores)),
        ("cores of the broker", number(need.broker_cores)),
        ("storage, writes and reads a second", _requests(need.storage)),
        ("prefixes by AWS's floor", count(need.storage.prefixes)),
        ("a request on the broker", size(need.message_bytes)),
        ("all at once would take", f"{size(need.backlog_bytes)} of the broker's disk"),
        (f"{size(ask.disk_bytes)} hold", f"{count(need.ahead)} requests: publish no more ahead"),
        ("the stream of events holds", f"{span(_HOUR_S * need.events_hours)} (14 days at most)"),
    ]


def rotation(measured: Measured, ask: CapacityRequest) -> list[tuple[str, str]]:
    """What a rotation needs, by name."""
    need = model.rotation(measured, ask.objects, ask.hours, ask.setting)
    workers = (
        count(need.workers)
        if need.workers
        else f"none: one project needs {span(need.least_s)} at least"
    )
    return [
        ("one worker, writing", f"{number(need.writing.per_s)} /s, by {need.writing.bound}"),
        ("one worker, proving", f"{number(need.proving.per_s)} /s, by {need.proving.bound}"),
        ("sweep workers", workers),
        ("at least, with any number", span(need.least_s)),
        (f"pages of {PAGE_KEYS} keys", count(need.pages)),
        ("takes of pages, each a message and a record", f"{count(need.takes)} or more"),
        ("unproven at once", f"{count(min(need.pages, LIVE_PAGES))} pages"),
        ("listings", count(need.listings)),
        ("storage, writes and reads a second", _requests(need.storage)),
        ("prefixes by AWS's floor", count(need.storage.prefixes)),
    ]


def reads(measured: Measured, ask: CapacityRequest) -> list[tuple[str, str]]:
    """What downloads need, by name."""
    need = model.reads(measured, ask.objects, ask.hours, ask.size_bytes, ask.setting)
    return [
        ("objects a second", number(need.per_s)),
        ("one gateway", f"{number(need.rate.per_s)} /s, bounded by {need.rate.bound}"),
        ("gateways", count(need.gateways)),
        ("storage, reads a second", number(need.storage.reads_per_s)),
        ("prefixes by AWS's floor", count(need.storage.prefixes)),
        ("network, each way", f"{number(need.bits_per_s / 1e9)} Gbit/s"),
    ]


def _requests(storage: model.Storage) -> str:
    return f"{number(storage.writes_per_s)} and {number(storage.reads_per_s)}"


def sections(measured: Measured, ask: CapacityRequest) -> dict[str, list[tuple[str, str]]]:
    """All three, by title."""
    what = f"{count(ask.objects)} objects in {number(ask.hours)} h"
    return {
        f"{what}: uploads of {size(ask.size_bytes)}": uploads(measured, ask),
        f"{what}: a rotation of one project": rotation(measured, ask),
        f"{what}: downloads of {size(ask.size_bytes)}": reads(measured, ask),
    }
