"""The formulas (pure): what one process does a second, and what a number of objects needs.

An object waits for the storage a known number of times, one after the other; so many
objects are under way in a process at once; and the process has one core. With `n` at once,
each under way for `wait_ms` and `cpu_ms` of the core, the rate is that of a closed loop
through one queue and one delay (mean value analysis: Reiser and Lavenberg, 1980): near
`n / (wait_ms + cpu_ms)` while the core has time, near `1 / cpu_ms` where it has none.

The product's own numbers (how many at once, keys a page, leases) are read from its code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyturn.crypto import sealed_size
from keyturn.messages import INLINE_MAX_BYTES
from keyturn.topology import EVENTS_MAX_BYTES
from keyturn_workers.keyring.reader import BETWEEN_READS_S
from keyturn_workers.settings import GatewaySettings, WorkerSettings
from keyturn_workers.sweep import planner, reconciler

if TYPE_CHECKING:
    from tools.capacity.measured import Measured, Operation


def _default(settings: type[WorkerSettings | GatewaySettings], name: str) -> int:
    value = settings.model_fields[name].default
    assert isinstance(value, int)
    return value


UPLOADS_AT_ONCE = _default(WorkerSettings, "upload_concurrency")
STREAMS_AT_ONCE = _default(WorkerSettings, "stream_concurrency")
SWEEP_AT_ONCE = _default(WorkerSettings, "sweep_concurrency")
GATEWAY_AT_ONCE = _default(GatewaySettings, "gateway_concurrency")
PAGE_KEYS = _default(WorkerSettings, "sweep_page_keys")
LEASE_S = _default(WorkerSettings, "lease_s")
LIST_KEYS = 1000
BETWEEN_READS_MS = 1000 * BETWEEN_READS_S
# One project's sweep: how many pages may be open, how many a step plans, how often one comes.
LIVE_PAGES = planner.MAX_OPEN_PAGES
PAGES_A_STEP = planner.PAGES_PER_STEP
STEP_S = reconciler.STEP_INTERVAL_S

# AWS's documented floor, a prefix of keys: requests a second.
PREFIX_WRITES = 3500
PREFIX_READS = 5500


@dataclass(frozen=True)
class Rate:
    """What one process does: objects a second, and what bounds it, `CPU` or `latency`."""

    per_s: float
    bound: str


def loop(at_once: int, wait_ms: float, cpu_ms: float) -> float:
    """Objects a second of one process, by mean value analysis."""
    queued = rate_per_ms = 0.0
    for number in range(1, at_once + 1):
        in_core_ms = cpu_ms * (1 + queued)
        rate_per_ms = number / (in_core_ms + wait_ms)
        queued = rate_per_ms * in_core_ms
    return 1000 * rate_per_ms


def upload_wait_ms(own_ms: float, latency_ms: float) -> float:
    """For how long an upload waits, besides its CPU time.

    The put; then a keyring read that begins after it. Those reads are shared: on average half
    of one that is under way already (they begin at least `BETWEEN_READS_MS` apart) is waited
    for, and then the next one.
    """
    return own_ms + 2 * latency_ms + max(BETWEEN_READS_MS, latency_ms) / 2


def staged_wait_ms(own_ms: float, latency_ms: float) -> float:
    """For how long a staged upload holds one of the few streams.

    Staging's answer; the storage's leave to send the body (`Expect: 100-continue`); the put's.
    """
    return own_ms + 3 * latency_ms


def writing_wait_ms(own_ms: float, latency_ms: float) -> float:
    """For how long a sweep waits for an object that it rewraps: the ranged read, and the copy."""
    return own_ms + 2 * latency_ms


def proving_wait_ms(own_ms: float, latency_ms: float) -> float:
    """For how long a sweep waits for an object that it proves, or a gateway for a small one."""
    return own_ms + latency_ms


def bounded(rate_per_s: float, cpu_ms: float, share: float) -> Rate:
    """The rate, if no more than `share` of the core is to be used."""
    most = share * 1000 / cpu_ms
    return Rate(min(rate_per_s, most), "CPU" if rate_per_s >= most else "latency")


@dataclass(frozen=True)
class Setting:
    """Where it runs: milliseconds that the storage is away, and the share of a core to use."""

    latency_ms: float = 20.0
    share: float = 0.7


def upload_rate(measured: Measured, size_bytes: int, setting: Setting) -> Rate:
    """One upload worker, with its defaults."""
    if size_bytes <= INLINE_MAX_BYTES:
        cpu_ms, at_once = measured.upload.cpu_ms(size_bytes), UPLOADS_AT_ONCE
        wait_ms = upload_wait_ms(measured.upload.own_ms, setting.latency_ms)
    else:
        cpu_ms, at_once = measured.staged.cpu_ms(size_bytes), STREAMS_AT_ONCE
        wait_ms = staged_wait_ms(measured.staged.own_ms, setting.latency_ms)
    return bounded(loop(at_once, wait_ms, cpu_ms), cpu_ms, setting.share)


def sweep_rate(operation: Operation, wait_ms: float, setting: Setting) -> Rate:
    """One page worker in one pass, with its defaults; bodies are not read, so size is nothing."""
    cpu_ms = operation.cpu_ms(0)
    return bounded(loop(SWEEP_AT_ONCE, wait_ms, cpu_ms), cpu_ms, setting.share)


def read_rate(measured: Measured, size_bytes: int, setting: Setting) -> Rate:
    """One gateway with as many requests at once as it serves."""
    cpu_ms = measured.read.cpu_ms(size_bytes)
    wait_ms = proving_wait_ms(measured.read.own_ms, setting.latency_ms)
    return bounded(loop(GATEWAY_AT_ONCE, wait_ms, cpu_ms), cpu_ms, setting.share)


def processes(objects: float, seconds: float, per_s: float) -> int:
    """How many processes of this rate serve that many objects in that time."""
    return math.ceil(objects / (seconds * per_s))


@dataclass(frozen=True)
class Storage:
    """Requests a second that the storage must take, and prefixes that it needs for them."""

    writes_per_s: float
    reads_per_s: float
    prefixes: int


def storage(writes_per_s: float, reads_per_s: float) -> Storage:
    """By AWS's floor a prefix; the storage splits what lies under one by itself, with time."""
    busiest = max(writes_per_s / PREFIX_WRITES, reads_per_s / PREFIX_READS)
    return Storage(writes_per_s, reads_per_s, max(1, math.ceil(busiest)))


