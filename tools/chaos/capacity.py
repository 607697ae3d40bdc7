"""The profile `capacity`: how many processes a number of objects in a number of hours needs.

`make capacity` computes it from `capacity.json` and starts nothing. With `--measure`, real workers
drain full queues of rising sizes: a series of throughput, CPU time, memory and the broker's disk,
whose figures replace those of uploads and of the broker in that file. Those of rotations and
downloads are of `make bench`. docs/operations/capacity.md explains the model:

An object waits for the storage a known number of times, one after the other; so many objects are
under way in a process at once; and the process has one core. With `n` at once, each under way for
`wait_ms` and `cpu_ms` of the core, the rate is that of a closed loop through one queue and one
delay (mean value analysis: Reiser and Lavenberg, 1980): near `n / (wait_ms + cpu_ms)` while the
core has time, near `1 / cpu_ms` where it has none. The product's own numbers (how many at once,
keys a page, leases) are read from its code.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
from rich.console import Console
from rich.table import Table

from keyturn.crypto import sealed_size, to_base64
from keyturn.messages import INLINE_MAX_BYTES
from keyturn.topology import EVENTS_MAX_BYTES
from keyturn_workers.keys.keyring.reader import BETWEEN_READS_S
from keyturn_workers.pipeline.sweep import paginator, reconciler
from keyturn_workers.process.settings import GatewaySettings, WorkerSettings
from tools.bench.figures import number
from tools.chaos.drain import PROJECT, Uploads, drain, enroll
from tools.chaos.drained import DrainError
from tools.harness import requests
from tools.harness.deployment import Deployment
from tools.servers import Servers
from tools.servers.packages import MissingPackagesError
from tools.servers.process import ServerError

if TYPE_CHECKING:
    from tools.servers import RabbitMQ

MEASURED: Final = Path(__file__).with_name("capacity.json")
_KIB, _MIB, GIB, _TIB = 2**10, 2**20, 2**30, 2**40
_BETWEEN_READS_MS: Final = 1000 * BETWEEN_READS_S
_LIST_KEYS: Final = 1000
# AWS's documented floor for a prefix of keys: requests a second.
_PREFIX_WRITES, _PREFIX_READS = 3500, 5500
# Bytes of an upload, and how many of them `--measure` drains.
_SERIES: Final = {
    4 * _KIB: 10_000, 64 * _KIB: 800, 256 * _KIB: 300, _MIB: 200, 16 * _MIB: 24
}  # fmt: skip


def _default(settings: type[WorkerSettings | GatewaySettings], name: str) -> int:
    value = settings.model_fields[name].default
    assert isinstance(value, int)
    return value


PAGE_KEYS: Final = _default(WorkerSettings, "sweep_page_keys")
LEASE_S: Final = _default(WorkerSettings, "lease_s")


@dataclass(frozen=True)
class Operation:
    """What one object costs.

    `cpu` has CPU milliseconds by size in bytes, rising. `own_ms` is for how long an object is under
    way without CPU time and without latency: the servers' own time, on loopback. `writes` and
    `reads` are requests to the storage an object, at a full queue.
    """

    cpu: dict[int, float]
    own_ms: float
    writes: float
    reads: float

    def cpu_ms(self, size_bytes: float) -> float:
        """CPU milliseconds at any size: straight between what was measured, and beyond it."""
        sizes = sorted(self.cpu)
        if len(sizes) == 1:
            return self.cpu[sizes[0]]
        above = next((n for n, at in enumerate(sizes[1:], 1) if size_bytes <= at), len(sizes) - 1)
        low, high = sizes[above - 1], sizes[above]
        slope = (self.cpu[high] - self.cpu[low]) / (high - low)
        return max(0.0, self.cpu[low] + slope * (size_bytes - low))


@dataclass(frozen=True)
class Broker:
    """What an upload costs the broker and its publisher.

    `message_bytes` is a request's size without its body, `event_bytes` an event's; `disk_factor` is
    bytes on disk for each byte of a request that waits, `memory_factor` the same in memory.
    """

    message_bytes: float
    event_bytes: float
    disk_factor: float
    memory_factor: float
    cpu_ms: float
    publisher_cpu_ms: float


@dataclass(frozen=True)
class Measured:
    """What the model starts from; `page_requests` are a page's besides those of its objects."""

    machine: str
    upload: Operation
    staged: Operation
    writing: Operation
    proving: Operation
    read: Operation
    broker: Broker
    page_requests: float


