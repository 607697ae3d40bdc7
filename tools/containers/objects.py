"""Objects that are sent through a deployment and compared byte by byte when they are read back."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyturn.messages import UploadStored
from tools.containers.report import CheckFailedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from keyturn.gateway import Client
    from keyturn.publisher import Publisher

PROJECT: Final = "acme"
_AT_ONCE: Final = 64
_WAIT_S: Final = 120.0
_KIB: Final = 1024
# Above the inline limit of 256 KiB, and above one part of an upload in parts.
STAGED_BYTES: Final = 300 * _KIB
LARGE_BYTES: Final = 9 * _KIB * _KIB


@dataclass(frozen=True)
class TestObject:
    """A key, and a body that follows from it."""

    key: str
    size_bytes: int

    def body(self) -> bytes:
        """The same bytes at each call."""
        return random.Random(self.key).randbytes(self.size_bytes)  # noqa: S311  # no secret


def burst(name: str, count: int) -> list[TestObject]:
    """Many small objects, a few that are staged, one that is stored in parts, and an empty one."""
    sizes = [LARGE_BYTES, 0] + [STAGED_BYTES] * (count // 40)
    sizes += [_KIB + 37 * number % (8 * _KIB) for number in range(count - len(sizes))]
    return [TestObject(f"{name}/{number:04}", size) for number, size in enumerate(sizes)]


def shorten_leases(folder: Path) -> None:
    """Have a rotation take seconds: its proof begins two leases after it."""
    with (folder / "keyturn.env").open("a") as file:
        file.write("KEYTURN_LEASE_S=5\n")


async def send(
    publisher: Publisher,
    objects: Sequence[TestObject],
    *,
    stored: asyncio.Semaphore | None = None,
) -> None:
    """Upload all, many at once, and wait until each is stored; `stored` counts them.

    Raises:
        CheckFailedError: one was refused, or its event has another size.
    """
    slots = asyncio.Semaphore(_AT_ONCE)

    async def send_one(one: TestObject) -> None:
        async with slots:
            request = await publisher.upload(PROJECT, one.key, one.body())
        event = await publisher.wait(request, timeout_s=_WAIT_S)
        if not isinstance(event, UploadStored) or event.size != one.size_bytes:
            raise CheckFailedError(f"{one.key}: {event}")
        if stored is not None:
            stored.release()

    async with asyncio.TaskGroup() as group:
        for one in objects:
            group.create_task(send_one(one))


async def read_back(client: Client, objects: Sequence[TestObject]) -> int:
    """Download all, and return how many are what was sent: all of them.

    Raises:
        CheckFailedError: one differs.
    """
    slots = asyncio.Semaphore(_AT_ONCE // 4)

    async def read_one(one: TestObject) -> None:
        async with slots, client.open(PROJECT, one.key) as stream:
            body = b"".join([chunk async for chunk in stream.chunks()])
        if body != one.body():
            raise CheckFailedError(f"{one.key}: {len(body)} bytes that differ from those sent")

    async with asyncio.TaskGroup() as group:
        for one in objects:
            group.create_task(read_one(one))
    return len(objects)
