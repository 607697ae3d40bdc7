"""One reader of dead letters at a time (SPEC 6.9)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aio_pika.abc import AbstractConnection

from keyturn.topology import DEAD_LOCK
from keyturn_workers.amqp.locks import broker_lock
from keyturn_workers.dead_letters.errors import LockedError

LOCK_TIMEOUT_S: Final = 120.0
_LOCK_RETRY_S: Final = 0.1


@asynccontextmanager
async def exclusive(
    connection: AbstractConnection, timeout_s: float = LOCK_TIMEOUT_S
) -> AsyncIterator[None]:
    """Lock the dead letters against workers, commands and consoles.

    While one reads the letters, the queues look empty to the others.

    Raises:
        LockedError: the lock was not free in time.
    """
    for _ in range(max(1, round(timeout_s / _LOCK_RETRY_S))):
        async with broker_lock(connection, DEAD_LOCK) as acquired:
            if acquired:
                yield
                return
        await asyncio.sleep(_LOCK_RETRY_S)
    raise LockedError(
        "a worker, a console or another command is reading the dead letters; try again later"
    )
