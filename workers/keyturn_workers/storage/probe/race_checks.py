"""The probe's checks with concurrent writers (SPEC 10).

A server may honour a condition one request at a time and still let two of them through
together. In each round exactly one writer may be told that it stored, and its body must
be what stands: one that got an error may not have overwritten it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import PreconditionError
from keyturn_workers.storage.port import Condition, Headers, IfAbsent, IfMatch
from keyturn_workers.storage.probe.protocol import Outcome, ProbeStorage

WRITERS: Final = 8
ROUNDS: Final = 4
# A round in which every writer got an error of the server's shows nothing; it is repeated.
_ROUNDS_AT_MOST: Final = 12
# Large enough that bodies arrive while others are being stored.
_BODY_BYTES: Final = 16 * 2**10
_PLAIN: Final = Headers({})

_Writer = Callable[[bytes], Awaitable[object]]


async def creators(storage: ProbeStorage, key: str) -> Outcome:
    """Many puts with `If-None-Match: *` to one free key."""

    async def begin(round_key: str) -> list[_Writer]:
        return [_putter(storage, round_key, IfAbsent())] * WRITERS

    return await _rounds(storage, key, begin)


async def replacers(storage: ProbeStorage, key: str) -> Outcome:
    """Many puts with `If-Match` on the ETag that all of them have read."""

    async def begin(round_key: str) -> list[_Writer]:
        etag = (await storage.put(round_key, b"before", _PLAIN)).etag
        return [_putter(storage, round_key, IfMatch(etag))] * WRITERS

    return await _rounds(storage, key, begin)


async def completers(storage: ProbeStorage, key: str) -> Outcome:
    """Two completions with `If-None-Match: *` to one free key."""

    async def begin(round_key: str) -> list[_Writer]:
        return [await _completer(storage, round_key, body) for body in map(_body, range(2))]

    return await _rounds(storage, key, begin)


def _putter(storage: ProbeStorage, key: str, condition: Condition) -> _Writer:
    return lambda body: storage.put(key, body, _PLAIN, condition=condition)


async def _completer(storage: ProbeStorage, key: str, body: bytes) -> _Writer:
    upload_id = await storage.create_multipart(key, _PLAIN)
    part = await storage.upload_part(key, upload_id, 1, body)
    return lambda _: storage.complete_multipart(key, upload_id, [part], condition=IfAbsent())


def _body(number: int) -> bytes:
    return b"%04d" % number * (_BODY_BYTES // 4)


async def _rounds(
    storage: ProbeStorage, key: str, begin: Callable[[str], Awaitable[list[_Writer]]]
) -> Outcome:
    """Let the writers loose on a fresh key a round."""
    decided = 0
    for number in range(_ROUNDS_AT_MOST):
        round_key = f"{key}-{number}"
        writers = await begin(round_key)
        bodies = [_body(at) for at in range(len(writers))]
        told = await asyncio.gather(
            *(_stored(writer(body)) for writer, body in zip(writers, bodies, strict=True))
        )
        winners = [body for body, stored in zip(bodies, told, strict=True) if stored]
        if len(winners) > 1:
            said = f"{len(winners)} of {len(writers)} writers were told that they stored"
            return Outcome(ok=False, said=said)
        if not winners:
            continue
        if (await storage.read(round_key))[1] != winners[0]:
            return Outcome(ok=False, said="another body stands than the one told stored")
        decided += 1
        if decided == ROUNDS:
            return Outcome(ok=True, said=f"one of {len(writers)} stored, {ROUNDS} rounds")
    return Outcome(ok=False, said="hardly any writer was told that it stored")


async def _stored(write: Awaitable[object]) -> bool:
    try:
        await write
    except (PreconditionError, StorageUnavailableError):
        return False
    return True
