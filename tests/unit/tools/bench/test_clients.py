"""The comparison of S3 clients: what each is asked for, and how their figures are told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

from tools.bench.clients.asking import (
    BODY,
    Answer,
    Place,
    PlainHttp,
    RefusedError,
    product_signer,
)
from tools.bench.clients.measuring import compared, rows
from tools.bench.clients.on_others import floor
from tools.bench.clients.side import BASELINE
from tools.bench.clients.signers import botocore_signer

if TYPE_CHECKING:
    from keyturn_workers.storage.signing import Signed

_PLACE = Place("http://127.0.0.1:9", "bucket", "us-east-1", "AKID", "secret")


class Script:
    """Keeps what it was asked, and answers all alike."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[tuple[str, Signed, bytes]] = []

    async def send(self, method: str, signed: Signed, body: bytes) -> Answer:
        self.asked.append((method, signed, body))
        return self.answer


async def test_the_four_requests() -> None:
    """Writes are leased and conditional, and a read asks for 64 bytes."""
    script = Script(Answer(200, {"etag": '"e"'}, b"<CopyObjectResult/>"))
    client = PlainHttp(_PLACE, script.send)
    assert await client.put("a/1") == "e"
    await client.head("a/1")
    await client.copy("a/1", "e")
    script.answer = Answer(206, {}, bytes(64))
    await client.get("a/1")
    put, head, copy, get = script.asked
    assert (put[0], put[1].headers["if-none-match"], put[2]) == ("PUT", "*", BODY)
    assert parse_qs(urlsplit(put[1].url).query)["X-Amz-Expires"] == ["60"]
    assert (head[0], head[2]) == ("HEAD", b"")
    assert copy[1].headers["x-amz-copy-source-if-match"] == "e"
    assert parse_qs(urlsplit(copy[1].url).query)["X-Amz-Expires"] == ["60"]
    assert (get[0], get[1].headers["range"]) == ("GET", "bytes=0-63")


@pytest.mark.parametrize(
    ("operation", "answer"),
    [
        ("get", Answer(200, {}, bytes(64))),
        ("get", Answer(206, {}, bytes(63))),
        ("head", Answer(404, {}, b"")),
        ("copy", Answer(200, {}, b"<Error/>")),
    ],
)
async def test_what_was_not_done_does_not_count(operation: str, answer: Answer) -> None:
    """A client that is fast because it fails is none."""
    client = PlainHttp(_PLACE, Script(answer).send)
    arguments = ("a/1", "e") if operation == "copy" else ("a/1",)
    with pytest.raises(RefusedError):
        await getattr(client, operation)(*arguments)


def test_both_signers_sign_the_same() -> None:
    """Of a request without a time in it, all but the signature."""
    signed, theirs = (
        make(_PLACE)("GET", "a/1", {"range": "bytes=0-63"}, None)
        for make in (product_signer, botocore_signer)
    )
    assert signed.url == theirs.url
    assert signed.headers.keys() == {name.lower() for name in theirs.headers}


async def test_the_floor_is_a_client_too() -> None:
    """It reads what a server says, on one connection."""
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: e\r\n\r\n"] * 2
    answers.append(b"HTTP/1.1 206 OK\r\nContent-Length: 64\r\n\r\n" + bytes(64))
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            if heads[-1].startswith(b"PUT"):
                await reader.readexactly(len(BODY))
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        place = Place(f"http://127.0.0.1:{port}", "bucket", "us-east-1", "AKID", "secret")
        async with floor(place) as client:
            assert await client.put("a/1") == "e"
            await client.head("a/1")
            await client.get("a/1")
    assert [head.split(b" ")[0] for head in heads] == [b"PUT", b"HEAD", b"GET"]


def test_ratios_are_taken_within_a_round() -> None:
    """Of CPU time less is better, of throughput more."""
    found = {
        BASELINE: {"put": [(2.0, 100.0), (4.0, 50.0)]},
        "lean": {"put": [(1.0, 200.0), (1.0, 200.0)]},
    }
    made = rows("ceph", found)
    of_lean = {row.unit: row.ratios for row in made if row.figure.endswith("lean")}
    cpu, rate = of_lean["ms/operation, CPU"], of_lean["operations/s"]
    assert cpu is not None
    assert rate is not None
    assert cpu.values == (2.0, 4.0)
    assert rate.values == (2.0, 4.0)
    assert compared("ceph", made).row_count == 2
