"""`python -m tools.load.shares`: one tenant while another attacks the gateway (SPEC 9.3, 13).

It runs a gateway, a worker for all roles, a broker and a storage server. For each attack, a
tenant's requests are measured without and under the attack in alternating rounds, so that other
load on the machine affects both; then what the attack left behind is counted. Latencies are
compared within one run; leftovers are exact.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

from keyturn import topology
from tools.harness import stored_objects
from tools.harness.deployment import Deployment
from tools.harness.http import Client
from tools.harness.process import gateway
from tools.harness.worker_under_test import run_worker_for
from tools.load.attacks import (
    ACCOMPLICE,
    ATTACKER,
    ATTACKS,
    DELETED,
    KEY_VARIABLE,
    LARGE,
    TAKEN,
)
from tools.servers import Servers

if TYPE_CHECKING:
    from tools.harness.process import GatewayProcess
    from tools.harness.worker_under_test import WorkerUnderTest

VICTIM: Final = "victim"
OBJECTS: Final = 51
_MIB: Final = 1024 * 1024
_LARGE_BYTES: Final = 32 * _MIB
_SMALL_BYTES: Final = 4096
# A larger body too: it needs an upload slot and space in staging.
_STAGED_BYTES: Final = 300 * 1024
_BEGIN_S: Final = 3.0
# Longer than the attack, so that requests that wait for its end are measured.
_OUTLASTS_S: Final = 4.0
_SETTLE_S: Final = 1.0
_ENROLL_PAUSE_S: Final = 0.2


@dataclass
class TenantSample:
    """A tenant's requests: seconds by kind, and the responses that were not successful."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def add(self, more: TenantSample) -> None:
        """Add the requests of another round."""
        for kind, seconds in more.seconds.items():
            self.seconds.setdefault(kind, []).extend(seconds)
        self.refused += more.refused

    def p99_ms(self, kind: str) -> float:
        """The 99th percentile."""
        return 1000 * sorted(self.seconds[kind])[int(len(self.seconds[kind]) * 0.99)]

    def p50_ms(self, kind: str) -> float:
        """The median."""
        return 1000 * statistics.median(self.seconds[kind])


@dataclass
class AttackResult:
    """The result of one attack."""

    name: str
    quiet: TenantSample
    under: TenantSample
    attacker: dict[str, int]
    dead: int
    staged: int

    def ratio(self, kind: str) -> float:
        """The 99th percentile under attack relative to the one without."""
        return self.under.p99_ms(kind) / self.quiet.p99_ms(kind)