def parsed(text: str) -> Measured:
    """The content of `capacity.json`.

    Raises:
        TypeError, KeyError: it is of another form.
    """
    document: dict[str, Any] = json.loads(text)
    for name in ("upload", "staged", "writing", "proving", "read"):
        cpu = {int(size): cpu_ms for size, cpu_ms in document[name]["cpu"].items()}
        document[name] = Operation(**{**document[name], "cpu": cpu})
    return Measured(**{**document, "broker": Broker(**document["broker"])})


# The model.


@dataclass(frozen=True)
class Ask:
    """A requested plan: the objects, and where Keyturn runs.

    The storage is `latency_ms` away, processes use `share` of a core, and requests that wait may
    use `disk_bytes` of the broker's disk.
    """

    objects: float = 1e6
    hours: float = 24.0
    size_bytes: int = 4096
    latency_ms: float = 20.0
    share: float = 0.7
    disk_bytes: float = 50 * GIB

    @property
    def per_s(self) -> float:
        """Objects a second."""
        return self.objects / (3600 * self.hours)


@dataclass(frozen=True)
class Rate:
    """What one process does: objects a second, and what bounds it, `CPU` or `latency`."""

    per_s: float
    bound: str

    def processes(self, objects: float, seconds: float) -> int:
        """How many processes of this rate serve that many objects in that time."""
        return math.ceil(objects / (seconds * self.per_s))

    def __str__(self) -> str:
        return f"{number(self.per_s)} /s, bounded by {self.bound}"


def loop(at_once: int, wait_ms: float, cpu_ms: float) -> float:
    """Objects a second of one process, by mean value analysis."""
    queued = rate_per_ms = 0.0
    for under_way in range(1, at_once + 1):
        in_core_ms = cpu_ms * (1 + queued)
        rate_per_ms = under_way / (in_core_ms + wait_ms)
        queued = rate_per_ms * in_core_ms
    return 1000 * rate_per_ms


def rate(at_once: int, wait_ms: float, cpu_ms: float, share: float) -> Rate:
    """What one process does, if no more than `share` of its core is to be used."""
    free_per_s, most = loop(at_once, wait_ms, cpu_ms), share * 1000 / cpu_ms
    return Rate(min(free_per_s, most), "CPU" if free_per_s >= most else "latency")


def upload_rate(measured: Measured, ask: Ask) -> Rate:
    """One upload worker, with its defaults.

    An upload waits for its put; then for a keyring read that begins after it. Those reads are
    shared: on average half of one that is under way already (they begin at least
    `_BETWEEN_READS_MS` apart) is waited for, and then the next one. A staged upload holds one of
    the few streams: for staging's answer, for the storage's leave to send the body
    (`Expect: 100-continue`), and for the put's answer.
    """
    away_ms = ask.latency_ms
    if ask.size_bytes <= INLINE_MAX_BYTES:
        of, at_once = measured.upload, _default(WorkerSettings, "upload_concurrency")
        wait_ms = of.own_ms + 2 * away_ms + max(_BETWEEN_READS_MS, away_ms) / 2
    else:
        of, at_once = measured.staged, _default(WorkerSettings, "stream_concurrency")
        wait_ms = of.own_ms + 3 * away_ms
    return rate(at_once, wait_ms, of.cpu_ms(ask.size_bytes), ask.share)


def message_bytes(measured: Measured, size_bytes: int) -> float:
    """A request's size on the broker: an inline body is sealed, and base64."""
    inline = size_bytes <= INLINE_MAX_BYTES
    return measured.broker.message_bytes + (4 / 3 * sealed_size(size_bytes) if inline else 0)


