"""One tenant of a gateway that is attacked by another (SPEC 9.3, 13), for acceptance tests.

A tenant's requests are measured without and under an attack; then what the attack left is counted.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from keyturn import topology
from keyturn.crypto import new_api_key
from tools.harness import stored_objects
from tools.harness.http import Client, exchange, object_target, request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from tools.harness.process import GatewayProcess
    from tools.harness.worker_under_test import WorkerUnderTest

ATTACKER = "attacker"
ACCOMPLICE = "accomplice"
TAKEN = "taken"
LARGE = "large"
DELETED = "deleted"
_KIB = 1024
_WRONG = "kt_" + "w" * 43
_VICTIM: Final = "victim"
_OBJECTS: Final = 51
# More than the buffers on its way, and little for a storage that reads ahead.
_LARGE_BYTES: Final = 4 * 1024 * 1024
_SMALL_BYTES: Final = 4096
# A larger body too: it needs an upload slot and space in staging.
_STAGED_BYTES: Final = 300 * 1024
_WINDOW_BYTES: Final = 64 * _KIB
_BEGIN_S: Final = 2.0
# Longer than the measurement, so that requests that wait for the attack's end are measured.
_OUTLASTS_S: Final = 3.0
_SETTLE_S: Final = 1.0
_ENROLL_PAUSE_S: Final = 0.2
_SERVED: Final = (topology.UPLOAD_QUEUE, topology.CONTROL_QUEUE)


@dataclass
class Attack:
    """A running attack on one gateway, and the statuses of its responses."""

    host: str
    port: int
    api_key: str = field(repr=False)
    seconds: float
    project: str = ACCOMPLICE
    statuses: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.until = time.monotonic() + self.seconds

    @property
    def is_running(self) -> bool:
        """Whether its time is not over."""
        return time.monotonic() < self.until

    async def send(
        self, method: str, target: str, body: bytes = b"", api_key: str | None = None
    ) -> bytes:
        """Send one request; returns the response body, empty on a connection error."""
        headers = {"Authorization": f"Bearer {api_key or self.api_key}"}
        if body:
            headers["Content-Length"] = str(len(body))
        try:
            raw = request(method, target, headers, body)
            answer = await exchange(self.host, self.port, raw)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as exc:
            self.statuses[type(exc).__name__] += 1
            return b""
        self.statuses[str(answer.status)] += 1
        return answer.body

    async def hold_connection(self, raw: bytes, *, trickle: bytes = b"") -> None:
        """Send this, do not read the response, and send `trickle` now and then."""
        while self.is_running:
            try:
                reader, writer = await self._connect()
            except OSError as exc:
                self.statuses[type(exc).__name__] += 1
                await asyncio.sleep(0.2)
                continue
            try:
                writer.write(raw)
                if not trickle:
                    status = (await reader.readline()).split(b" ")[1:2]
                    self.statuses[b"".join(status).decode() or "closed"] += 1
                while self.is_running and not reader.at_eof():
                    if trickle:
                        writer.write(trickle)
                        await writer.drain()
                    elif status != [b"200"]:
                        break
                    await asyncio.sleep(0.5)
            except OSError as exc:
                self.statuses[type(exc).__name__] += 1
            finally:
                writer.transport.abort()
            await asyncio.sleep(random.uniform(1, 3))  # noqa: S311  # `Retry-After` is 1

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect with a small window: else the kernel takes megabytes that nobody reads."""
        sock = socket.socket()
        sock.settimeout(0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WINDOW_BYTES)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (self.host, self.port))
        except BaseException:
            sock.close()
            raise
        return await asyncio.open_connection(sock=sock, limit=1024)


async def _together(count: int, one: Callable[[int], Awaitable[None]]) -> None:
    await asyncio.gather(*(one(number) for number in range(count)))


async def refused_small(attack: Attack) -> None:
    """Bodies of 256 KiB to an existing key: 400 of them left 400 permanent dead letters."""

    async def one(_: int) -> None:
        while attack.is_running:
            await attack.send("PUT", object_target(ATTACKER, TAKEN), bytes(256 * _KIB))
            await asyncio.sleep(0.05)

    await _together(4, one)


async def refused_large(attack: Attack) -> None:
    """Bodies of 1 MiB to an existing key: they filled staging for 8 days."""

    async def one(_: int) -> None:
        while attack.is_running:
            await attack.send("PUT", object_target(ATTACKER, TAKEN), bytes(1024 * _KIB))
            await asyncio.sleep(0.05)

    await _together(4, one)


async def slow_downloads(attack: Attack) -> None:
    """256 downloads that the client does not read: every other tenant got 503."""
    headers = {"Authorization": f"Bearer {attack.api_key}"}
    raw = request("GET", object_target(ATTACKER, LARGE), headers)
    await _together(256, lambda _: attack.hold_connection(raw))


async def slow_uploads(attack: Attack) -> None:
    """Two tenants with four slow request bodies each: every other tenant got 503."""

    async def one(number: int) -> None:
        project = (ATTACKER, ACCOMPLICE)[number % 2]
        headers = {
            "Authorization": f"Bearer {attack.api_key}",
            "Content-Length": str(64 * 1024 * _KIB),
        }
        raw = request("PUT", object_target(project, f"slow-{number}-{time.time_ns()}"), headers)
        await attack.hold_connection(raw + bytes(300 * _KIB), trickle=bytes(8 * _KIB))

    await _together(8, one)


