"""A whole rotation of many small objects, with the real processes (SPEC 8.1, 8.4 to 8.6).

One control worker and one sweep worker, which plans and does all pages; a signed request
on the broker begins it, the event of its end stops the clock. The rate at its start, in
its middle and at its end comes from the sweep worker's log, the peaks of memory from the
kernel. Afterwards some objects are opened by both keys by an independent reader, and the
old key must open none of them.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from keyturn.crypto import SealError, new_api_key
from tools.bench.figures import Row, Spread
from tools.bench.processes import BenchError, worker
from tools.bench.rotation.world import key_of, open_world
from tools.harness import requests, stored_objects
from tools.harness.wire import open_wire

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tools.bench.rotation.world import World
    from tools.harness.deployment import Deployment
    from tools.harness.wire import Wire

PROJECT = "many"
_BODY_BYTES = 1024
_OPENED = 50
_MIB = 2**20
_EVEN_AIM = 0.8
_FLAT_AIM = 1.2
_START_S = 300
_SLOWEST_PER_S = 40


@dataclass(frozen=True)
class Found:
    """What one rotation took.

    `rates` are objects a second in the first, middle and last third of the writing pass.
    Memory is in MiB: what the sweep worker held before, and its peak; the control worker's.
    """

    wall_s: float
    written_s: float
    rates: tuple[float, float, float]
    idle_mib: float
    peak_mib: float
    control_mib: float


async def measure(deployment: Deployment, scratch: Path, *, count: int, lease_s: int) -> Found:
    """Rotate a project of `count` objects.

    Raises:
        BenchError: it did not end, or not clean.
    """
    env = deployment.worker_env(LEASE_S=str(lease_s))
    async with (
        open_world(deployment) as world,
        worker(env, scratch / "control.log", "control") as control,
        worker(env, scratch / "sweep.log", "sweep") as sweep,
        open_wire(deployment) as wire,
    ):
        await world.enroll(PROJECT)
        await world.load(PROJECT, count, _BODY_BYTES)
        idle_mib = sweep.rss_bytes() / _MIB
        for running in (control, sweep):
            running.forget_peak()
        api_key, began = new_api_key(), datetime.now(UTC)
        document = requests.rotation(deployment, PROJECT, api_key)
        event = await _rotated(wire, deployment, document, count)
        ended = datetime.now(UTC)
        peaks = [running.peak_bytes() / _MIB for running in (sweep, control)]
        check(event, count)
        _check_keys(world, api_key, count)
        written = page_times(sweep.log.read_text(), began)
    return Found(
        (ended - began).total_seconds(),
        written[-1][0],
        thirds(written),
        idle_mib,
        *peaks,
    )


async def _rotated(
    wire: Wire, deployment: Deployment, document: dict[str, Any], count: int
) -> dict[str, Any]:
    """Publish the rotation; gives the event of its end."""
    body = requests.encode(document)
    headers = requests.headers(body, deployment.publisher_key)
    await wire.publish("rotation.requested", body, headers)
    ends = ("rotation.completed", "rotation.failed", "rotation.rejected")
    timeout_s = _START_S + count / _SLOWEST_PER_S
    with suppress(TimeoutError):
        return await wire.event(
            lambda e: e["type"] in ends and e.get("rotation_id") == document["rotation_id"],
            timeout_s=timeout_s,
        )
    raise BenchError(f"the rotation of {count} objects was not over within {timeout_s:.0f} s")


def check(event: Mapping[str, Any], count: int) -> None:
    """See that a rotation ended clean, with every object rewrapped.

    Raises:
        BenchError: it did not.
    """
    report = {name: event.get(name) for name in ("type", "clean", "objects", "current", "failed")}
    expected = ("rotation.completed", True, count, count, 0)
    if tuple(report.values()) != expected or event["rewrapped"] < count:
        raise BenchError(f"the rotation of {count} objects did not end clean: {event}")


def _check_keys(world: World, api_key: str, count: int) -> None:
    """See that both new keys open some objects, spread over all, and the old key none."""
    deployment, old = world.deployment, world.api_keys[PROJECT]
    for number in range(0, count, max(1, count // _OPENED)):
        key = key_of(number)
        for by in ("user", "admin"):
            stored_objects.decrypt(deployment, PROJECT, key, by, api_key=api_key)
        try:
            stored_objects.decrypt(deployment, PROJECT, key, "user", api_key=old)
        except SealError:
            continue
        raise BenchError(f"the old key still opens {key}")


def page_times(log: str, began: datetime) -> list[tuple[float, int]]:
    """The times of pages with changes, in seconds, and the number of objects by then."""
    done: list[tuple[float, int]] = []
    total = 0
    for line in log.splitlines():
        if '"page done"' not in line:
            continue
        report = json.loads(line)
        if report["changed"]:
            total += report["changed"]
            moment = datetime.fromisoformat(report["timestamp"])
            done.append(((moment - began).total_seconds(), total))
    if not done:
        raise BenchError("the worker's log has no page of the rotation")
    return done


def thirds(done: Sequence[tuple[float, int]]) -> tuple[float, float, float]:
    """Objects a second while the first, the second and the last third was done.

    `done` is seconds since the beginning and objects by then; in between it is as if they
    were done evenly.
    """
    total = done[-1][1]
    moments = [_moment(done, total * part / 3) for part in range(4)]
    first, middle, last = (total / 3 / (after - before) for before, after in pairwise(moments))
    return first, middle, last


def _moment(done: Sequence[tuple[float, int]], count: float) -> float:
    """When `wanted` objects were done."""
    for (before_s, before), (after_s, after) in pairwise([(0.0, 0), *done]):
        if count <= after:
            return before_s + (after_s - before_s) * (count - before) / (after - before)
    return done[-1][0]


def rows(server: str, found: Mapping[int, Sequence[Found]]) -> list[Row]:
    """Time, rates and memory by the number of objects, and how memory grew with it."""
    made: list[Row] = []
    for count, rounds in found.items():
        made += _rows(server, f"rotation of {count:,} objects", rounds)
    first, last = min(found), max(found)
    if first != last:
        below, above = (max(f.peak_mib for f in found[n]) for n in (first, last))
        made.append(
            Row(
                f"peak memory of {last:,} objects against {first:,}",
                server,
                "times",
                Spread((above / below,)),
                at_most=_FLAT_AIM,
            )
        )
    return made


def _rows(server: str, name: str, rounds: Sequence[Found]) -> list[Row]:
    def row(what: str, unit: str, values: Sequence[float], at_least: float | None = None) -> Row:
        spread = Spread(tuple(values))
        return Row(f"{name}, {what}", server, unit, spread, at_least=at_least)

    return [
        row("whole", "s", [f.wall_s for f in rounds]),
        row("until all are written", "s", [f.written_s for f in rounds]),
        *(
            row(f"{part} third", "objects/s", [f.rates[n] for f in rounds])
            for n, part in enumerate(("first", "middle", "last"))
        ),
        row(
            "last third against first",
            "times",
            [f.rates[2] / f.rates[0] for f in rounds],
            at_least=_EVEN_AIM,
        ),
        row("sweep worker idle", "MiB", [f.idle_mib for f in rounds]),
        row("sweep worker's peak", "MiB", [f.peak_mib for f in rounds]),
        row("control worker's peak", "MiB", [f.control_mib for f in rounds]),
    ]