def keyring_reads_per_s(workers: int, per_s: float, latency_ms: float) -> float:
    """Keyring reads of uploads to one project: each worker's begin one after the other."""
    return min(per_s, workers * 1000 / max(_BETWEEN_READS_MS, latency_ms))


def prefixes(writes_per_s: float, reads_per_s: float) -> int:
    """Prefixes of keys that the storage needs, by AWS's floor; with time it splits by itself."""
    return max(1, math.ceil(max(writes_per_s / _PREFIX_WRITES, reads_per_s / _PREFIX_READS)))


def uploads(measured: Measured, ask: Ask) -> dict[str, str]:
    """What uploads of one size to one project need, evenly over the time."""
    one = upload_rate(measured, ask)
    workers = one.processes(ask.objects, 3600 * ask.hours)
    of = measured.upload if ask.size_bytes <= INLINE_MAX_BYTES else measured.staged
    writes_per_s = ask.per_s * of.writes
    reads_per_s = ask.per_s * of.reads + keyring_reads_per_s(workers, ask.per_s, ask.latency_ms)
    request_bytes = message_bytes(measured, ask.size_bytes)
    waiting_bytes = measured.broker.disk_factor * request_bytes
    events_s = EVENTS_MAX_BYTES / (ask.per_s * measured.broker.event_bytes)
    ahead = f"{ask.disk_bytes / waiting_bytes:,.0f} requests: publish no more ahead"
    return {
        "objects a second": number(ask.per_s),
        "one worker": str(one),
        "upload workers": f"{workers:,}",
        "cores of publishers": number(ask.per_s * measured.broker.publisher_cpu_ms / 1000),
        "cores of the broker": number(ask.per_s * measured.broker.cpu_ms / 1000),
        "storage, writes and reads a second": f"{number(writes_per_s)} and {number(reads_per_s)}",
        "prefixes by AWS's floor": f"{prefixes(writes_per_s, reads_per_s):,}",
        "a request on the broker": size(request_bytes),
        "all at once would take": f"{size(ask.objects * waiting_bytes)} of the broker's disk",
        f"{size(ask.disk_bytes)} hold": ahead,
        "the stream of events holds": f"{span(events_s)} (14 days at most)",
    }


def rotation(measured: Measured, ask: Ask) -> dict[str, str]:
    """What a rotation of one project needs: every object is rewrapped once and proven once.

    No number of workers shortens two leases and the steps that plan pages. A sweep waits twice for
    an object that it rewraps (a ranged read, and the copy) and once for one that it proves; bodies
    are not read, so their size does not matter.
    """
    at_once, written, proven = (
        _default(WorkerSettings, "sweep_concurrency"),
        measured.writing,
        measured.proving,
    )
    writing = rate(at_once, written.own_ms + 2 * ask.latency_ms, written.cpu_ms(0), ask.share)
    proving = rate(at_once, proven.own_ms + ask.latency_ms, proven.cpu_ms(0), ask.share)
    pages, wanted_s = math.ceil(ask.objects / PAGE_KEYS), 3600 * ask.hours
    steps_s = reconciler.STEP_INTERVAL_S * math.ceil(pages / paginator.PAGES_PER_STEP)
    least_s = 2 * LEASE_S + steps_s
    work_s = ask.objects / writing.per_s + ask.objects / proving.per_s
    workers = f"{math.ceil(work_s / (wanted_s - 2 * LEASE_S)):,}" if least_s <= wanted_s else ""
    seconds = max(least_s, wanted_s)
    writes_per_s = ask.objects * written.writes / seconds
    reads_per_s = ask.objects * (written.reads + proven.reads) / seconds
    reads_per_s += 2 * pages * measured.page_requests / seconds
    listings = 2 * pages * math.ceil(PAGE_KEYS / _LIST_KEYS) + math.ceil(ask.objects / _LIST_KEYS)
    return {
        "one worker, writing": str(writing),
        "one worker, proving": str(proving),
        "sweep workers": workers or f"none: one project needs {span(least_s)} at least",
        "at least, with any number": span(least_s),
        f"pages of {PAGE_KEYS} keys": f"{pages:,}",
        "takes of pages, each a message and a record": f"{2 * pages:,} or more",
        "unproven at once": f"{min(pages, paginator.MAX_OPEN_PAGES):,} pages",
        "listings": f"{listings:,}",
        "storage, writes and reads a second": f"{number(writes_per_s)} and {number(reads_per_s)}",
        "prefixes by AWS's floor": f"{prefixes(writes_per_s, reads_per_s):,}",
    }


