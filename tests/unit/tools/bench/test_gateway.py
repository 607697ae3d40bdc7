"""The gateway's bench: its arithmetic, and a client that must not count a bad answer."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tools.bench.__main__ import _arguments, _measurements
from tools.bench.gateway import downloads, first_bytes, keyrings, listings, opening, typescript
from tools.bench.gateway.load_client import LoadClientError, Target, do
from tools.bench.processes import BenchError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def test_gateway_selects_its_four_parts() -> None:
    given = _arguments(["--only", "gateway,sealing"])
    assert [part for part in given.only if part.startswith("gateway-")] == [
        "gateway-large",
        "gateway-first",
        "gateway-bodies",
        "gateway-small",
    ]
    assert "gateway" not in given.only


def test_first_bytes_are_compared_round_by_round_in_milliseconds() -> None:
    rounds = [[[0.002, 0.004], [0.001, 0.002]], [[0.006, 0.006], [0.006, 0.006]]]
    median, p95 = first_bytes.rows("ceph", "4 KiB", rounds)
    assert median.ours.values == pytest.approx((3.0, 6.0))
    assert median.ratios is not None
    assert median.ratios.values == pytest.approx((0.5, 1.0))
    assert median.against == "the storage itself"
    assert p95.ours.values == pytest.approx((3.9, 6.0))


def test_three_sides_are_two_comparisons() -> None:
    one = [[0.002, 0.002], [0.001, 0.001], [0.004, 0.004]]
    report = [
        (row.against, row.ratios and row.ratios.median) for row in first_bytes.rows("c", "n", [one])
    ]
    assert report[:2] == [
        ("the same server, passing stored bytes", 0.5),
        ("the storage itself", 2.0),
    ]


def test_a_download_is_held_against_its_aim_where_it_has_one() -> None:
    found = downloads.Rounds(
        ours=downloads.Side([80.0], [2.0]),
        passed=downloads.Side([100.0], [1.0]),
        stored=downloads.Side([200.0]),
    )
    rate, cpu, stored = downloads.rows("ceph", "f", found, "MiB/s", "s", cpu_name="CPU")
    assert (rate.met, rate.ratios and rate.ratios.median) == (False, 0.8)
    assert (cpu.met, cpu.ratios and cpu.ratios.median) == (None, 0.5)
    assert (stored.met, stored.ratios and stored.ratios.median) == (None, 0.4)


@asynccontextmanager
async def _answering(answer: bytes) -> AsyncIterator[str]:
    """A server that answers every request so; gives its URL."""
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/k?a=b"
        await asyncio.gather(*serving)  # the client closed all of them


def _job(url: str, what: str, **more: object) -> dict[str, object]:
    target = {"url": url, "headers": {"range": "bytes=0-1"}}
    return {"what": what, "targets": [target], **more}


async def test_the_client_counts_what_was_answered() -> None:
    """Bytes, requests, and the hash of a whole body; warming does not count."""
    async with _answering(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello") as url:
        report = await do(_job(url, "single", hash=True))
        assert (report["size_bytes"], report["sha256"]) == (5, hashlib.sha256(b"hello").hexdigest())
        report = await do(_job(url, "many", count=7, warm=3, concurrency=2))
        assert (report["done"], report["size_bytes"]) == (7, 35)
        report = await do(_job(url, "first", count=3, pause_s=0))
        assert [len(seconds) for seconds in report["seconds"]] == [3]


async def test_a_refusal_is_no_measurement() -> None:
    async with _answering(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n") as url:
        with pytest.raises(LoadClientError):
            await do(_job(url, "single", hash=False))


def test_a_target_is_sent_unchanged() -> None:
    target = Target("http://127.0.0.1:81/a%20b?c=d", {"authorization": "Bearer x"})
    assert target.address == ("127.0.0.1", 81)
    assert target.head == (
        b"GET /a%20b?c=d HTTP/1.1\r\nhost: 127.0.0.1:81\r\nauthorization: Bearer x\r\n\r\n"
    )


def test_keyring_requests_are_a_part_of_their_own_without_the_large_objects() -> None:
    given = _arguments(["--only", "gateway-keyrings"])
    assert [name for name, _ in _measurements(given)] == ["gateway-keyrings on ceph"]


def test_keyring_requests_are_counted_per_period_of_the_cache() -> None:
    assert keyrings.a_period(5, 5 * keyrings.CACHE_S) == 1.0
    # A machine that takes twice as long for them sees twice as many periods.
    assert keyrings.a_period(10, 10 * keyrings.CACHE_S) == 1.0


@pytest.mark.parametrize(
    ("projects", "requests", "met"),
    [(1_000, 1.0, True), (1_000, 1.1, False), (1_001, 2.0, True), (100, 100.0, False)],
)
def test_a_request_for_each_project_misses_the_aim(
    projects: int, requests: float, met: bool
) -> None:
    assert keyrings.row("ceph", projects, [requests]).met is met


def test_listings_are_a_part_of_their_own() -> None:
    given = _arguments(["--only", "listing"])
    assert [name for name, _ in _measurements(given)] == ["listing on ceph"]


def test_a_listing_is_held_against_the_storages_pace_round_by_round() -> None:
    found = listings.Found([2.0, 3.0, 2.0], [1.2, 0.9, 1.2], [4.0, 3.0, 4.0], [0.005] * 3)
    pace, loop, cpu = listings.pace_rows("ceph", 10_000, found)
    assert pace.ratios is not None
    assert pace.ratios.values == pytest.approx((0.6, 0.3, 0.6))
    assert (pace.met, pace.against) == (True, "ListObjectsV2 of the same, same client")
    assert (loop.met, loop.ratios and loop.ratios.median) == (None, 2.0)
    assert cpu.ours.median == 5.0


@pytest.mark.parametrize(("peak_mib", "met"), [(16.0, True), (16.1, False)])
def test_a_listing_that_grows_misses_the_aim(peak_mib: float, *, met: bool) -> None:
    paged = listings.Paged(seconds=4.0, left_mib=1.0, peak_mib=peak_mib)
    pace, left, peak = listings.memory_rows("ceph", 100_000, paged)
    assert (pace.ours.median, left.met, peak.met) == (25_000, True, met)


@pytest.mark.parametrize("keys", [["a"], ["a", "a"], ["b", "a"], ["a", "b", "c"]])
def test_an_incomplete_listing_is_no_measurement(keys: list[str]) -> None:
    listings.check(["a", "b"], 2)
    with pytest.raises(BenchError):
        listings.check(keys, 2)


def test_opening_without_the_gateway_is_a_part_of_its_own() -> None:
    given = _arguments(["--only", "open"])
    assert [name for name, _ in _measurements(given)] == ["open on ceph"]


@pytest.mark.parametrize(("peak_mib", "met"), [(148.0, True), (148.1, False)])
def test_opening_is_held_against_the_stream_round_by_round(peak_mib: float, *, met: bool) -> None:
    found, size_bytes = opening.Found(), 256 * 2**20
    report = {"bytes": size_bytes, "wall_s": 0.5, "cpu_s": 1.0, "peak_mib": peak_mib}
    found.opened.add(report, size_bytes)
    found.streamed.add(report | {"wall_s": 0.25, "cpu_s": 0.5, "peak_mib": 100.0}, size_bytes)
    rate, cpu, memory = opening.rows("ceph", "Node.js", size_bytes, found)
    assert (rate.ours.median, rate.ratios and rate.ratios.median) == (512, 0.5)
    assert (cpu.ratios and cpu.ratios.median, memory.met) == (0.5, met)


def test_an_object_that_was_not_read_whole_is_no_measurement() -> None:
    report = {"bytes": 5, "wall_s": 0.5, "cpu_s": 1.0, "peak_mib": 1.0}
    with pytest.raises(BenchError, match="5 bytes came of 6"):
        opening.Side().add(report, 6)


def test_the_typescript_client_is_a_part_of_its_own() -> None:
    given = _arguments(["--only", "typescript"])
    assert [name for name, _ in _measurements(given)] == ["typescript on ceph"]


@pytest.mark.parametrize(("wall_s", "peak_mib", "met"), [(1.1, 124.0, True), (1.2, 124.1, False)])
def test_the_typescript_client_is_held_against_fetch(
    wall_s: float, peak_mib: float, *, met: bool
) -> None:
    size_bytes, ours, theirs = 2**30, opening.Side(), opening.Side()
    report = {"bytes": size_bytes, "wall_s": 1.0, "cpu_s": 0.5, "peak_mib": 100.0}
    theirs.add(report, size_bytes)
    ours.add(report | {"wall_s": wall_s, "cpu_s": 1.0, "peak_mib": peak_mib}, size_bytes)
    rate, cpu, memory = typescript.rows("ceph", size_bytes, ours, theirs)
    assert (rate.met, memory.met) == (met, met)
    assert cpu.ratios is not None
    assert cpu.ratios.median == 0.5
