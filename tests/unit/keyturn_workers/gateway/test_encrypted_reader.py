"""Encrypted objects as they stream: the right bytes, or true ones and an error (SPEC 3.1, 9.2).

The tests damage what is stored and break connections during a read.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.crypto import BODY_CONTEXT, HEADER_BYTES, SEALED_CHUNK_BYTES, ChunkReader, seal
from keyturn.errors import (
    CodedError,
    CorruptObjectError,
    NotFoundError,
    StorageUnavailableError,
)
from keyturn_workers.core.errors import RefusedError
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.gateway import objects
from keyturn_workers.gateway.objects import START_BYTES, EncryptedReader
from keyturn_workers.gateway.request import Span
from tests.unit.keyturn_workers.factories import deleted
from tests.unit.keyturn_workers.gateway.bench import CHUNK, KEY, TARGET, Bench
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from keyturn_workers.core.storage_port import ObjectStream

SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 16 * CHUNK, 17 * CHUNK + 5)
PLAINTEXT = os.urandom(34 * CHUNK + 9)


@pytest.fixture(autouse=True)
def _no_pauses() -> Iterator[None]:
    """No pauses between resumes. Not a function's fixture, because of Hypothesis."""
    patch = pytest.MonkeyPatch()
    patch.setattr(objects, "_RESUME_PAUSES_S", (0.0, 0.0, 0.0))
    yield
    patch.undo()


async def _failing(bench: Bench, error: type[CodedError], span: Span | None = None) -> bytearray:
    """Return what was read before this error."""
    given = bytearray()
    with pytest.raises(error):
        await bench.read(span, given)
    return given


@pytest.mark.parametrize("size", SIZES)
async def test_reading_all_yields_the_plaintext(size: int) -> None:
    bench = Bench()
    bench.plant_sealed(PLAINTEXT[:size])
    assert await bench.read() == PLAINTEXT[:size]
    assert bench.storage.open_streams == 0
    assert [streamed[:2] for streamed in bench.storage.streamed] == [(0, None)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("start_bytes", [None, HEADER_BYTES, START_BYTES])
async def test_size_and_etag_do_not_depend_on_how_the_object_is_opened(
    size: int, start_bytes: int | None
) -> None:
    bench = Bench()
    body = bench.plant_sealed(PLAINTEXT[:size])
    async with bench.opened(start_bytes) as reader:
        assert isinstance(reader, EncryptedReader)
        assert reader.size_bytes == size
        assert reader.etag == f'"{body[24:56].hex()}"'
        await reader.verify()
        async with aclosing(reader.read_all()) as pieces:
            assert b"".join([bytes(piece) async for piece in pieces]) == PLAINTEXT[:size]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SIZES[1:]), st.data())
def test_any_range_is_that_slice(size: int, data: st.DataObject) -> None:
    borders = [*list(range(0, size, CHUNK)), size - 1]
    near = st.sampled_from(borders) | st.integers(0, size - 1)
    first, last = sorted((data.draw(near), data.draw(near)))

    async def read() -> None:
        bench = Bench()
        bench.plant_sealed(PLAINTEXT[:size])
        span = Span(first, last + 1)
        assert await bench.read(span) == PLAINTEXT[first : last + 1]
        # No more chunks than it lies in, and the last one, which proves the length.
        chunks = last // CHUNK - first // CHUNK + 2
        assert bench.storage.requested_bytes <= HEADER_BYTES + chunks * SEALED_CHUNK_BYTES
        assert bench.storage.open_streams == 0

    asyncio.run(read())


@pytest.mark.parametrize("first", [0, 1, CHUNK, 16 * CHUNK, 33 * CHUNK, len(PLAINTEXT) - 1])
@pytest.mark.parametrize("start_bytes", [HEADER_BYTES, START_BYTES])
async def test_one_byte_costs_the_header_and_two_chunks(first: int, start_bytes: int) -> None:
    bench = Bench()
    bench.plant_sealed(PLAINTEXT)
    if start_bytes == START_BYTES and first >= CHUNK:
        return  # the first chunk is read along only where it is wanted
    async with bench.opened(start_bytes) as reader:
        await reader.verify()
        given = b"".join([bytes(p) async for p in reader.read_range(Span(first, first + 1))])
    assert given == PLAINTEXT[first : first + 1]
    assert bench.storage.requested_bytes <= HEADER_BYTES + 2 * SEALED_CHUNK_BYTES


