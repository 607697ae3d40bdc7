"""What customer keys cost: a project with one against one without (SPEC 2.6).

The store is an OpenBao server of the bench's own. Both projects are served by the same processes
with the same settings, in turns.

`measure_calls` keeps so many projects in use, each with a key of its own, for three quarters of
`CUSTOMER_KEY_CACHE_S`. What it counts is in the store's audit log.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import aio_pika

from keyturn.errors import CustomerKeyUnavailableError
from keyturn.topology import EXCHANGE, UPLOAD_QUEUE, dead_letter_name
from keyturn_workers.core.customer_keys import KeyName
from keyturn_workers.keys.customer_keys.providers import open_customer_keys
from keyturn_workers.keys.customer_keys.secrets import IN_COMMANDS
from keyturn_workers.process.settings import CustomerKeySettings
from tools.bench.against_plain import paced
from tools.bench.figures import Comparison, Rate, Row, Spread, lower_is_better
from tools.bench.gateway import opened, run_job
from tools.bench.processes import BenchError, worker
from tools.bench.rotation import PAGE_KEYS, run_page_worker
from tools.bench.uploads import UPLOAD, count_events, letters, ours, tenants
from tools.harness.deployment import Deployment
from tools.harness.wire import Wire
from tools.harness.world import key_of, open_world, pages_of
from tools.servers.openbao import OpenBao

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tools.bench.processes import Running
    from tools.harness.world import World

WITH: Final = "locked"
WITHOUT: Final = "free"
_STORE: Final = "openbao"
_AGAINST: Final = "the same without a customer key"
_CPU_AIM: Final = 0.97
_BODY_BYTES: Final = 4096
_READS_AT_ONCE: Final = 32
_MIB: Final = 2**20
_ENROLLED_AT_ONCE: Final = 8
_ENROLL_TRIES: Final = 5
_PAUSE_S: Final = 1.0
_UPLOADS_PER_S: Final = 100
_SMALL_BODY: Final = b"in use"
# Each project is asked for its secret again at a quarter of CUSTOMER_KEY_CACHE_S.
_ASKED_AGAIN_S: Final = 75
_DRAINED_S: Final = 120


@dataclass(frozen=True)
class _Deployment(Deployment):
    """Workers that have the bench's store among their settings."""

    stores: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, deployment: Deployment, stores: dict[str, Any]) -> _Deployment:
        same = {each.name: getattr(deployment, each.name) for each in fields(deployment)}
        return cls(**same, stores=stores)

    def worker_env(self, **more: str) -> dict[str, str]:
        return super().worker_env(CUSTOMER_KEY_STORES=json.dumps(self.stores), **more)


@dataclass(frozen=True)
class _Bench:
    """A deployment with a store of customer keys."""

    openbao: OpenBao
    deployment: _Deployment
    world: World

    async def enroll(self, project: str) -> None:
        """Enroll a project with a customer key of its own.

        Raises:
            BenchError: the store did not answer in time, on a machine that is too busy.
        """
        await asyncio.to_thread(self.openbao.create_customer_key, project)
        for _ in range(_ENROLL_TRIES):
            try:
                await self.world.enroll(project, KeyName(_STORE, project))
            except CustomerKeyUnavailableError as exc:
                problem = exc.detail
                await asyncio.sleep(_PAUSE_S)
            else:
                return
        raise BenchError(f"{project} was not enrolled: {problem}")

    def secrets_given(self) -> int:
        """How often the store was asked to decrypt a secret so far."""
        return self.openbao.requests_below("transit/decrypt/")


@asynccontextmanager
async def _store(deployment: Deployment) -> AsyncIterator[_Bench]:
    with OpenBao() as openbao:
        await asyncio.to_thread(openbao.allow_customer_keys, _STORE, "*")
        token = await asyncio.to_thread(openbao.make_token, _STORE)
        stores = {_STORE: openbao.customer_key_store(token, "*")}
        settings = CustomerKeySettings(customer_key_stores=stores)
        keyed = _Deployment.of(deployment, stores)
        async with (
            open_customer_keys(settings, deployment.name, IN_COMMANDS) as keys,
            open_world(keyed, keys) as world,
        ):
            yield _Bench(openbao, keyed, world)


@dataclass
class _Sides:
    """What alternating rounds gave."""

    rates: dict[str, list[Rate]] = field(default_factory=lambda: {WITH: [], WITHOUT: []})

    def turn(self, number: int) -> tuple[str, ...]:
        """Both projects; they take turns in being the second, which finds a fuller bucket."""
        return (WITH, WITHOUT) if number % 2 == 0 else (WITHOUT, WITH)

    def rows(self, figure: str, server: str) -> list[Row]:
        compared = Comparison(figure, server, _AGAINST, self.rates[WITH], self.rates[WITHOUT])
        return [compared.throughput(), compared.cpu(_CPU_AIM)]


async def measure_cost(
    deployment: Deployment, scratch: Path, *, count: int, rounds: int
) -> list[Row]:
    """Uploads, reads through a gateway, and a rotation's writing pass."""
    server = deployment.s3.kind
    async with _store(deployment) as bench:
        await bench.enroll(WITH)
        await bench.world.enroll(WITHOUT)
        stored = _Sides()
        for number in range(rounds):
            for project in stored.turn(number):
                name = f"{project}-{number}"
                rate = await ours(bench.deployment, scratch, name, count, projects=(project,))
                stored.rates[project].append(rate)
        for project in stored.rates:
            await bench.world.load(project, count, _BODY_BYTES)
        read = await _read(bench, scratch, count, rounds)
        written = await _rotate(bench, scratch, count, rounds)
    figure = "with a customer key"
    return [
        *stored.rows(f"4 KiB uploads {figure}", server),
        *read.rows(f"4 KiB through the gateway {figure}", server),
        *written.rows(f"rotation, writing pass {figure}", server),
    ]


