"""The probe's checks with concurrent writers (SPEC 10).

A server may honor a condition for one request at a time and still let two concurrent ones
through. In each round exactly one writer may succeed, and its body must be the one stored: a
writer that got an error must not have overwritten it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import repeat
from typing import Final

from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.errors import PreconditionError
from keyturn_workers.core.storage_values import Condition, Headers, IfAbsent, IfMatch
from keyturn_workers.storage.probe.protocol import Outcome, ProbeStorage, is_not_implemented

WRITERS: Final = 8
ROUNDS: Final = 4
# A completion takes a server several steps, and others seldom fit between them.
COMPLETION_ROUNDS: Final = 16
# A round in which every writer got a server error proves nothing, and is repeated.
_MAX_TRIES: Final = 3
# On some servers the losers of a round wait for a second.
_AT_ONCE: Final = 2
# Large enough for bodies to arrive while others are being stored.
_BODY_BYTES: Final = 16 * 2**10
_PLAIN: Final = Headers({})

_Writer = Callable[[bytes], Awaitable[object]]


async def concurrent_creates(storage: ProbeStorage, key: str) -> Outcome:
    """Run many puts with `If-None-Match: *` to one unused key."""

    async def begin(round_key: str) -> list[_Writer]:
        return [_putter(storage, round_key, IfAbsent())] * WRITERS

    return await _rounds(storage, key, begin)


async def concurrent_replaces(storage: ProbeStorage, key: str) -> Outcome:
    """Run many puts with `If-Match` on the ETag that all of them have read."""

    async def begin(round_key: str) -> list[_Writer]:
        etag = (await storage.put(round_key, b"before", _PLAIN)).etag
        return [_putter(storage, round_key, IfMatch(etag))] * WRITERS

    return await _rounds(storage, key, begin)


async def concurrent_completions(storage: ProbeStorage, key: str) -> Outcome:
    """Run many completions with `If-None-Match: *` to one unused key."""

    async def begin(round_key: str) -> list[_Writer]:
        bodies = map(_body, range(WRITERS))
        return await asyncio.gather(*(_completer(storage, round_key, body) for body in bodies))

    return await _rounds(storage, key, begin, COMPLETION_ROUNDS)


def _putter(storage: ProbeStorage, key: str, condition: Condition) -> _Writer:
    return lambda body: storage.put(key, body, _PLAIN, condition=condition)


async def _completer(storage: ProbeStorage, key: str, body: bytes) -> _Writer:
    upload_id = await storage.create_multipart(key, _PLAIN)
    part = await storage.upload_part(key, upload_id, 1, body)
    return lambda _: storage.complete_multipart(key, upload_id, [part], condition=IfAbsent())


def _body(number: int) -> bytes:
    return b"%04d" % number * (_BODY_BYTES // 4)


async def _rounds(
    storage: ProbeStorage,
    key: str,
    begin: Callable[[str], Awaitable[list[_Writer]]],
    wanted: int = ROUNDS,
) -> Outcome:
    """Run the writers concurrently, on a new key in each round."""
    decided = 0
    failures: list[StorageUnavailableError] = []
    for first in range(0, _MAX_TRIES * wanted, _AT_ONCE):
        keys = [f"{key}-{first + number}" for number in range(_AT_ONCE)]
        rounds = await asyncio.gather(*map(begin, keys))
        outcomes = await asyncio.gather(
            *map(_round, repeat(storage), keys, rounds, repeat(failures))
        )
        for outcome in outcomes:
            if outcome is not None and not outcome.ok:
                return outcome
            decided += outcome is not None
        if decided >= wanted:
            writers = len(rounds[0])
            return Outcome(ok=True, detail=f"one of {writers} stored, {wanted} rounds")
    undecided = any(not is_not_implemented(failure) for failure in failures)
    return Outcome(ok=False, detail="hardly any writer succeeded", undecided=undecided)


async def _round(
    storage: ProbeStorage,
    round_key: str,
    writers: Sequence[_Writer],
    failures: list[StorageUnavailableError],
) -> Outcome | None:
    """Run one round; None if no writer succeeded, which decides nothing.

    `failures` receives the errors of the storage itself.
    """
    bodies = [_body(at) for at in range(len(writers))]
    stored = await asyncio.gather(
        *(_succeeds(writer(body), failures) for writer, body in zip(writers, bodies, strict=True))
    )
    winners = [body for body, won in zip(bodies, stored, strict=True) if won]
    if not winners:
        return None
    if len(winners) > 1:
        return Outcome(ok=False, detail=f"{len(winners)} of {len(writers)} writers succeeded")
    if (await storage.read(round_key))[1] != winners[0]:
        return Outcome(ok=False, detail="the stored body is not the winner's")
    return Outcome(ok=True, detail="one stored")


async def _succeeds(write: Awaitable[object], failures: list[StorageUnavailableError]) -> bool:
    try:
        await write
    except PreconditionError:
        return False
    except StorageUnavailableError as exc:
        failures.append(exc)
        return False
    return True