def downloads(measured: Measured, ask: Ask) -> dict[str, str]:
    """What downloads of whole objects through gateways need, evenly over the time."""
    of, at_once = measured.read, _default(GatewaySettings, "gateway_concurrency")
    one = rate(at_once, of.own_ms + ask.latency_ms, of.cpu_ms(ask.size_bytes), ask.share)
    reads_per_s = ask.per_s * of.reads
    return {
        "objects a second": number(ask.per_s),
        "one gateway": str(one),
        "gateways": f"{one.processes(ask.objects, 3600 * ask.hours):,}",
        "storage, reads a second": number(reads_per_s),
        "prefixes by AWS's floor": f"{prefixes(0, reads_per_s):,}",
        "network, each way": f"{number(8 * ask.per_s * ask.size_bytes / 1e9)} Gbit/s",
    }


def sections(measured: Measured, ask: Ask) -> dict[str, dict[str, str]]:
    """All three, by title."""
    what = f"{ask.objects:,.0f} objects in {number(ask.hours)} h"
    return {
        f"{what}: uploads of {size(ask.size_bytes)}": uploads(measured, ask),
        f"{what}: a rotation of one project": rotation(measured, ask),
        f"{what}: downloads of {size(ask.size_bytes)}": downloads(measured, ask),
    }


def size(size_bytes: float) -> str:
    """Bytes for a person."""
    for unit, name in ((_TIB, "TiB"), (GIB, "GiB"), (_MIB, "MiB"), (_KIB, "KiB")):
        if size_bytes >= unit:
            return f"{number(size_bytes / unit)} {name}"
    return f"{number(size_bytes)} bytes"


