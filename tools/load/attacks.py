"""Attacks with which one tenant tries to starve the others of a gateway (SPEC 9.3, 13).

A separate process, so that it does not slow the process that measures:

    KEYTURN_ATTACK_KEY=… python -m tools.load.attacks NAME HOST PORT SECONDS PROJECT

PROJECT is a project whose key the attack may rotate. The process prints the number of responses
by status.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyturn.crypto import new_api_key
from tools.harness.http import exchange, object_target, request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ATTACKER = "attacker"
ACCOMPLICE = "accomplice"
TAKEN = "taken"
LARGE = "large"
DELETED = "deleted"
KEY_VARIABLE = "KEYTURN_ATTACK_KEY"
_KIB = 1024
_WRONG = "kt_" + "w" * 43


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
                reader, writer = await asyncio.open_connection(self.host, self.port, limit=1024)
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


ATTACKS: dict[str, Callable[[Attack], Awaitable[None]]] = {
    "refused-small": refused_small,
    "refused-large": refused_large,
    "slow-downloads": slow_downloads,
    "slow-uploads": slow_uploads,
    "wrong-keys": wrong_keys,
    "rotations": rotations,
    "deletes": deletes,
}


def main(argv: list[str]) -> None:
    """Attack for the given time, and print the statuses."""
    name, host, port, seconds, project = argv
    attack = Attack(host, int(port), os.environ[KEY_VARIABLE], float(seconds), project)

    async def run() -> None:
        await ATTACKS[name](attack)

    asyncio.run(run())
    print(json.dumps(attack.statuses))


if __name__ == "__main__":
    main(sys.argv[1:])
