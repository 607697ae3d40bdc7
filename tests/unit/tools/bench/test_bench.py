"""The bench's own arithmetic, and its client: a wrong figure there would be believed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import inspect
import json
import os
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyturn.counts import Counts
from tools.bench import against_plain, layers, plain, rotation
from tools.bench.__main__ import _PARTS, Part, _arguments
from tools.bench.figures import (
    WAITING,
    Comparison,
    Rate,
    Results,
    Row,
    Spread,
    number,
    profile_table,
    table,
)
from tools.bench.layers import by_layer, layer_of
from tools.bench.load_client import LoadClientError, Target, do
from tools.bench.processes import BenchError, Traffic
from tools.bench.uploads import Letter, Sample, steady
from tools.harness.world import key_of, pages_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


def _row(ratio: float, **aim: float) -> Row:
    return Row("f", "ceph", "x/s", Spread((ratio,)), Spread((1.0,)), "b", Spread((ratio,)), **aim)


def test_a_spread_shows_its_median_and_range() -> None:
    spread = Spread((3.0, 1.0, 2.0))
    assert spread.as_json() == {"min": 1.0, "median": 2.0, "max": 3.0, "rounds": [3.0, 1.0, 2.0]}
    assert spread.shown() == "2 (1\N{EN DASH}3)"
    with pytest.raises(ValueError, match="no rounds"):
        Spread(())


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (_row(0.65, at_least=0.65), True),
        (_row(0.64, at_least=0.65), False),
        (_row(0.5), None),
        (Row("memory", "ceph", "MiB", Spread((129.0,)), at_most=128), False),
        (Row("memory", "ceph", "MiB", Spread((128.0,)), at_most=128), True),
    ],
)
def test_a_miss_is_a_miss(row: Row, met: bool | None) -> None:
    assert row.met is met
    assert row.as_json()["met"] is met


def test_a_ratio_above_one_always_means_that_ours_is_better() -> None:
    ours, theirs = [Rate(200.0, 1.0), Rate(300.0, 3.0)], [Rate(100.0, 2.0), Rate(100.0, 1.5)]
    compared = Comparison("f", "ceph", "b", ours, theirs)
    throughput, cpu = compared.throughput(2.6), compared.cpu(1.0)
    assert throughput.ratios == Spread((2.0, 3.0))
    assert cpu.ratios == Spread((2.0, 0.5))
    assert (throughput.met, cpu.met) == (False, True)
    assert (throughput.unit, cpu.unit) == ("objects/s", "ms/object")
    with pytest.raises(ValueError, match="zip"):
        Comparison("f", "ceph", "b", ours, theirs[:1]).throughput()


def test_the_table_and_the_json_hold_every_row() -> None:
    results = Results([_row(0.1, at_least=0.65), _row(1.0)], {"ceph": {"crypto": 1.0}}, ["a note"])
    document = json.loads(results.as_json())
    assert [row["met"] for row in document["rows"]] == [False, None]
    assert document["notes"] == ["a note"]
    assert "NO" in "".join(str(cell) for cell in table(results.rows).columns[6].cells)


def test_numbers_are_short() -> None:
    assert [number(n) for n in (12345.6, 99.94, 0.12345)] == ["12,346", "99.9", "0.123"]


def test_start_and_end_of_a_round_do_not_count() -> None:
    samples = [
        Sample(0.0, 1000, 5.0),
        Sample(1.0, 1000, 6.0),  # still starting
        Sample(2.0, 800, 6.5),
        Sample(3.0, 400, 7.0),
        Sample(4.0, 100, 7.3),
        Sample(9.0, 0, 9.0),  # the last few in flight
    ]
    rate = steady(samples, 1000)
    assert rate.per_s == pytest.approx(350)
    assert rate.cpu_ms == pytest.approx(1000 * 0.8 / 700)
    with pytest.raises(ValueError, match="more objects"):
        steady([samples[0], samples[-1]], 1000)


@pytest.mark.parametrize(
    ("stack", "layer"),
    [
        (
            ["/lib/json/decoder.py", "/x/contracts/keyturn/messages.py", "/keyturn_workers/u.py"],
            "validation",
        ),
        (["/lib/aiohttp/client.py", "/x/keyturn_workers/storage/s3_http.py"], "S3: requests"),
        (["/lib/python/threading.py"], "other"),
    ],
)
def test_time_counts_for_the_innermost_layer_that_has_a_name(
    stack: Sequence[str], layer: str
) -> None:
    assert layer_of(stack) == layer


def test_every_layer_of_our_own_code_names_something_that_exists() -> None:
    root = Path(__file__).parents[4]
    modules = [f"/{path.relative_to(root)}" for path in root.glob("*/keyturn*/**/*.py")]
    ours = [text for text, _ in layers._OWNERS if "keyturn" in text]
    assert [text for text in ours if not any(text in module for module in modules)] == []


def test_layers_are_milliseconds_that_add_up_to_the_cpu_time() -> None:
    stacks = [(["/keyturn/crypto/intake.py"], 20), (["/keyturn/crypto/wraps.py"], 10)]
    found = by_layer([*stacks, (["/structlog/x.py"], 10)], Rate(per_s=500, cpu_ms=0.8))
    assert sum(found.values()) == pytest.approx(0.8 + 1.2)
    assert found["logs"] == pytest.approx(0.2)
    assert found[WAITING] == pytest.approx(1.2)
    # More than one core was busy: nothing waited.
    assert by_layer(stacks, Rate(per_s=1000, cpu_ms=1.5))[WAITING] == 0.0
    shown = profile_table("p", {"a": 0.6, WAITING: 1.2})
    assert [list(column.cells) for column in shown.columns] == [
        ["a", "all", "waiting, by the clock"],
        ["0.600", "0.600", "1.200"],
        ["100.0%", "100%", "-"],
    ]


@pytest.mark.parametrize(
    ("named", "parts"),
    [
        ("gateway", ("gateway-large", "gateway-bodies", "gateway-small", "gateway-listing")),
        ("rotation,plain", ("plain", "rotation")),
        ("uploads", ("uploads",)),
        ("customer-keys", ("customer-keys-cost", "customer-keys-calls")),
    ],
)
def test_the_parts_that_were_named_are_measured(named: str, parts: tuple[str, ...]) -> None:
    assert _arguments(["--only", named]).only == parts


@pytest.mark.parametrize("part", _PARTS.values(), ids=_PARTS)
def test_a_part_gets_what_it_measures_by(part: Part) -> None:
    for arguments, rounds in ([], part.rounds), (["--quick"], 1), (["--rounds", "7"], 7):
        options = part.options(_arguments(arguments))
        assert options["rounds"] == rounds
        inspect.signature(part.measure).bind("deployment", "scratch", **options)


def test_an_unknown_part_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        _arguments(["--only", "rotations"])
    assert ended.value.code == 2
    assert "rotations" in capsys.readouterr().err


def test_the_plain_worker_really_encrypts() -> None:
    kek = AESGCM(os.urandom(32))
    body, metadata = plain.sealed(kek, b"the plaintext", b"acme/k")
    assert b"the plaintext" not in body
    wrapped = base64.b64decode(metadata["dek"])
    data_key = kek.decrypt(wrapped[:12], wrapped[12:], b"acme/k")
    assert AESGCM(data_key).decrypt(body[:12], body[12:], b"acme/k") == b"the plaintext"
    with pytest.raises(InvalidTag):
        AESGCM(data_key).decrypt(body[:12], body[12:], b"acme/other")


def test_percentiles_are_of_one_round() -> None:
    found = against_plain.Latencies()
    found.add([float(value) for value in range(101)])
    found.add([5.0, 5.0])
    assert (found.p50, found.p99) == ([50.0, 5.0], [99.0, 5.0])


@pytest.mark.parametrize(("late_s", "at_least_s"), [(0, 19 / 200), (1, 0)])
async def test_requests_are_published_at_the_requested_rate_or_at_once_if_late(
    late_s: float, at_least_s: float
) -> None:
    letters = [Letter(str(number), b"", {}) for number in range(20)]
    began = time.perf_counter()
    async with asyncio.timeout(5):
        sent = [each async for each in against_plain.paced(letters, 200, began - late_s)]
    assert sent == letters
    assert time.perf_counter() - began >= at_least_s


def test_the_benchs_pages_touch_each_other_and_hold_every_key() -> None:
    keys = [key_of(number) for number in range(5)]
    assert keys == sorted(keys)
    made = pages_of(keys, 2, after="o/")
    assert made == [("o/", keys[1]), (keys[1], keys[3]), (keys[3], keys[4])]


def test_only_pages_of_this_very_round_count_as_done() -> None:
    log = "\n".join(
        json.dumps({"round": of, "event": event}, separators=(",", ":"))
        for of, event in [("r1", "page done"), ("r2", "page done"), ("r1", "put off")]
    )
    assert rotation.pages_done(log, "r1") == 1


def test_a_pass_that_left_something_out_is_no_measurement() -> None:
    done = rotation._checked(2.0, 1.0, Counts(objects=100, rewrapped=100), 100)
    assert done.rate == Rate(50.0, 10.0)
    for counts in (Counts(objects=100, rewrapped=99), Counts(objects=100, failed=1)):
        with pytest.raises(BenchError):
            rotation._checked(2.0, 1.0, counts, counts.rewrapped or 100)


def test_requests_and_bytes_are_held_against_their_limits() -> None:
    seen = Traffic(requests=2100, to_objects=2000, received_bytes=3_072_000)
    to_it, received = rotation.wire_rows("ceph", "writing pass", seen, 1000, most_requests=2)
    assert (to_it.ours.median, to_it.met) == (2.0, True)
    assert (received.ours.median, received.met) == (3.0, False)


# The client of the gateway's bench: it must not count a bad response.


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


def _job(url: str, **more: object) -> dict[str, object]:
    target = {"url": url, "headers": {"range": "bytes=0-1"}}
    return {"targets": [target], "count": 1, "warm": 0, "concurrency": 1, **more}


async def test_the_client_counts_what_was_answered() -> None:
    """Bytes, and the hash of a whole body; warming does not count."""
    async with _answering(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello") as url:
        report = await do(_job(url, hash=True))
        assert (report["size_bytes"], report["sha256"]) == (5, hashlib.sha256(b"hello").hexdigest())
        assert (await do(_job(url, count=7, warm=3, concurrency=2)))["size_bytes"] == 35


async def test_a_refusal_is_no_measurement() -> None:
    async with _answering(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n") as url:
        with pytest.RaisesGroup(LoadClientError):
            await do(_job(url))


def test_a_target_is_sent_unchanged() -> None:
    target = Target("http://127.0.0.1:81/a%20b?c=d", {"authorization": "Bearer x"})
    assert target.address == ("127.0.0.1", 81)
    assert target.head == (
        b"GET /a%20b?c=d HTTP/1.1\r\nhost: 127.0.0.1:81\r\nauthorization: Bearer x\r\n\r\n"
    )
    assert Target("http://a/b", body=2).head == (
        b"PUT /b HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n\0\0"
    )
