"""The bench's arithmetic of rotations, and its proxy: a wrong sum there would be believed."""

from __future__ import annotations

import asyncio
import io
import os
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from keyturn.crypto import BODY_CONTEXT, open_sealed, seal
from keyturn_workers.sweep import Counts
from tools.bench.__main__ import _arguments
from tools.bench.processes import BenchError
from tools.bench.rotation import pages, scaling, sizes, whole_rotation
from tools.bench.rotation.delay_proxy import Seen, delay_proxy, forwarding
from tools.bench.rotation.passes import Pass, _checked, pages_done
from tools.bench.rotation.reencrypt import Resealed
from tools.bench.rotation.world import key_of, pages_of
from tools.bench.uploads import Rate

pytestmark = pytest.mark.slow

_ID = "2f6c9a0e-0000-4000-8000-000000000000"
_BEGAN = datetime(2026, 11, 24, 10, tzinfo=UTC)


def _line(second: int, changed: int, round_id: str = _ID, event: str = "page done") -> str:
    return (
        f'{{"round":"{round_id}","changed":{changed},"event":"{event}",'
        f'"timestamp":"2026-11-24T10:00:{second:02}.000000Z"}}'
    )


def test_rotation_selects_its_four_parts() -> None:
    assert _arguments(["--only", "rotation"]).only == [
        "rotation-pages",
        "rotation-size",
        "rotation-scaling",
        "rotation-many",
    ]
    given = _arguments(["--only", "sealing,rotation-many", "--objects", "10000,100000"])
    assert (given.only, given.objects) == (["sealing", "rotation-many"], [10_000, 100_000])