async def test_verifying_twice_reads_once() -> None:
    bench = Bench()
    bench.plant_sealed(PLAINTEXT)
    async with bench.opened(HEADER_BYTES) as reader:
        await reader.verify()
        await reader.verify()
    assert len(bench.storage.streamed) == 1


async def test_a_range_of_an_unverified_object_is_a_programming_error() -> None:
    bench = Bench()
    bench.plant_sealed(PLAINTEXT)
    async with bench.opened(HEADER_BYTES) as reader:
        with pytest.raises(RuntimeError, match="verify"):
            await anext(reader.read_range(Span(0, 1)))


def _flips(size: int) -> list[int]:
    """Return one offset of every kind: header, chunks, tags, the last chunk."""
    stored = HEADER_BYTES + size + (size // CHUNK + 1) * 16
    places = {0, 23, 24, 55, 56, 57, stored - 1, stored - 16, stored - 17}
    for chunk in (1, 16, size // CHUNK):
        edge = HEADER_BYTES + chunk * SEALED_CHUNK_BYTES
        places |= {edge - 17, edge - 16, edge - 1, edge, edge + 1}
    return sorted(place for place in places if 0 <= place < stored)


@pytest.mark.parametrize("size", [0, 1, CHUNK, 17 * CHUNK + 5])
async def test_any_flipped_byte_is_detected_and_only_true_bytes_come_before(size: int) -> None:
    bench = Bench()
    body = bench.plant_sealed(PLAINTEXT[:size])
    metadata = dict((await bench.storage.head(TARGET)).metadata)
    for at in _flips(size):
        changed = bytearray(body)
        changed[at] ^= 1
        bench.plant(metadata, bytes(changed))
        given = await _failing(bench, CorruptObjectError)
        assert PLAINTEXT.startswith(bytes(given))
        assert len(given) < max(size, 1)
        if at >= HEADER_BYTES:  # nothing of the chunk that fails
            assert len(given) <= (at - HEADER_BYTES) // SEALED_CHUNK_BYTES * CHUNK


@pytest.mark.parametrize("size", [0, 1, CHUNK, 2 * CHUNK, 17 * CHUNK + 5])
async def test_any_truncation_or_extension_is_detected_and_the_last_piece_held_back(
    size: int,
) -> None:
    """A body truncated between chunks has only authentic ones: only its end shows it."""
    bench = Bench()
    body = bench.plant_sealed(PLAINTEXT[:size])
    metadata = dict((await bench.storage.head(TARGET)).metadata)
    cuts = {0, 55, 56, 71, 72, len(body) - 1, len(body) - 16, len(body) - 17}
    cuts |= {HEADER_BYTES + n * SEALED_CHUNK_BYTES for n in range(size // CHUNK + 1)}
    changed = [body[:cut] for cut in cuts if 0 <= cut < len(body)]
    changed += [body + b"\0", body + bytes(SEALED_CHUNK_BYTES), body + body[HEADER_BYTES:]]
    for each in changed:
        bench.plant(metadata, each)
        given = await _failing(bench, CorruptObjectError)
        assert PLAINTEXT.startswith(bytes(given))
        chunks = max(len(each) - HEADER_BYTES, 0) // SEALED_CHUNK_BYTES
        assert len(given) <= max(chunks - 1, 0) * CHUNK
        assert len(given) < max(size, 1)


@pytest.mark.parametrize("size", [16 * CHUNK, 32 * CHUNK, 17 * CHUNK + 5])
async def test_the_last_piece_is_yielded_only_after_the_end_has_authenticated(size: int) -> None:
    """Broken variant: a `read_all` that yields each piece at once can reach the full length."""
    bench = Bench()
    body = bytearray(bench.plant_sealed(PLAINTEXT[:size]))
    metadata = dict((await bench.storage.head(TARGET)).metadata)
    body[-1] ^= 1  # the tag of the last chunk, which may be all that it is
    bench.plant(metadata, bytes(body))
    given = await _failing(bench, CorruptObjectError)
    assert 0 < len(given) < size


@pytest.mark.parametrize("size", [1, CHUNK, 17 * CHUNK + 5])
async def test_verify_fails_if_the_last_chunk_does_not_open(size: int) -> None:
    bench = Bench()
    body = bench.plant_sealed(PLAINTEXT[:size])
    metadata = dict((await bench.storage.head(TARGET)).metadata)
    full = size // CHUNK
    for changed in (
        body[: HEADER_BYTES + full * SEALED_CHUNK_BYTES + 16],
        body[:-1],
        body + bytes(1),
        body[:-1] + bytes([body[-1] ^ 1]),
    ):
        if changed == body:
            continue
        bench.plant(metadata, changed)
        for start_bytes in (HEADER_BYTES, START_BYTES):
            with pytest.raises(CorruptObjectError):
                async with bench.opened(start_bytes) as reader:
                    await reader.verify()


async def test_moved_and_foreign_chunks_are_detected() -> None:
    bench = Bench()
    size = 3 * CHUNK + 7
    other = bench.plant_sealed(PLAINTEXT[:size])
    body = bench.plant_sealed(PLAINTEXT[:size])
    metadata = dict((await bench.storage.head(TARGET)).metadata)
    chunks = [
        body[at : at + SEALED_CHUNK_BYTES]
        for at in range(HEADER_BYTES, len(body), SEALED_CHUNK_BYTES)
    ]
    for order in ((1, 0, 2, 3), (0, 0, 2, 3), (0, 2, 3), (1, 2, 3), (0, 1, 2, 2, 3), (0, 1, 2)):
        bench.plant(metadata, body[:HEADER_BYTES] + b"".join(chunks[index] for index in order))
        assert PLAINTEXT.startswith(bytes(await _failing(bench, CorruptObjectError)))
    bench.plant(metadata, body[:HEADER_BYTES] + other[HEADER_BYTES:])
    assert await _failing(bench, CorruptObjectError) == b""


# Connections that break.


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 17 * SEALED_CHUNK_BYTES), min_size=1, max_size=3),
    st.sampled_from([CHUNK, 17 * CHUNK + 5, 33 * CHUNK]),
)
def test_a_read_resumes_wherever_its_connection_breaks(breaks: list[int], size: int) -> None:
    async def read() -> None:
        bench = Bench()
        bench.plant_sealed(PLAINTEXT[:size])
        # The first stream gives a header at least: what breaks before is a refused open.
        bench.storage.breaks = [HEADER_BYTES + breaks[0], *breaks[1:]]
        assert await bench.read() == PLAINTEXT[:size]
        assert bench.storage.open_streams == 0
        # No byte is requested twice, and none is left out.
        for start, length, _ in bench.storage.streamed[1:]:
            assert length is not None
            assert start + length == (await bench.storage.head(TARGET)).size_bytes

    asyncio.run(read())


@pytest.mark.parametrize("span", [Span(0, 20 * CHUNK), Span(5, 33 * CHUNK + 3)])
async def test_a_range_resumes_too(span: Span) -> None:
    bench = Bench()
    bench.plant_sealed(PLAINTEXT)
    bench.storage.breaks = [3, 7, None, 2 * SEALED_CHUNK_BYTES + 11]
    assert await bench.read(span) == PLAINTEXT[span.first : span.end]


async def test_a_read_fails_after_three_resumes_without_progress() -> None:
    bench = Bench()
    bench.plant_sealed(PLAINTEXT)
    bench.storage.breaks = [HEADER_BYTES + 16 * SEALED_CHUNK_BYTES, 0, 0, 0]
    given = await _failing(bench, StorageUnavailableError)
    assert PLAINTEXT.startswith(bytes(given))
    assert len(bench.storage.streamed) == 4
    assert bench.storage.open_streams == 0


async def test_pauses_between_resumes_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    monkeypatch.undo()
    real_sleep = asyncio.sleep

    async def sleep(delay: float, *more: Any) -> None:
        if delay:
            pauses.append(delay)
        await real_sleep(0, *more)

    monkeypatch.setattr(objects, "_RESUME_PAUSES_S", (0.05, 0.3, 1.0))
    monkeypatch.setattr(asyncio, "sleep", sleep)
    bench = Bench()
    bench.plant_sealed(PLAINTEXT)
    bench.storage.breaks = [HEADER_BYTES, 0, 0]
    assert await bench.read() == PLAINTEXT
    assert pauses == [0.05, 0.3, 1.0]


async def test_a_storage_failure_is_raised_before_the_first_byte() -> None:
    bench = Bench()
    bench.plant_sealed(PLAINTEXT)
    bench.storage.fail_next("stream", StorageUnavailableError("down"))
    assert await _failing(bench, StorageUnavailableError) == b""
    bench.storage.fail_next("read_start", RefusedError("read: AccessDenied"))
    assert await _failing(bench, StorageUnavailableError, Span(0, 1)) == b""


async def _read_while(bench: Bench, happens: Any) -> tuple[bytearray, BaseException | None]:
    """Read, and run `happens` after the first connection has broken."""
    bench.storage.breaks = [HEADER_BYTES + 17 * SEALED_CHUNK_BYTES]
    given = bytearray()
    caller = await bench.authenticate()
    async with bench.opener.open(caller, KEY, start_bytes=None) as reader:
        bench.storage.before_next("stream", happens)
        try:
            async for piece in reader.read_all():
                given += piece
        except CodedError as exc:
            return given, exc
    return given, None


async def test_an_object_replaced_during_a_read_is_never_mixed_with_the_new_one() -> None:
    bench = Bench()
    bench.plant_sealed(PLAINTEXT)
    other = os.urandom(len(PLAINTEXT))

    async def replace() -> None:
        bench.plant_sealed(other)

    given, error = await _read_while(bench, replace)
    assert isinstance(error, CorruptObjectError)
    assert PLAINTEXT.startswith(bytes(given))


async def test_an_object_rewrapped_during_a_read_is_read_to_its_end() -> None:
    bench = Bench()
    body = bench.plant_sealed(PLAINTEXT)

    async def rewrap() -> None:
        bench.plant({"enc-algo": "Cobblestone-256", "turned": "yes"}, body)

    given, error = await _read_while(bench, rewrap)
    assert error is None
    assert given == PLAINTEXT


async def test_an_object_deleted_or_truncated_during_a_read_ends_it() -> None:
    for removal, expected in (("delete", NotFoundError), ("tombstone", StorageUnavailableError)):
        bench = Bench()
        bench.plant_sealed(PLAINTEXT)

        async def happens(bench: Bench = bench, removal: str = removal) -> None:
            if removal == "delete":
                await bench.storage.delete(TARGET)
            else:
                bench.plant(deleted(bench.desired, KEY), b"")

        given, error = await _read_while(bench, happens)
        assert isinstance(error, expected)
        assert len(given) < len(PLAINTEXT)
        assert PLAINTEXT.startswith(bytes(given))


async def test_an_object_replaced_after_verify_is_never_mixed() -> None:
    bench = Bench()
    bench.plant_sealed(PLAINTEXT)
    async with bench.opened(HEADER_BYTES) as reader:
        await reader.verify()
        bench.plant_sealed(os.urandom(len(PLAINTEXT)))
        with pytest.raises(CorruptObjectError):
            await anext(reader.read_range(Span(CHUNK, 2 * CHUNK)))


async def test_closing_a_reader_closes_the_storages_connection() -> None:
    bench = Bench()
    bench.plant_sealed(PLAINTEXT)
    async with bench.opened() as reader, aclosing(reader.read_all()) as pieces:
        await anext(pieces)
        assert bench.storage.open_streams == 1
    assert bench.storage.open_streams == 0
    assert bench.storage.given_bytes < len(PLAINTEXT)


async def test_repr_shows_no_key_and_no_plaintext() -> None:
    bench = Bench()
    bench.plant_sealed(b"a secret plaintext")
    async with bench.opened() as reader:
        await reader.verify()
        shown = repr(reader)
    assert "secret" not in shown
    assert "first_bytes=" not in shown


# A short range is fetched while the size is verified, and yielded only after that.

DEK = bytes(32)
LONG = os.urandom(40 * CHUNK + 5)
MIDDLE = 20 * CHUNK


class WatchedStorage(MemoryStorage):
    """Counts open reads, and delays them until `together` are open."""

    def __init__(self) -> None:
        super().__init__()
        self.requested: list[tuple[int, int | None]] = []
        self.together = 1
        self._open = 0
        self._enough = asyncio.Event()
        self.fails_at: int | None = None

    @asynccontextmanager
    async def stream(self, key: str, **options: Any) -> AsyncIterator[ObjectStream]:
        self.requested.append((options["start"], options["length_bytes"]))
        self._open += 1
        if self._open >= self.together:
            self._enough.set()
        try:
            await self._enough.wait()
            if options["start"] == self.fails_at:
                raise StorageUnavailableError("stream: gone")
            async with super().stream(key, **options) as stream:
                yield stream
        finally:
            self._open -= 1


async def _sealed(
    storage: WatchedStorage, *, sealed: bytes = b"", start_bytes: int = 0
) -> EncryptedReader:
    body = sealed or seal(DEK, BODY_CONTEXT, LONG)
    await storage.put(TARGET, body, Headers({}))
    head, start = await storage.read_start(TARGET, start_bytes or HEADER_BYTES)
    reader = ChunkReader(DEK, BODY_CONTEXT, start[:HEADER_BYTES])
    return EncryptedReader(storage, TARGET, head, start, reader, len(LONG))


async def _read(reader: EncryptedReader, span: Span) -> bytes:
    return b"".join([bytes(piece) async for piece in reader.read_range(span)])


async def test_a_short_range_is_fetched_while_the_size_is_verified() -> None:
    """Neither waits for the other, and the range is not read again."""
    storage = WatchedStorage()
    storage.together = 2
    reader = await _sealed(storage)
    span = Span(MIDDLE, MIDDLE + 1)
    async with asyncio.timeout(10):
        await reader.verify(span)
    assert await _read(reader, span) == LONG[MIDDLE : MIDDLE + 1]
    offset = HEADER_BYTES + 20 * SEALED_CHUNK_BYTES
    assert (offset, SEALED_CHUNK_BYTES) in storage.requested
    assert len(storage.requested) == 2


@pytest.mark.parametrize("start_bytes", [HEADER_BYTES, START_BYTES])
@pytest.mark.parametrize(
    "span",
    [
        Span(0, 1),
        Span(0, 3 * CHUNK),
        Span(CHUNK - 1, CHUNK + 1),
        Span(MIDDLE + 7, MIDDLE + 16 * CHUNK),
        Span(MIDDLE + 7, MIDDLE + 17 * CHUNK),
        Span(39 * CHUNK, len(LONG)),
        Span(40 * CHUNK, len(LONG)),
        Span(0, len(LONG)),
    ],
)
async def test_every_prefetched_range_is_its_bytes(span: Span, start_bytes: int) -> None:
    reader = await _sealed(WatchedStorage(), start_bytes=start_bytes)
    await reader.verify(span)
    assert await _read(reader, span) == LONG[span.first : span.end]


async def test_a_prefetched_range_is_not_used_for_another_one() -> None:
    """Another range of the same object is fetched."""
    reader = await _sealed(WatchedStorage())
    await reader.verify(Span(MIDDLE, MIDDLE + 1))
    assert await _read(reader, Span(CHUNK, CHUNK + 9)) == LONG[CHUNK:][:9]


async def test_a_long_range_is_not_prefetched() -> None:
    """It would be in memory as a whole."""
    storage = WatchedStorage()
    reader = await _sealed(storage)
    await reader.verify(Span(0, 17 * CHUNK))
    assert len(storage.requested) == 1


async def test_nothing_of_an_unverified_object_is_yielded() -> None:
    """The prefetched range is authentic by itself; the object is refused all the same."""
    body = bytearray(seal(DEK, BODY_CONTEXT, LONG))
    body[-1] ^= 1
    reader = await _sealed(WatchedStorage(), sealed=bytes(body))
    span = Span(MIDDLE, MIDDLE + 1)
    with pytest.raises(CorruptObjectError):
        await reader.verify(span)
    with pytest.raises(RuntimeError):
        await _read(reader, span)


async def test_a_prefetched_chunk_is_authenticated_like_any_other() -> None:
    body = bytearray(seal(DEK, BODY_CONTEXT, LONG))
    body[HEADER_BYTES + 20 * SEALED_CHUNK_BYTES] ^= 1
    reader = await _sealed(WatchedStorage(), sealed=bytes(body))
    span = Span(MIDDLE, MIDDLE + 1)
    await reader.verify(span)
    with pytest.raises(CorruptObjectError):
        await _read(reader, span)


@pytest.mark.parametrize("index", [20, 40])
async def test_a_failed_read_is_raised_unwrapped(
    index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the two fails, the other is canceled."""
    monkeypatch.setattr("keyturn_workers.gateway.objects._RESUMES", 0)
    storage = WatchedStorage()
    storage.together = 2
    storage.fails_at = HEADER_BYTES + index * SEALED_CHUNK_BYTES
    reader = await _sealed(storage)
    with pytest.raises(StorageUnavailableError, match="gone"):
        await reader.verify(Span(MIDDLE, MIDDLE + 1))
    assert asyncio.all_tasks() == {asyncio.current_task()}