def keyring_reads_per_s(workers: int, per_s: float, latency_ms: float) -> float:
    """Keyring reads of uploads to one project: each worker's begin one after the other."""
    return min(per_s, workers * 1000 / max(BETWEEN_READS_MS, latency_ms))


@dataclass(frozen=True)
class Uploads:
    """What uploads need; `ahead` is how many requests the broker's disk holds."""

    per_s: float
    rate: Rate
    workers: int
    publisher_cores: float
    broker_cores: float
    storage: Storage
    message_bytes: float
    ahead: float
    backlog_bytes: float
    events_hours: float


def message_bytes(measured: Measured, size_bytes: int) -> float:
    """A request's size on the broker: an inline body is sealed, and base64."""
    inline = size_bytes <= INLINE_MAX_BYTES
    return measured.broker.message_bytes + (4 / 3 * sealed_size(size_bytes) if inline else 0)


def uploads(
    measured: Measured,
    objects: float,
    hours: float,
    size_bytes: int,
    setting: Setting,
    *,
    disk_bytes: float,
) -> Uploads:
    """A number of uploads of one size to one project, evenly over the time."""
    per_s = objects / (3600 * hours)
    rate = upload_rate(measured, size_bytes, setting)
    workers = processes(objects, 3600 * hours, rate.per_s)
    of = measured.upload if size_bytes <= INLINE_MAX_BYTES else measured.staged
    keyrings = keyring_reads_per_s(workers, per_s, setting.latency_ms)
    one_bytes = message_bytes(measured, size_bytes)
    waiting_bytes = measured.broker.disk_factor * one_bytes
    return Uploads(
        per_s=per_s,
        rate=rate,
        workers=workers,
        publisher_cores=per_s * measured.broker.publisher_cpu_ms / 1000,
        broker_cores=per_s * measured.broker.cpu_ms / 1000,
        storage=storage(per_s * of.writes, per_s * of.reads + keyrings),
        message_bytes=one_bytes,
        ahead=disk_bytes / waiting_bytes,
        backlog_bytes=objects * waiting_bytes,
        events_hours=EVENTS_MAX_BYTES / (per_s * measured.broker.event_bytes) / 3600,
    )


@dataclass(frozen=True)
class Rotation:
    """What a rotation of one project needs.

    `least_s` is what no number of workers can shorten: the two leases before a look proves
    anything, and the steps that plan the pages.
    """

    writing: Rate
    proving: Rate
    workers: int
    least_s: float
    pages: int
    takes: int
    listings: int
    storage: Storage


def rotation(measured: Measured, objects: float, hours: float, setting: Setting) -> Rotation:
    """Every object rewrapped once and proven once.

    `workers` is 0 where the time is too short for any number of them.
    """
    latency_ms = setting.latency_ms
    written, proven = measured.writing, measured.proving
    writing = sweep_rate(written, writing_wait_ms(written.own_ms, latency_ms), setting)
    proving = sweep_rate(proven, proving_wait_ms(proven.own_ms, latency_ms), setting)
    pages = math.ceil(objects / PAGE_KEYS)
    takes = 2 * pages
    least_s = 2 * LEASE_S + STEP_S * math.ceil(pages / PAGES_A_STEP)
    left_s = 3600 * hours - 2 * LEASE_S
    work_s = objects / writing.per_s + objects / proving.per_s
    seconds = max(least_s, 3600 * hours)
    page_requests = takes * measured.page_requests / seconds
    return Rotation(
        writing=writing,
        proving=proving,
        workers=math.ceil(work_s / left_s) if least_s <= 3600 * hours else 0,
        least_s=least_s,
        pages=pages,
        takes=takes,
        listings=takes * math.ceil(PAGE_KEYS / LIST_KEYS) + math.ceil(objects / LIST_KEYS),
        storage=storage(
            objects * written.writes / seconds,
            objects * (written.reads + proven.reads) / seconds + page_requests,
        ),
    )


@dataclass(frozen=True)
class Reads:
    """What downloads through gateways need."""

    per_s: float
    rate: Rate
    gateways: int
    storage: Storage
    bits_per_s: float


def reads(
    measured: Measured, objects: float, hours: float, size_bytes: int, setting: Setting
) -> Reads:
    """A number of complete objects of one size, evenly over the time."""
    per_s = objects / (3600 * hours)
    rate = read_rate(measured, size_bytes, setting)
    return Reads(
        per_s=per_s,
        rate=rate,
        gateways=processes(objects, 3600 * hours, rate.per_s),
        storage=storage(0, per_s * measured.read.reads),
        bits_per_s=8 * per_s * size_bytes,
    )