@pytest.mark.parametrize("wrong", [["--only", "rotations"], ["--objects", "0"], ["--objects", "x"]])
def test_an_unknown_part_and_a_wrong_number_of_objects_are_usage_errors(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        _arguments(wrong)
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_the_benchs_pages_touch_each_other_and_hold_every_key() -> None:
    keys = [key_of(number) for number in range(5)]
    assert keys == sorted(keys)
    made = pages_of(keys, 2, after="o/")
    assert made == [("o/", keys[1]), (keys[1], keys[3]), (keys[3], keys[4])]


def test_only_pages_of_this_very_round_count_as_done() -> None:
    log = "\n".join(
        [_line(1, 5), _line(2, 5, "another"), _line(3, 5, event="put off"), _line(4, 0)]
    )
    assert pages_done(log, _ID) == 2


def test_a_pass_that_left_something_out_is_no_measurement() -> None:
    done = _checked(2.0, 1.0, Counts(objects=100, rewrapped=100), 100)
    assert (done.per_s, done.cpu_ms) == (50.0, 10.0)
    with pytest.raises(BenchError):
        _checked(2.0, 1.0, Counts(objects=100, rewrapped=99), 99)
    with pytest.raises(BenchError):
        _checked(2.0, 1.0, Counts(objects=100, failed=1), 100)


def test_both_passes_are_compared_with_their_own_loop() -> None:
    found = pages.Rounds(
        written=[Rate(90.0, 2.0)],
        copied=[Rate(100.0, 1.0)],
        proven=[Rate(300.0, 1.0)],
        headed=[Rate(200.0, 2.5)],
    )
    made = pages.rows("ceph", found)
    ratios = [row.ratios.median for row in made if row.ratios is not None]
    assert ratios == [0.9, 0.5, 1.5, 2.5]
    assert [row.met for row in made] == [False, False, True, True]


def test_requests_and_bytes_are_held_against_their_limits() -> None:
    counted = pages.Counted.of(Seen(requests=2100, under=2000, received_bytes=3_072_000), 1000)
    to_it, every, received = pages.wire_rows("ceph", "writing pass", counted, at_most=2)
    assert (to_it.ours.median, to_it.met) == (2.0, True)
    assert (every.ours.median, every.met) == (2.1, None)
    assert (received.ours.median, received.met) == (3.0, False)


def test_workers_are_compared_with_so_many_times_one_while_cores_are_free() -> None:
    found = scaling.Rounds()
    cores = os.cpu_count() or 1
    found.add(1, Pass(100, 1.0, 0.1), scaling.Load(0.2 * cores, 0.1, 0.0, 0.1))
    found.add(2, Pass(150, 1.0, 0.1), scaling.Load(0.5 * cores, 0.2, 0.0, 0.3))
    found.add(4, Pass(160, 1.0, 0.1), scaling.Load(0.99 * cores, 0.4, 0.0, 0.6))
    one, two, four = scaling.rows("ceph", "writing pass", found)
    assert [row.ratios.median for row in (one, two, four) if row.ratios] == [1.0, 0.75, 0.4]
    assert [row.met for row in (one, two, four)] == [True, False, None]
    assert len(scaling.notes("writing pass", found)) == 3


def test_flat_means_the_largest_against_the_smallest() -> None:
    found = {
        4096: sizes.Rounds([0.02], [0.03], [0.01]),
        2**20: sizes.Rounds([0.06], [0.6], [0.05]),
    }
    *_, through, copied, flat = sizes.rows("ceph", found)
    assert through.figure == "rotating an object of 1 MiB"
    assert through.ratios is not None
    assert through.ratios.median == pytest.approx(10)
    assert copied.against == "bare aioboto3 HEAD + self-copy"
    assert flat.ours.median == pytest.approx(3)
    assert flat.theirs is not None
    assert flat.theirs.median == pytest.approx(5)
    assert flat.met is False


def test_rates_are_of_thirds_of_the_objects_that_were_written() -> None:
    # A round that finds another state begins again under another id.
    log = "\n".join([_line(10, 300), _line(15, 0), _line(20, 300, "other"), _line(40, 300)])
    done = whole_rotation.page_times(log, _BEGAN)
    assert done == [(10.0, 300), (20.0, 600), (40.0, 900)]
    assert whole_rotation.thirds(done) == pytest.approx((30.0, 30.0, 15.0))
    # One page alone: as if its objects were done evenly.
    assert whole_rotation.thirds([(30.0, 900)]) == pytest.approx((30.0, 30.0, 30.0))
    with pytest.raises(BenchError):
        whole_rotation.page_times(_line(1, 0), _BEGAN)


def test_memory_is_compared_over_the_numbers_of_objects() -> None:
    small = whole_rotation.Found(60.0, 30.0, (100.0, 100.0, 70.0), 100.0, 120.0, 90.0)
    large = whole_rotation.Found(400.0, 300.0, (100.0, 100.0, 100.0), 100.0, 180.0, 90.0)
    rows = whole_rotation.rows("ceph", {10_000: [small], 100_000: [large]})
    assert rows[-1].ours.median == 1.5
    assert rows[-1].met is False
    even = [row.met for row in rows if "against first" in row.figure]
    assert even == [False, True]
    assert not any(
        "against 10,000" in row.figure for row in whole_rotation.rows("ceph", {10_000: [small]})
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "rotation.rejected"},
        {"clean": False},
        {"objects": 9},
        {"current": 9},
        {"failed": 1},
        {"rewrapped": 9},
    ],
)
def test_only_a_clean_end_with_everything_rewrapped_is_measured(wrong: dict[str, Any]) -> None:
    event = {
        "type": "rotation.completed",
        "clean": True,
        "objects": 10,
        "current": 10,
        "failed": 0,
        "rewrapped": 10,
    }
    whole_rotation.check(event, 10)
    with pytest.raises(BenchError):
        whole_rotation.check(event | wrong, 10)


