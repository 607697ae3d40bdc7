"""One object rotated, by its size: new wraps, against its bytes through a client (SPEC 8.2).

Ours is one take of a page with that one object, by the product's own `PageWorker`: keyring,
listing, ranged read, copy, keyring again. Theirs is download, opening, sealing and upload
of the same object, by a separate process. A bare HEAD and self-copy of an object of that
size says what the server itself needs for it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyturn.identifiers import object_s3_key
from keyturn.metadata import Wraps, parse
from keyturn_workers.objects.apply import COPY_LIMIT_BYTES
from keyturn_workers.objects.wraps import open_admin_wrap
from keyturn_workers.storage import Headers
from keyturn_workers.sweep.page import PageWorker
from keyturn_workers.sweep.record import OpenPage
from tools.bench.figures import Row, Spread, lower_is_better
from tools.bench.large_upload import check_memory
from tools.bench.processes import BenchError, bare, printed
from tools.bench.rotation.world import open_world

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tools.bench.rotation.world import World
    from tools.harness.deployment import Deployment

PROJECT = "sizes"
_KIB, _MIB = 2**10, 2**20
SIZES = (4 * _KIB, _MIB, 16 * _MIB, 128 * _MIB, 512 * _MIB)
QUICK_SIZES = (4 * _KIB, _MIB)
_CONCURRENCY = 64
_FLAT_AIM = 2.0
# The server keeps all in memory, and what is replaced or deleted for a while as well: the
# object, and of each round what was uploaded; two bytes of memory and more for one of them.
_MEMORY_A_BYTE = 3


@dataclass
class Rounds:
    """Seconds of the rounds for one size."""

    ours: list[float] = field(default_factory=list)
    through: list[float] = field(default_factory=list)
    copied: list[float] = field(default_factory=list)


def name_of(size_bytes: int) -> str:
    """A size for a person."""
    if size_bytes < _MIB:
        return f"{size_bytes // _KIB} KiB"
    return f"{size_bytes // _MIB} MiB"


async def measure(deployment: Deployment, *, sizes: Sequence[int], rounds: int) -> list[Row]:
    """The rows for one server.

    Raises:
        BenchError: something was not done, or the server has not the memory for it.
    """
    check_memory(sum(sizes) * (1 + rounds), memory_a_byte=_MEMORY_A_BYTE)
    found = {size_bytes: Rounds() for size_bytes in sizes}
    async with open_world(deployment) as world:
        await world.enroll(PROJECT)
        await world.load_large(PROJECT, "warm", 4 * _KIB)
        for size_bytes in sizes:
            await world.load_large(PROJECT, str(size_bytes), size_bytes)
            await world.storage.put(f"bare/{size_bytes}/0", b"warm", Headers({}))
        for _ in range(rounds):
            await world.turn(PROJECT)
            await _rotated(world, "warm")
            for size_bytes, seconds in found.items():
                key = str(size_bytes)
                seconds.ours.append(await _rotated(world, key))
                seconds.through.append(await _through_a_client(world, key))
                # Of two objects the first, a small one, makes the connection.
                report = await bare(deployment.s3_env(), "copies", f"bare/{key}", warm=1, count=1)
                seconds.copied.append(report["wall_s"])
    return rows(deployment.s3.kind, found)


async def _rotated(world: World, key: str) -> float:
    """Seconds of one page attempt that finds the object under the key before."""
    worker = PageWorker(
        world.storage,
        world.keyrings,
        world.keys,
        world.store,
        concurrency=_CONCURRENCY,
        copy_limit_bytes=COPY_LIMIT_BYTES,
    )
    open_page = OpenPage(page=0, after=key[:-1], last=key)
    record, of = await world.record_with(PROJECT, (open_page,))
    began = time.perf_counter()
    result = await worker.process(record, of, open_page)
    took_s = time.perf_counter() - began
    if (result.changed, result.counts.objects, result.counts.rewrapped) != (1, 1, 1):
        raise BenchError(f"the object was not rotated: {result.counts}")
    return took_s


async def _through_a_client(world: World, key: str) -> float:
    """Seconds for the same object downloaded, opened, sealed and uploaded."""
    s3_key = object_s3_key(PROJECT, key)
    wraps = parse((await world.storage.head(s3_key)).metadata)
    observed = await world.keyrings.read_fresh(PROJECT)
    opened = (
        open_admin_wrap(wraps, key, observed.desired, await world.keys.admin_keks(PROJECT), ())
        if isinstance(wraps, Wraps)
        else None
    )
    if opened is None:
        raise BenchError("the object has no wrap that opens")
    report = await printed(
        world.deployment.s3_env(),
        *("tools.bench.rotation.reencrypt", s3_key, f"bare/{key}/1"),
        stdin_text=opened.dek.hex() + "\n",
    )
    return float(report["wall_s"])


def rows(server: str, found: Mapping[int, Rounds]) -> list[Row]:
    """Seconds by size, and how flat they are."""
    made = [
        Row(
            f"rotating an object of {name_of(size_bytes)}",
            server,
            "s",
            Spread(tuple(seconds.ours)),
            Spread(tuple(theirs)),
            against,
            lower_is_better(seconds.ours, theirs),
        )
        for size_bytes, seconds in found.items()
        for against, theirs in (
            ("download, open, seal, upload", seconds.through),
            ("bare aioboto3 HEAD + self-copy", seconds.copied),
        )
    ]
    first, last = min(found), max(found)
    return [
        *made,
        Row(
            f"rotating {name_of(last)} against {name_of(first)}",
            server,
            "times as long",
            Spread(tuple(_each(found[last].ours, found[first].ours))),
            Spread(tuple(_each(found[last].copied, found[first].copied))),
            "bare aioboto3 HEAD + self-copy",
            at_most=_FLAT_AIM,
        ),
    ]


def _each(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]
