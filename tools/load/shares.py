"""`python -m tools.load.shares`: another tenant of a gateway while one attacks it (SPEC 9.3, 13).

A gateway, a worker of all roles, broker and storage of their own. For each attack: a tenant's
requests in quiet and under the attack, in turn a few times, so that whatever else the machine
does meets both alike; then what the attack left behind. Figures are ratios within one run; what
is left behind is exact.
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
from tools.load.attacks import ACCOMPLICE, ATTACKER, ATTACKS, KEY_VARIABLE, LARGE, TAKEN
from tools.servers import Servers

if TYPE_CHECKING:
    from tools.harness.process import GatewayProcess
    from tools.harness.worker_under_test import WorkerUnderTest

VICTIM: Final = "victim"
OBJECTS: Final = 51
_MIB: Final = 1024 * 1024
_LARGE_BYTES: Final = 32 * _MIB
_SMALL_BYTES: Final = 4096
# A larger body too: it needs a place, and room in staging.
_STAGED_BYTES: Final = 300 * 1024
_BEGIN_S: Final = 3.0
# Whoever waits for the attack to end is seen to have waited.
_OUTLASTS_S: Final = 4.0
_SETTLE_S: Final = 1.0


@dataclass
class Seen:
    """What a tenant saw of its requests: seconds by kind, and answers other than good ones."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def add(self, more: Seen) -> None:
        """Take the requests of another round in."""
        for kind, seconds in more.seconds.items():
            self.seconds.setdefault(kind, []).extend(seconds)
        self.refused += more.refused

    def p99_ms(self, kind: str) -> float:
        """The 99th of a hundred."""
        return 1000 * sorted(self.seconds[kind])[int(len(self.seconds[kind]) * 0.99)]

    def p50_ms(self, kind: str) -> float:
        """The median."""
        return 1000 * statistics.median(self.seconds[kind])


@dataclass
class Measured:
    """One attack."""

    name: str
    quiet: Seen
    under: Seen
    attacker: dict[str, int]
    dead: int
    staged: int

    def ratio(self, kind: str) -> float:
        """How much longer the slowest of a hundred took."""
        return self.under.p99_ms(kind) / self.quiet.p99_ms(kind)


@dataclass
class Arena:
    """A gateway with three projects."""

    serving: WorkerUnderTest
    process: GatewayProcess
    client: Client
    count: int = 0
    rotated: int = 0

    async def prepare(self) -> None:
        """The objects that the attacks and the tenant ask for."""
        for project in (ATTACKER, ACCOMPLICE, VICTIM):
            await self.serving.enroll(project)
        await self._put(ATTACKER, TAKEN, b"x")
        await self._put(ATTACKER, LARGE, bytes(_LARGE_BYTES))
        await self._put(VICTIM, "small", bytes(_SMALL_BYTES))

    async def _to_rotate(self) -> str:
        """A fresh project with objects, whose key an attack may turn."""
        self.rotated += 1
        project = f"rotated-{self.rotated}"
        await self.serving.enroll(project)
        for number in range(OBJECTS):
            await self._put(project, f"object-{number}", b"x" * 100)
        return project

    async def _put(self, project: str, key: str, body: bytes) -> None:
        wait = {"Prefer": "wait=30"}
        answer = await self.client.ask(project, key, wait, method="PUT", body=body)
        assert answer.status == 201, answer

    async def tenant(self, seconds: float) -> Seen:
        """Ask as the tenant for so long: 20 reads, 4 small and 2 larger bodies a second."""
        seen, until = Seen(), time.monotonic() + seconds
        await asyncio.gather(
            self._asking(seen, "get", until, 20, lambda: ("GET", "small", b"")),
            self._asking(seen, "put", until, 4, lambda: ("PUT", self._key(), bytes(_SMALL_BYTES))),
            self._asking(
                seen, "staged put", until, 2, lambda: ("PUT", self._key(), bytes(_STAGED_BYTES))
            ),
        )
        return seen

    def _key(self) -> str:
        self.count += 1
        return f"new-{self.count}"

    async def _asking(self, seen: Seen, kind: str, until: float, per_s: float, what: Any) -> None:
        tasks = set()
        while (now := time.monotonic()) < until:
            tasks.add(asyncio.create_task(self._ask(seen, kind, *what())))
            await asyncio.sleep(now + 1 / per_s - time.monotonic())
        await asyncio.gather(*tasks)

    async def _ask(self, seen: Seen, kind: str, method: str, key: str, body: bytes) -> None:
        began = time.perf_counter()
        try:
            answer = await self.client.ask(VICTIM, key, method=method, body=body)
            told = str(answer.status)
        except (OSError, TimeoutError) as exc:
            told = type(exc).__name__
        seen.seconds.setdefault(kind, []).append(time.perf_counter() - began)
        if told not in ("200", "202"):
            seen.refused.append(f"{kind}: {told}")

    async def attacked(self, name: str, seconds: float, *, rounds: int) -> Measured:
        """The tenant in quiet and under this attack, and what is left of the attack."""
        quiet, under, attacker = Seen(), Seen(), Counter[str]()
        dead_before, staged_before = await self._left()
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
            told, _ = await attack.communicate()
            attacker.update(json.loads(told))
            await asyncio.sleep(_SETTLE_S)
        dead, staged = await self._left()
        left = dead - dead_before, staged - staged_before
        return Measured(name, quiet, under, dict(attacker), *left)

    async def _left(self) -> tuple[int, int]:
        """How many dead letters there are, and how many bodies in staging."""
        dead = [await self.serving.wire.depth(f"{queue}.dead") for queue in _SERVED]
        return sum(dead), len(
            stored_objects.list_keys(self.serving.deployment, ".keyturn/staging/")
        )


_SERVED: Final = (topology.UPLOAD_QUEUE, topology.CONTROL_QUEUE)


async def measure(
    deployment: Deployment, names: list[str], seconds: float, rounds: int
) -> list[Measured]:
    """Each attack in turn, on one deployment."""
    async with (
        run_worker_for(deployment) as serving,
        gateway(deployment.gateway_env()) as process,
    ):
        arena = Arena(serving, process, Client(process, deployment.api_key))
        await arena.prepare()
        return [await arena.attacked(name, seconds, rounds=rounds) for name in names]


def table(measured: list[Measured]) -> Table:
    """The figures, a row for each attack and kind of request."""
    shown = Table(title="Another tenant while one attacks")
    for column in (
        *("attack", "request", "quiet p50/p99 ms", "attacked p50/p99 ms", "p99 ratio"),
        *("refused", "attacker's answers", "dead letters", "staged"),
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
                str(sum(told.startswith(f"{kind}:") for told in each.under.refused)),
                str(each.attacker),
                str(each.dead),
                str(each.staged),
            )
    return shown


def main(argv: list[str]) -> int:
    """Measure and print; 1 where a tenant was refused anything or something was left behind."""
    parser = argparse.ArgumentParser(prog="python -m tools.load.shares")
    parser.add_argument("--seconds", type=float, default=20, help="in quiet and under attack")
    parser.add_argument("--only", default=",".join(ATTACKS), help=f"of {', '.join(ATTACKS)}")
    parser.add_argument("--rounds", type=int, default=5, help="of quiet and attack in turn")
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