@pytest.mark.parametrize("size_bytes", [0, 1, 16384, 3 * 2**20 + 5])
def test_a_body_resealed_while_it_is_read_is_the_same_under_the_other_dek(size_bytes: int) -> None:
    plaintext, before, after = os.urandom(size_bytes), os.urandom(32), os.urandom(32)
    source = Resealed(io.BytesIO(seal(before, BODY_CONTEXT, plaintext)), before, after)
    sealed = b"".join(iter(lambda: source.read(100_000), b""))
    assert open_sealed(after, BODY_CONTEXT, sealed) == plaintext


_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine"
_REFUSAL = b"HTTP/1.1 412 No\r\ncontent-length: 4\r\n\r\ngone"
_DELAY_S = 0.05


async def _answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        if b"waits" in line:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await reader.readuntil(b"end")
        writer.write(_REFUSAL if b"refused" in line else _ANSWER)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def _ask(port: int, path: str, times: int, *, method: str = "GET", more: str = "") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(times):
        writer.write(f"{method} {path} HTTP/1.1\r\n{more}".encode())
        await writer.drain()
        writer.write(b"a body in a piece of its own, end")
        answer = await reader.readexactly(len(_ANSWER))
    writer.close()
    await writer.wait_closed()
    return answer


async def test_the_proxy_delays_each_request_and_counts_them() -> None:
    server = await asyncio.start_server(_answering, "127.0.0.1", 0)
    behind = server.sockets[0].getsockname()[1]
    async with (
        server,
        forwarding("127.0.0.1", behind, delay_s=_DELAY_S, under="/b/p/") as (port, way),
    ):
        began = time.perf_counter()
        asking = (*(_ask(port, "/b/p/key", 3) for _ in range(4)), _ask(port, "/b", 1))
        assert set(await asyncio.gather(*asking)) == {_ANSWER}
        took_s = time.perf_counter() - began
    assert way.seen == Seen(requests=13, under=12, received_bytes=13 * len(_ANSWER), reads=12)
    # Three one after another on each connection, and all connections at once.
    assert took_s >= 3 * _DELAY_S


async def test_the_proxy_counts_puts_that_made_something_by_their_target() -> None:
    server = await asyncio.start_server(_answering, "127.0.0.1", 0)
    behind = server.sockets[0].getsockname()[1]
    async with (
        server,
        forwarding("127.0.0.1", behind, delay_s=0.0, under="/b/p/") as (port, way),
    ):
        # One object, signed again for its second put, and another one.
        await _ask(port, "/b/p/key?signature=1", 1, method="PUT")
        await _ask(port, "/b/p/key?signature=2", 1, method="PUT")
        await _ask(port, "/b/p/other", 1, method="PUT")
        # None of these makes an object of the project.
        await _ask(port, "/b/p/key", 2)
        await _ask(port, "/b/q/key", 1, method="PUT")
        await _ask(port, "/b/p/key", 1, method="PUT", more="X-Amz-Copy-Source: /b/p/key\r\n")
    assert (way.seen.created, way.seen.created_again) == (3, 1)
    assert (way.seen.requests, way.seen.reads) == (7, 2)