async def _read(bench: _Bench, scratch: Path, count: int, rounds: int) -> _Sides:
    found, at_once = _Sides(), {"concurrency": _READS_AT_ONCE}
    stores = json.dumps(bench.deployment.stores)
    async with opened(bench.world, WITH, scratch, "reads", CUSTOMER_KEY_STORES=stores) as sides:
        for number in range(rounds):
            for project in found.turn(number):
                of = replace(sides, project=project)
                targets = [of.ours(key_of(each)) for each in range(count)]
                # Alone: of many first requests, those that may not wait for the store are put off.
                await run_job(targets[:1])
                await run_job(targets, count=count // 10, **at_once)
                before = sides.gateway.cpu_s()
                report = await run_job(targets, count=count, **at_once)
                cpu_s = sides.gateway.cpu_s() - before
                rate = Rate(count / report["wall_s"], 1000 * cpu_s / count)
                found.rates[project].append(rate)
    return found


async def _rotate(bench: _Bench, scratch: Path, count: int, rounds: int) -> _Sides:
    found, warm = _Sides(), max(1, count // 15)
    keys = [key_of(number) for number in range(count)]
    first = pages_of(keys[:warm], warm)
    pages = pages_of(keys[warm:], PAGE_KEYS, after=keys[warm - 1])
    async with run_page_worker(bench.world, scratch, "pages") as workers:
        for number in range(rounds):
            for project in found.turn(number):
                await bench.world.turn(project)
                await workers.write(project, first)
                found.rates[project].append((await workers.write(project, pages)).rate)
    return found


async def measure_calls(
    deployment: Deployment, scratch: Path, *, projects: int, seconds: int, rounds: int
) -> list[Row]:
    """One worker's calls to the store and its memory, with a key for each project.

    Raises:
        BenchError: an upload was not stored, not reported, or is a dead letter.
    """
    calls, first, with_keys, without = list[float](), list[float](), list[float](), list[float]()
    async with _store(deployment) as bench:
        locked = tenants(projects)
        free = [f"{WITHOUT}-{number:05}" for number in range(projects)]
        for names, enroll in ((locked, bench.enroll), (free, bench.world.enroll)):
            for at in range(0, projects, _ENROLLED_AT_ONCE):
                batch = names[at : at + _ENROLLED_AT_ONCE]
                await asyncio.gather(*(enroll(name) for name in batch))
        for number in range(rounds):
            async with _in_use(bench, scratch, f"free-{number}", free) as used:
                await used.for_s(0)
                without.append(used.running.rss_bytes() / _MIB)
            async with _in_use(bench, scratch, f"locked-{number}", locked) as used:
                before = bench.secrets_given()
                await used.for_s(0)
                first.append((bench.secrets_given() - before) / projects)
                with_keys.append(used.running.rss_bytes() / _MIB)
                before, began_s = bench.secrets_given(), time.perf_counter()
                await used.for_s(seconds)
                took_s = time.perf_counter() - began_s
                calls.append((bench.secrets_given() - before) * 60 / took_s)
    figure, server = f"{projects:,} projects in use, a customer key each", deployment.s3.kind
    return [
        Row(
            f"{figure}, calls to the store",
            server,
            "calls/min",
            Spread(tuple(calls)),
            at_most=projects * 60 / _ASKED_AGAIN_S,
        ),
        Row(
            f"{figure}, first use",
            server,
            "calls a project",
            Spread(tuple(first)),
            at_most=1,
        ),
        Row(
            f"{figure}, resident memory of a worker",
            server,
            "MiB",
            Spread(tuple(with_keys)),
            Spread(tuple(without)),
            _AGAINST,
            lower_is_better(with_keys, without),
        ),
    ]


@dataclass
class _Used:
    """A worker to which requests of all projects are published, in turns."""

    bench: _Bench
    projects: Sequence[str]
    running: Running
    connection: aio_pika.abc.AbstractConnection
    name: str
    passes: int = 0

    async def for_s(self, seconds: float) -> None:
        """Use each project once, and on until the time is over; all is stored afterwards."""
        wire = Wire(await self.connection.channel(on_return_raises=True), [])
        exchange = await wire.channel.get_exchange(EXCHANGE, ensure=False)
        began, began_s, first = datetime.now(UTC), time.perf_counter(), self.passes
        while self.passes == first or time.perf_counter() - began_s < seconds:
            name = f"{self.name}-{first}/{self.passes}"
            made = letters(
                self.bench.deployment, name, len(self.projects), self.projects, _SMALL_BODY
            )
            async for letter in paced(made, _UPLOADS_PER_S, time.perf_counter()):
                await exchange.publish(letter.message(), UPLOAD)
            self.passes += 1
        count = (self.passes - first) * len(self.projects)
        reported = await count_events(
            self.connection,
            self.bench.deployment,
            f"{self.name}-{first}",
            count,
            since=began,
            timeout_s=_DRAINED_S,
        )
        dead = await wire.depth(dead_letter_name(UPLOAD_QUEUE))
        if (reported, dead) != (count, 0):
            raise BenchError(f"of {count} uploads {reported} reported, {dead} dead letters")


@asynccontextmanager
async def _in_use(
    bench: _Bench, scratch: Path, name: str, projects: Sequence[str]
) -> AsyncIterator[_Used]:
    log = scratch / f"{name}.log"
    async with (
        worker(bench.deployment.worker_env(), log) as running,
        await aio_pika.connect(bench.deployment.amqp_url) as connection,
    ):
        yield _Used(bench, projects, running, connection, name)
