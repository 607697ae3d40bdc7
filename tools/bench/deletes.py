"""Deletes by the thousand, against a loop of S3's own `DeleteObjects` (SPEC 8.7).

A delete of Keyturn reads each object, puts its tombstone, and reads that twice more; and it waits
two leases, in which it does nothing. So the time without them is a separate figure.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from keyturn.messages import DELETED_KEYS, ObjectDeleted
from keyturn.publisher import Publisher
from tools.bench.figures import Row, Spread
from tools.bench.processes import BenchError, worker
from tools.harness.stored_objects import s3_client
from tools.harness.world import LEASE_S, key_of, open_world

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.harness.deployment import Deployment

_AGAINST: Final = "a loop of DeleteObjects"
_BODY_BYTES: Final = 4096
_WAIT_S: Final = 300


def _requests(keys: Sequence[str]) -> list[Sequence[str]]:
    return [keys[at : at + DELETED_KEYS] for at in range(0, len(keys), DELETED_KEYS)]


async def _delete(publisher: Publisher, project: str, keys: Sequence[str]) -> None:
    request_id = await publisher.delete_many(project, keys)
    await publisher.wait(request_id, timeout_s=_WAIT_S)
    outcomes = publisher.delete_outcomes(request_id)
    if not all(isinstance(outcomes[key], ObjectDeleted) for key in keys):
        raise BenchError("an object was not deleted")


def _delete_objects(client: Any, bucket: str, project: str, keys: Sequence[str]) -> float:
    """Seconds that the loop takes."""
    began_s = time.perf_counter()
    for some in _requests(keys):
        objects = [{"Key": f"{project}/{key}"} for key in some]
        client.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
    return time.perf_counter() - began_s


async def measure(deployment: Deployment, scratch: Path, *, count: int, rounds: int) -> list[Row]:
    """All requests at once, to one control worker.

    Raises:
        BenchError: an object was not deleted.
    """
    keys = [key_of(number) for number in range(count)]
    client = s3_client(deployment)
    walls_s, beside_s, cpu_ms, theirs_s = (list[float]() for _ in range(4))
    async with (
        open_world(deployment) as world,
        worker(deployment.worker_env(), scratch / "deletes.log", "control") as running,
        Publisher.open(deployment.publisher_settings()) as publisher,
    ):
        # A worker proves nothing before it has known the storage's clock for two leases.
        await world.enroll("first")
        await _delete(publisher, "first", keys[:1])
        for turn in range(rounds):
            ours, plain = f"ours-{turn}", f"plain-{turn}"
            for project in (ours, plain):
                await world.enroll(project)
                await world.load(project, count, _BODY_BYTES)
            began_s, cpu_s = time.perf_counter(), running.cpu_s()
            await asyncio.gather(*(_delete(publisher, ours, some) for some in _requests(keys)))
            walls_s.append(time.perf_counter() - began_s)
            beside_s.append(walls_s[-1] - 2 * LEASE_S)
            cpu_ms.append(1000 * (running.cpu_s() - cpu_s) / count)
            theirs_s.append(
                await asyncio.to_thread(_delete_objects, client, deployment.bucket, plain, keys)
            )
    figure, server = f"{count:,} deletes in {len(_requests(keys))} requests", deployment.s3.kind
    theirs = Spread(tuple(theirs_s))
    return [
        Row(figure, server, "s", Spread(tuple(walls_s)), theirs, _AGAINST),
        Row(f"{figure}, beside the two leases", server, "s", Spread(tuple(beside_s))),
        Row(f"{figure}, CPU", server, "ms/object", Spread(tuple(cpu_ms))),
    ]