def span(seconds: float) -> str:
    """Seconds for a person."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{number(seconds / unit)} {name}"
    return f"{number(seconds)} s"


# The series.


class _Node:
    """What the broker holds and has used at one moment."""

    def __init__(self, rabbitmq: RabbitMQ) -> None:
        self.queue_bytes = rabbitmq.disk_bytes("quorum")
        self.stream_bytes = rabbitmq.disk_bytes("stream")
        below = psutil.Process(rabbitmq.process.reaper_pid).children(recursive=True)
        self.cpu_s = sum(sum(process.cpu_times()[:2]) for process in below)
        self.rss_bytes = sum(process.memory_info().rss for process in below)


async def measure(servers: Servers, before: Measured, table: Table) -> Measured:
    """Drain a full queue of each size by one worker with its defaults; adds rows to the table.

    Raises:
        DrainError: an upload was not stored and reported.
    """
    assert servers.rabbitmq is not None
    deployment = Deployment(servers.amqp_url, servers.s3, servers.new_bucket())
    await enroll(deployment)
    cpu, broker = dict[int, float](), before.broker
    for size_bytes, count in _SERIES.items():
        looks = [_Node(servers.rabbitmq)]
        series = Uploads(f"series-{size_bytes}", count, size_bytes)
        found = await drain(
            deployment,
            series,
            workers=1,
            full=lambda looks=looks: looks.append(_Node(servers.rabbitmq)),  # type: ignore[misc]
        )
        empty, full, after = *looks, _Node(servers.rabbitmq)
        cpu[size_bytes] = found.cpu_ms
        table.add_row(
            size(size_bytes),
            f"{count:,}",
            number(found.per_s),
            f"{found.cpu_ms:.3g} ms",
            f"{found.peak_mib:.0f} MiB",
            size(full.queue_bytes - empty.queue_bytes),
            size(max(0, full.rss_bytes - empty.rss_bytes)),
        )
        if size_bytes == min(_SERIES):
            broker = _broker(deployment, series, found.publisher_cpu_ms, empty, full, after)
    inline = {at: cpu_ms for at, cpu_ms in cpu.items() if at <= INLINE_MAX_BYTES}
    staged = {at: cpu_ms for at, cpu_ms in cpu.items() if at > INLINE_MAX_BYTES}
    fields = {name: getattr(before, name) for name in before.__dataclass_fields__}
    fields["upload"] = Operation(**{**asdict(before.upload), "cpu": inline})
    fields["staged"] = Operation(**{**asdict(before.staged), "cpu": staged})
    return Measured(**{**fields, "broker": broker})


def _broker(
    deployment: Deployment,
    series: Uploads,
    publisher_cpu_ms: float,
    empty: _Node,
    full: _Node,
    after: _Node,
) -> Broker:
    made = requests.upload(deployment, PROJECT, series.key(0), b"")
    body = requests.encode(made.document)
    headers = requests.headers(body, deployment.publisher_key)
    bare_bytes = len(body) + sum(len(text) for pair in headers.items() for text in pair)
    bare_bytes -= len(to_base64(made.sealed_body))
    waiting_bytes = series.count * (bare_bytes + 4 / 3 * sealed_size(series.size_bytes))
    return Broker(
        message_bytes=bare_bytes,
        event_bytes=(after.stream_bytes - full.stream_bytes) / series.count,
        disk_factor=(full.queue_bytes - empty.queue_bytes) / waiting_bytes,
        memory_factor=(full.rss_bytes - empty.rss_bytes) / waiting_bytes,
        cpu_ms=1000 * (after.cpu_s - empty.cpu_s) / series.count,
        publisher_cpu_ms=publisher_cpu_ms,
    )


# The command.


def _amount(text: str) -> float:
    amount = float(text)
    if not 0 < amount < float("inf"):
        raise ValueError("more than nothing")
    return amount


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise ValueError("0 to 1")
    return share


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.chaos capacity", description="Plan.")
    parser.add_argument("--objects", type=_amount, default=1e6, metavar="N", help="(1e6)")
    parser.add_argument("--hours", type=_amount, default=24.0, metavar="T", help="(24)")
    parser.add_argument("--bytes", type=int, default=4096, metavar="N", help="of one (4096)")
    parser.add_argument("--latency-ms", type=float, default=20.0, help="of the storage (20)")
    parser.add_argument("--share", type=_share, default=0.7, help="of a core to use, 0 to 1 (0.7)")
    parser.add_argument("--broker-gib", type=_amount, default=50.0, help="for what waits (50)")
    parser.add_argument(
        "--measure", action="store_true", help="run the series, and write its figures"
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Compute the plan, after the series if it is asked for; returns the exit status."""
    given = _arguments(argv)
    console = Console(width=None if sys.stdout.isatty() else 120)
    measured = parsed(MEASURED.read_text())
    if given.measure:
        table = Table(title="One upload worker, a full queue")
        for column in ("size", "uploads", "objects/s", "CPU", "peak", "queue on disk", "in memory"):
            table.add_column(column, justify="right")
        try:
            with Servers("ceph", environ={}) as servers:
                measured = asyncio.run(measure(servers, measured, table))
        except (DrainError, ServerError, MissingPackagesError) as exc:
            console.print(f"NOT MEASURED: {exc}", markup=False)
            return 1
        MEASURED.write_text(json.dumps(asdict(measured), indent=2) + "\n")
        console.print(table)
    ask = Ask(
        given.objects,
        given.hours,
        given.bytes,
        given.latency_ms,
        given.share,
        given.broker_gib * GIB,
    )
    for title, rows in sections(measured, ask).items():
        shown = Table(title=title, show_header=False, title_justify="left")
        for name, value in rows.items():
            shown.add_row(name, value)
        console.print(shown)
    return 0