async def test_a_body_that_waited_for_leave_is_no_request_of_its_own() -> None:
    server = await asyncio.start_server(_answering, "127.0.0.1", 0)
    behind = server.sockets[0].getsockname()[1]
    async with server, forwarding("127.0.0.1", behind, delay_s=0.0, under="/") as (port, way):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(b"PUT /b/p/waits HTTP/1.1\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"a body, end")
            assert await reader.readexactly(len(_ANSWER)) == _ANSWER
        writer.close()
        await writer.wait_closed()
    assert (way.seen.requests, way.seen.created, way.seen.created_again) == (2, 2, 1)


@pytest.mark.parametrize(("at_once", "holds"), [(1, 1), (0, 2)])
async def test_a_limited_proxy_holds_a_request_once_in_however_many_pieces_it_comes(
    at_once: int, holds: int
) -> None:
    """A body that waited for leave is no more work for a server; over a distance it is a way more.

    Otherwise a client that asks for leave would be served half as often as the limit says.
    """
    server = await asyncio.start_server(_answering, "127.0.0.1", 0)
    behind = server.sockets[0].getsockname()[1]
    # Long enough that whatever else this machine does is negligible.
    delay_s = 1.0
    between = forwarding("127.0.0.1", behind, delay_s=delay_s, under="/", at_once=at_once)
    async with server, between as (port, way):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        began = time.perf_counter()
        writer.write(b"PUT /b/p/waits HTTP/1.1\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"a body, end")
        assert await reader.readexactly(len(_ANSWER)) == _ANSWER
        took_s = time.perf_counter() - began
        writer.close()
        await writer.wait_closed()
    assert way.seen.requests == 1
    assert holds * delay_s <= took_s < (holds + 1) * delay_s


async def test_a_put_whose_client_is_gone_is_counted_separately() -> None:
    requested = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        requested.set()
        await reader.read()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    behind = server.sockets[0].getsockname()[1]
    async with server, forwarding("127.0.0.1", behind, delay_s=0.0, under="/") as (port, way):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"PUT /b/p/key HTTP/1.1\r\n")
        async with asyncio.timeout(10):
            await requested.wait()
        writer.close()
        await writer.wait_closed()
    assert (way.seen.created, way.seen.unheard) == (0, 1)


async def test_a_put_that_was_refused_made_nothing() -> None:
    server = await asyncio.start_server(_answering, "127.0.0.1", 0)
    behind = server.sockets[0].getsockname()[1]
    async with server, forwarding("127.0.0.1", behind, delay_s=0.0, under="/") as (port, way):
        assert await _ask(port, "/b/p/refused", 1, method="PUT") == _REFUSAL
    assert (way.seen.under, way.seen.created) == (1, 0)


async def test_the_proxys_delays_can_be_changed_while_it_runs() -> None:
    server = await asyncio.start_server(_answering, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, delay_proxy(url, delay_ms=0, under="/b/p/") as between:
        port = int(between.url.rpartition(":")[2])
        await _ask(port, "/", 1)
        await between.delay(100, under_ms=200)
        took_s = []
        for path in ("/", "/b/p/key"):
            began = time.perf_counter()
            await _ask(port, path, 2)
            took_s.append(time.perf_counter() - began)
        assert took_s[0] >= 0.2
        assert took_s[1] >= 0.6
        # Other delays begin no new count.
        assert (await between.seen()).requests == 5
        assert (await between.seen()).requests == 0


async def test_the_proxy_ends_a_connection_whose_server_cannot_be_reached() -> None:
    closed = await asyncio.start_server(_answering, "127.0.0.1", 0)
    behind = closed.sockets[0].getsockname()[1]
    closed.close()
    await closed.wait_closed()
    async with forwarding("127.0.0.1", behind, delay_s=0.0, under="/") as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_a_limited_proxy_serves_so_many_requests_at_once_and_all_in_the_end() -> None:
    server = await asyncio.start_server(_answering, "127.0.0.1", 0)
    behind = server.sockets[0].getsockname()[1]
    async with (
        server,
        forwarding("127.0.0.1", behind, delay_s=_DELAY_S, under="/", at_once=2) as (port, way),
    ):
        # A client that disconnects while it waits does not use a slot.
        gone = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for _, writer in gone:
            writer.write(b"GET /gone HTTP/1.1\r\n\r\n")
            await writer.drain()
        while way.seen.requests < len(gone):  # noqa: ASYNC110  # a counter sends no events
            await asyncio.sleep(0)
        for _, writer in gone:
            writer.close()
        began = time.perf_counter()
        async with asyncio.timeout(30):
            await asyncio.gather(*(_ask(port, "/key", 2) for _ in range(6)))
        took_s = time.perf_counter() - began
    assert way.seen.under == 12 + len(gone)
    # Twelve requests, two at a time.
    assert took_s >= 6 * _DELAY_S