@dataclass
class Arena:
    """A gateway with a worker and three projects."""

    serving: WorkerUnderTest
    process: GatewayProcess
    client: Client
    count: int = 0
    rotated: int = 0

    async def prepare(self) -> None:
        """Store the objects that the attacks and the tenant request."""
        for project in (ATTACKER, ACCOMPLICE, VICTIM):
            await self.serving.enroll(project)
        await self._put(ATTACKER, TAKEN, b"x")
        await self._put(ATTACKER, DELETED, b"x")
        await self._put(ATTACKER, LARGE, bytes(_LARGE_BYTES))
        await self._put(VICTIM, "small", bytes(_SMALL_BYTES))

    async def _to_rotate(self) -> str:
        """Create a project with objects, whose key an attack may rotate."""
        self.rotated += 1
        project = f"rotated-{self.rotated}"
        await self.serving.enroll(project)
        for number in range(OBJECTS):
            await self._put(project, f"object-{number}", b"x" * 100)
        return project

    async def _put(self, project: str, key: str, body: bytes) -> None:
        wait = {"Prefer": "wait=30"}
        answer = await self.client.request(project, key, wait, method="PUT", body=body)
        assert answer.status == 201, answer

    async def tenant(self, seconds: float) -> TenantSample:
        """Send the tenant's requests: 20 reads, 4 small and 2 larger bodies per second.

        At the same time the operator enrolls projects, one after the other: the control queue
        serves everyone.
        """
        seen, until = TenantSample(), time.monotonic() + seconds
        await asyncio.gather(
            self._send_steadily(seen, "get", until, 20, lambda: ("GET", "small", b"")),
            self._send_steadily(
                seen, "put", until, 4, lambda: ("PUT", self._key(), bytes(_SMALL_BYTES))
            ),
            self._send_steadily(
                seen, "staged put", until, 2, lambda: ("PUT", self._key(), bytes(_STAGED_BYTES))
            ),
            self._enroll(seen, until),
        )
        return seen

    async def _enroll(self, seen: TenantSample, until: float) -> None:
        while (began := time.monotonic()) < until:
            await self.serving.enroll(self._key())
            seen.seconds.setdefault("enroll", []).append(time.monotonic() - began)
            await asyncio.sleep(_ENROLL_PAUSE_S)

    def _key(self) -> str:
        self.count += 1
        return f"new-{self.count}"

    async def _send_steadily(
        self, seen: TenantSample, kind: str, until: float, per_s: float, what: Any
    ) -> None:
        tasks = set()
        while (now := time.monotonic()) < until:
            tasks.add(asyncio.create_task(self._request(seen, kind, *what())))
            await asyncio.sleep(now + 1 / per_s - time.monotonic())
        await asyncio.gather(*tasks)

    async def _request(
        self, seen: TenantSample, kind: str, method: str, key: str, body: bytes
    ) -> None:
        began = time.perf_counter()
        try:
            answer = await self.client.request(VICTIM, key, method=method, body=body)
            problem = str(answer.status)
        except (OSError, TimeoutError) as exc:
            problem = type(exc).__name__
        seen.seconds.setdefault(kind, []).append(time.perf_counter() - began)
        if problem not in ("200", "202"):
            seen.refused.append(f"{kind}: {problem}")

    async def measure_attack(self, name: str, seconds: float, *, rounds: int) -> AttackResult:
        """Measure the tenant without and under this attack, and count what the attack left."""
        quiet, under, attacker = TenantSample(), TenantSample(), Counter[str]()
        dead_before, staged_before = await self._leftovers()
        for _ in range(rounds):
            project = await self._to_rotate() if name == "rotations" else ACCOMPLICE
            quiet.add(await self.tenant(seconds / rounds))
            attack = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "tools.load.attacks", name, self.process.host, str(self.process.port)),
                *(str(_BEGIN_S + seconds / rounds + _OUTLASTS_S), project),
                env={**os.environ, KEY_VARIABLE: self.client.api_key},
                stdout=asyncio.subprocess.PIPE,
            )
            await asyncio.sleep(_BEGIN_S)
            under.add(await self.tenant(seconds / rounds))
            problem, _ = await attack.communicate()
            attacker.update(json.loads(problem))
            await asyncio.sleep(_SETTLE_S)
        dead, staged = await self._leftovers()
        left = dead - dead_before, staged - staged_before
        return AttackResult(name, quiet, under, dict(attacker), *left)

    async def _leftovers(self) -> tuple[int, int]:
        """The numbers of dead letters and of bodies in staging."""
        dead = [await self.serving.wire.depth(f"{queue}.dead") for queue in _SERVED]
        return sum(dead), len(
            stored_objects.list_keys(self.serving.deployment, ".keyturn/staging/")
        )


_SERVED: Final = (topology.UPLOAD_QUEUE, topology.CONTROL_QUEUE)


async def measure(
    deployment: Deployment, names: list[str], seconds: float, rounds: int
) -> list[AttackResult]:
    """Run each attack in turn, on one deployment."""
    async with (
        run_worker_for(deployment) as serving,
        gateway(deployment.gateway_env()) as process,
    ):
        arena = Arena(serving, process, Client(process, deployment.api_key))
        await arena.prepare()
        return [await arena.measure_attack(name, seconds, rounds=rounds) for name in names]


def table(measured: list[AttackResult]) -> Table:
    """The results, a row for each attack and kind of request."""
    shown = Table(title="One tenant while another attacks")
    for column in (
        *("attack", "request", "quiet p50/p99 ms", "attacked p50/p99 ms", "p99 ratio"),
        *("refused", "attacker's responses", "dead letters", "staged"),
    ):
        shown.add_column(column)
    for each in measured:
        for kind in each.quiet.seconds:
            shown.add_row(
                each.name,
                kind,
                f"{each.quiet.p50_ms(kind):.1f} / {each.quiet.p99_ms(kind):.1f}",
                f"{each.under.p50_ms(kind):.1f} / {each.under.p99_ms(kind):.1f}",
                f"{each.ratio(kind):.2f}",
                str(sum(problem.startswith(f"{kind}:") for problem in each.under.refused)),
                str(each.attacker),
                str(each.dead),
                str(each.staged),
            )
    return shown


def main(argv: list[str]) -> int:
    """Measure and print; 1 if a request of the tenant failed or staged bodies were left."""
    parser = argparse.ArgumentParser(prog="python -m tools.load.shares")
    parser.add_argument(
        "--seconds", type=float, default=20, help="per round, without and under attack"
    )
    parser.add_argument("--only", default=",".join(ATTACKS), help=f"of {', '.join(ATTACKS)}")
    parser.add_argument(
        "--rounds", type=int, default=5, help="alternating rounds without and under attack"
    )
    given = parser.parse_args(argv)
    with Servers("ceph", environ={}) as servers:
        deployment = Deployment(servers.amqp_url, servers.s3, servers.new_bucket())
        measured = asyncio.run(
            measure(deployment, given.only.split(","), given.seconds, given.rounds)
        )
    Console(width=None if sys.stdout.isatty() else 190).print(table(measured))
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the end")
    return int(any(each.under.refused or each.staged for each in measured))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