async def wrong_keys(attack: Attack) -> None:
    """Unknown projects and wrong API keys: each request caused a storage read."""

    async def one(number: int) -> None:
        count = 0
        while attack.is_running:
            count += 1
            project = ATTACKER if count % 2 else f"made-up-{number}-{count}"
            await attack.send("GET", object_target(project, "x"), api_key=_WRONG)

    await _together(32, one)


async def rotations(attack: Attack) -> None:
    """One rotation after the other: 14 of them read 51 objects 4,845 times."""
    current = attack.api_key
    while attack.is_running:
        new, target = new_api_key(), f"/v1/projects/{attack.project}/rotations"
        response = await attack.send("POST", target, json.dumps({"api_key": new}).encode(), current)
        rotation_id = json.loads(response or b"{}").get("rotation_id")
        for _ in range(50):
            if rotation_id is None or not attack.is_running:
                await asyncio.sleep(0.2)
                break
            shown = await attack.send("GET", f"{target}/{rotation_id}", api_key=new)
            if json.loads(shown or b"{}").get("state") in ("accepted", "running", "completed"):
                current = new
                break
            await asyncio.sleep(0.1)


async def deletes(attack: Attack) -> None:
    """Deletes of one object, again and again: all control requests share one queue."""

    async def one(_: int) -> None:
        while attack.is_running:
            await attack.send("DELETE", object_target(ATTACKER, DELETED))

    await _together(32, one)


ATTACKS: dict[str, Callable[[Attack], Coroutine[Any, Any, None]]] = {
    "refused-small": refused_small,
    "refused-large": refused_large,
    "slow-downloads": slow_downloads,
    "slow-uploads": slow_uploads,
    "wrong-keys": wrong_keys,
    "rotations": rotations,
    "deletes": deletes,
}


@dataclass
class TenantSample:
    """A tenant's requests: seconds by kind, and the responses that were not successful."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def p50_ms(self, kind: str) -> float:
        """The median."""
        return 1000 * statistics.median(self.seconds[kind])


@dataclass
class AttackResult:
    """What a tenant got under one attack, and what the attack left behind."""

    under: TenantSample
    attacker: Counter[str]
    dead: int
    staged: int


@dataclass
class Arena:
    """A gateway with a worker and three projects."""

    serving: WorkerUnderTest
    process: GatewayProcess
    client: Client
    count: int = 0

    async def prepare(self) -> None:
        """Store the objects that the attacks and the tenant request."""
        for project in (ATTACKER, ACCOMPLICE, _VICTIM):
            await self.serving.enroll(project)
        await self._put(ATTACKER, TAKEN, b"x")
        await self._put(ATTACKER, DELETED, b"x")
        await self._put(ATTACKER, LARGE, bytes(_LARGE_BYTES))
        await self._put(_VICTIM, "small", bytes(_SMALL_BYTES))

    async def _rotated_project(self) -> str:
        """Create a project with objects, whose key an attack may rotate."""
        await self.serving.enroll("rotated")
        for number in range(_OBJECTS):
            await self._put("rotated", f"object-{number}", b"x" * 100)
        return "rotated"

    async def _put(self, project: str, key: str, body: bytes) -> None:
        wait = {"Prefer": "wait=30"}
        answer = await self.client.request(project, key, wait, method="PUT", body=body)
        assert answer.status == 201, answer

    async def measure_attack(self, name: str, seconds: float) -> AttackResult:
        """Measure the tenant under this attack, and count what the attack left."""
        project = await self._rotated_project() if name == "rotations" else ACCOMPLICE
        dead_before, staged_before = await self._leftovers()
        lasts_s = _BEGIN_S + seconds + _OUTLASTS_S
        host, port, api_key = self.process.host, self.process.port, self.client.api_key
        attack = Attack(host, port, api_key, lasts_s, project)
        running = asyncio.create_task(ATTACKS[name](attack))
        await asyncio.sleep(_BEGIN_S)
        under = await self.measure_tenant(seconds)
        await running
        await asyncio.sleep(_SETTLE_S)
        dead, staged = await self._leftovers()
        return AttackResult(under, attack.statuses, dead - dead_before, staged - staged_before)

    async def measure_tenant(self, seconds: float) -> TenantSample:
        """Send the tenant's requests: 20 reads, 4 small and 2 larger bodies per second.

        At the same time the operator enrolls projects, one after the other: the control queue
        serves everyone.
        """
        seen, until = TenantSample(), time.monotonic() + seconds
        small, staged = bytes(_SMALL_BYTES), bytes(_STAGED_BYTES)
        await asyncio.gather(
            self._steadily(seen, "get", until, 20, lambda: ("GET", "small", b"")),
            self._steadily(seen, "put", until, 4, lambda: ("PUT", self._key(), small)),
            self._steadily(seen, "staged put", until, 2, lambda: ("PUT", self._key(), staged)),
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

    async def _steadily(
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
            answer = await self.client.request(_VICTIM, key, method=method, body=body)
            problem = str(answer.status)
        except (OSError, TimeoutError) as exc:
            problem = type(exc).__name__
        seen.seconds.setdefault(kind, []).append(time.perf_counter() - began)
        if problem not in ("200", "202"):
            seen.refused.append(f"{kind}: {problem}")

    async def _leftovers(self) -> tuple[int, int]:
        """The numbers of dead letters and of bodies in staging."""
        dead = [await self.serving.wire.depth(f"{queue}.dead") for queue in _SERVED]
        staged = stored_objects.list_keys(self.serving.deployment, ".keyturn/staging/")
        return sum(dead), len(staged)
