"""Bodies, by every reader of them: the same verdict from each, and never another plaintext.

The first byte selects what the rest is: a sealed message itself, or a program that cuts,
swaps, doubles and flips a good one, chunk by chunk. The next two say how a stream is cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyturn.crypto import (
    BODY_CONTEXT,
    CHUNK_BYTES,
    HEADER_BYTES,
    SEALED_CHUNK_BYTES,
    ChunkReader,
    Opener,
    SealError,
    open_sealed,
    plaintext_size,
    seal,
)
from keyturn.errors import CodedError
from keyturn_workers.pipeline.ingest.v0 import open_object
from tests.fuzz.harness import Harness, check, code_of, same_each_time
from tests.unit.keyturn_workers.pipeline.ingest.v0_objects import V0_KEK, v0_metadata, v0_seal

if TYPE_CHECKING:
    from collections.abc import Iterator

_KEY: Final = bytes(range(32))
_OTHER_KEY: Final = bytes(range(1, 33))
_PLAIN: Final = bytes(range(251)) * (2 * CHUNK_BYTES // 251 + 1)
_SALT: Final = bytes(24)
_SIZES: Final = (0, 1, 100, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 100)
_MESSAGES: Final = {size: seal(_KEY, BODY_CONTEXT, _PLAIN[:size], salt=_SALT) for size in _SIZES}
_FOREIGN: Final = seal(_OTHER_KEY, BODY_CONTEXT, _PLAIN, salt=_SALT)
with same_each_time():
    _V0: Final = v0_seal(_KEY, _PLAIN[:5000])
    _V0_METADATA: Final = v0_metadata(user=_KEY, admin=_KEY)
_STEP_BYTES: Final = 4


def run_sealed(data: bytes) -> str:
    """Open it whole, as a stream and by the chunk."""
    if len(data) < 3:
        return "too short"
    sealed = data[3:] if data[0] % 2 == 0 else _programmed(data[3:])
    plaintext = _whole(sealed)
    check(
        _streamed(sealed, data[1], data[2]) == plaintext, "a stream opens otherwise than the whole"
    )
    check(_by_chunk(sealed) == plaintext, "chunks open otherwise than the whole")
    if plaintext is None:
        return "refused"
    check(sealed == _MESSAGES.get(len(plaintext)), "bytes that were never sealed were opened")
    check(plaintext == _PLAIN[: len(plaintext)], "another plaintext")
    return "opened"


def _whole(sealed: bytes) -> bytes | None:
    try:
        return open_sealed(_KEY, BODY_CONTEXT, sealed)
    except SealError:
        return None


def _streamed(sealed: bytes, first: int, step: int) -> bytes | None:
    given = bytearray()
    try:
        opener = Opener(_KEY, BODY_CONTEXT, sealed[:HEADER_BYTES])
        for piece in _cut(sealed[HEADER_BYTES:], first, step):
            given += opener.update(piece)
            check(given == _PLAIN[: len(given)], "a piece that is not the plaintext's")
        given += opener.finish()
    except SealError:
        return None
    return bytes(given)


def _cut(data: bytes, first: int, step: int) -> Iterator[bytes]:
    size = 1 + step * 97
    yield data[:first]
    for at in range(first, len(data), size):
        yield data[at : at + size]


def _by_chunk(sealed: bytes) -> bytes | None:
    """The last chunk first, as the gateway does, then all the others at once."""
    try:
        reader = ChunkReader(_KEY, BODY_CONTEXT, sealed[:HEADER_BYTES])
        size = plaintext_size(len(sealed))
        last = size // CHUNK_BYTES
        at = HEADER_BYTES + last * SEALED_CHUNK_BYTES
        tail = reader.open_chunk(last, sealed[at:], last=True)
        found = bytes(reader.open_chunks(0, sealed[HEADER_BYTES:at])) + tail
        for index in range(last):
            start = HEADER_BYTES + index * SEALED_CHUNK_BYTES
            chunk = reader.open_chunk(index, sealed[start : start + SEALED_CHUNK_BYTES], last=False)
            check(chunk == _PLAIN[index * CHUNK_BYTES :][:CHUNK_BYTES], "a chunk of another place")
            _check_refused(reader, index, sealed[start : start + SEALED_CHUNK_BYTES], last=True)
        _check_refused(reader, last, sealed[at:], last=False)
    except SealError:
        return None
    return found


def _check_refused(reader: ChunkReader, index: int, chunk: bytes, *, last: bool) -> None:
    try:
        reader.open_chunk(index, chunk, last=last)
    except SealError:
        return
    check(right=False, what="a chunk that opens as what it is not")


def _programmed(program: bytes) -> bytes:
    """A good message, changed step by step: what to do, which chunk, and a number."""
    size = _SIZES[program[0] % len(_SIZES)] if program else 0
    pieces = _pieces(_MESSAGES[size])
    for at in range(1, len(program) - _STEP_BYTES + 1, _STEP_BYTES):
        what, which, high, low = program[at : at + _STEP_BYTES]
        _step(pieces, what % 8, which, high * 256 + low)
        if sum(map(len, pieces)) > 8 * SEALED_CHUNK_BYTES:
            break
    return b"".join(pieces)


def _pieces(message: bytes) -> list[bytes]:
    body = range(HEADER_BYTES, len(message), SEALED_CHUNK_BYTES)
    return [message[:HEADER_BYTES], *(message[at : at + SEALED_CHUNK_BYTES] for at in body)]


def _step(pieces: list[bytes], what: int, which: int, number: int) -> None:
    if not pieces:
        return
    at = which % len(pieces)
    piece = pieces[at]
    match what:
        case 0 if piece:
            place = number % len(piece)
            flipped = piece[place] ^ (1 << which % 8)
            pieces[at] = piece[:place] + bytes([flipped]) + piece[place + 1 :]
        case 1:
            other = number % len(pieces)
            pieces[at], pieces[other] = pieces[other], piece
        case 2:
            pieces.insert(number % (len(pieces) + 1), piece)
        case 3:
            del pieces[at]
        case 4:
            pieces[at] = piece[: number % (len(piece) + 1)]
        case 5:
            pieces[at] = piece + bytes(number % 64)
        case 6:
            foreign = _pieces(_FOREIGN)
            pieces[at] = foreign[number % len(foreign)]
        case 7:
            other_size = _pieces(_MESSAGES[_SIZES[number % len(_SIZES)]])
            pieces[at] = other_size[min(at, len(other_size) - 1)]


def run_v0(data: bytes) -> str:
    """Open an object of the earlier system; its user wrap is the first line."""
    wrap, _, body = data.partition(b"\n")
    metadata = {**_V0_METADATA, "enc-dek-user": wrap.decode("latin-1")}
    try:
        plaintext = open_object(V0_KEK, metadata, body)
    except CodedError as exc:
        return code_of(exc, "corrupt_object", "no_usable_wrap")
    check((body, plaintext) == (_V0, _PLAIN[:5000]), "bytes that were never sealed were opened")
    return "opened"


def _sealed_seeds() -> list[bytes]:
    small = [bytes([0, 56, 5]) + _MESSAGES[size] for size in (0, 1, 100)]
    large = [bytes([0, 200, 255]) + _MESSAGES[2 * CHUNK_BYTES + 100]]
    steps = [bytes([1, 0, 90, size, what, 1, 0, 2]) for size in range(7) for what in range(8)]
    long = bytes([1, 9, 9, 6, 1, 1, 0, 2, 1, 1, 0, 2])
    return [*small, *large, *steps, long, bytes([1, 9, 9, 6])]


def _v0_seeds() -> list[bytes]:
    wrap = _V0_METADATA["enc-dek-user"].encode()
    bodies = (_V0, _V0[:100], v0_seal(_OTHER_KEY, b"x"))
    return [*(wrap + b"\n" + body for body in bodies), b"\n" + _V0]


SEALED: Final = Harness("sealed", run_sealed, _sealed_seeds)
V0: Final = Harness("v0", run_v0, _v0_seeds)
