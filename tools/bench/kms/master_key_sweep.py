"""Calls to a provider while all projects move to a master key that it holds (SPEC 8.1).

From a local key `m1` to the provider's `m2`: a signed `sweep.requested` of `*`, one control and one
sweep worker. Calls are those that both workers count; the time is from request to event.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keyturn.crypto import to_base64
from tools.bench.figures import Row, Spread
from tools.bench.kms.provider_calls import counter
from tools.bench.processes import BenchError, worker
from tools.bench.rotation.world import MASTER_KEY, open_world
from tools.bench.tenants import enroll_many
from tools.harness import requests
from tools.harness.wire import open_wire
from tools.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tools.bench.kms.providers import Provider
    from tools.harness.deployment import Deployment
    from tools.harness.wire import Wire

LEASE_S: Final = 5
_NEW: Final = "m2"
_BODY_BYTES: Final = 1024
_END_S: Final = 1800


@dataclass(frozen=True)
class Found:
    """What a sweep of all projects took: seconds, and calls of each of the two workers."""

    wall_s: float
    control_calls: int
    sweep_calls: int


async def measure(
    deployment: Deployment, scratch: Path, provider: Provider, projects: Sequence[str]
) -> Found:
    """Move projects with one object each to the provider's key; the deployment's bucket is empty.

    Raises:
        BenchError: the sweep did not end, or not clean, or without an object.
    """
    await enroll_many(deployment, projects)
    async with open_world(deployment) as world:
        for project in projects:
            await world.load(project, 1, _BODY_BYTES)
    ports = free_port(), free_port()
    control, sweep = (_environment(deployment, provider, port) for port in ports)
    async with (
        worker(control, scratch / f"{provider.name}-control.log", "control"),
        worker(sweep, scratch / f"{provider.name}-sweep.log", "sweep"),
        counter(ports[0]) as control_calls,
        counter(ports[1]) as sweep_calls,
        open_wire(deployment) as wire,
    ):
        before = await control_calls.settled(), await sweep_calls.settled()
        began_s = time.perf_counter()
        check(await _swept(wire, deployment), len(projects))
        wall_s = time.perf_counter() - began_s
        return Found(
            wall_s,
            await control_calls.settled() - before[0],
            await sweep_calls.settled() - before[1],
        )


def _environment(deployment: Deployment, provider: Provider, port: int) -> dict[str, str]:
    env = deployment.worker_env(ACTIVE_MASTER_KEY=_NEW, LEASE_S=str(LEASE_S), HEALTH_PORT=str(port))
    return {**env, **provider.settings(_NEW, {MASTER_KEY: to_base64(deployment.master_key)})}


async def _swept(wire: Wire, deployment: Deployment) -> dict[str, Any]:
    document = requests.sweep("*", master_key=_NEW)
    body = requests.encode(document)
    headers = requests.headers(body, deployment.publisher_key)
    await wire.publish("sweep.requested", body, headers)
    ends = ("sweep.completed", "sweep.failed", "sweep.rejected")
    with suppress(TimeoutError):
        return await wire.event(
            lambda e: (
                e["type"] in ends
                and e.get("sweep_id") == document["sweep_id"]
                and e.get("project") == "*"
            ),
            timeout_s=_END_S,
        )
    raise BenchError(f"the sweep of all projects was not over within {_END_S} s")


def check(event: Mapping[str, Any], projects: int) -> None:
    """See that the sweep ended clean, with the one object of every project rewrapped.

    Raises:
        BenchError: it did not.
    """
    report = tuple(event.get(name) for name in ("type", "clean", "objects", "current", "failed"))
    if report != ("sweep.completed", True, projects, projects, 0) or event["rewrapped"] < projects:
        raise BenchError(f"the sweep of {projects} projects did not end clean: {event}")


def rows(server: str, provider: str, projects: int, found: Found) -> list[Row]:
    """Calls per project by worker, all calls, and the time."""
    figure = f"sweep of {projects:,} projects from local to {provider}"

    def row(what: str, unit: str, value: float) -> Row:
        return Row(f"{figure}, {what}", server, unit, Spread((value,)))

    return [
        row("provider calls", "calls", found.control_calls + found.sweep_calls),
        row("control worker, per project", "calls", found.control_calls / projects),
        row("sweep worker, per project", "calls", found.sweep_calls / projects),
        row("whole", "s", found.wall_s),
    ]
