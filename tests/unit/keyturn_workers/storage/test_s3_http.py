"""One request and its response, and errors that never leave the storage (SPEC 7, 8.4)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import pytest
from botocore.exceptions import ClientError, CredentialRetrievalError

from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.errors import MissingError, StorageTlsError
from keyturn_workers.storage import s3_connections, s3_http
from keyturn_workers.storage.aws_chain import ChainCredentials
from keyturn_workers.storage.s3_connections import (
    ConnectionLostError,
    ConnectionPool,
    Exchange,
    TlsFailedError,
)
from keyturn_workers.storage.vendor_errors import (
    may_pass,
    translate_errors,
)
from tests.unit.keyturn_workers.storage.servers import OK, ByteServer, connected, open_client

if TYPE_CHECKING:
    from aiobotocore.credentials import AioCredentials


async def test_a_request_is_written_as_it_was_signed() -> None:
    """Target and headers unchanged, a length where a body is allowed, and nothing automatic."""
    key, query = "a/../b c//%41", "x=%2F&y="
    async with connected() as (server, client):
        response = await client.call(
            "read", "GET", key, {"range": "bytes=0-1"}, query=query, timeout_s=5
        )
        await client.call("put", "PUT", key, {"x-amz-meta-n": "René"}, query=query, body=b"body")
        await client.call("put", "PUT", key, {}, query=query, timeout_s=5)
        await client.call("delete", "DELETE", key, {}, query=query, timeout_s=5)
    assert (response.status, response.headers["x-seen"], response.body) == (200, "yes", b"done")
    heads = [_parsed(head) for head in server.heads]
    target = "/bucket/a/../b%20c//%2541?x=%2F&y="
    assert [line for line, _ in heads] == [
        f"{method} {target} HTTP/1.1" for method in ("GET", "PUT", "PUT", "DELETE")
    ]
    signing = {"authorization", "x-amz-content-sha256", "x-amz-date"}
    read, put, empty, delete = (headers for _, headers in heads)
    assert read.keys() == {"host", "range", *signing}
    assert put.keys() == {"host", "x-amz-meta-n", "content-md5", "content-length", *signing}
    assert put["x-amz-meta-n"] == "René"
    assert empty.keys() == delete.keys() == {"host", "content-length", *signing}
    assert [each.get("content-length") for each in (read, put, empty, delete)] == [
        *(None, "4", "0", "0")
    ]
    assert read["host"] == f"127.0.0.1:{server.port}"
    assert server.connections == 1, "all on one connection"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def _parsed(head: bytes) -> tuple[str, dict[str, str]]:
    line, *lines = head.decode().strip().split("\r\n")
    return line, {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}


@pytest.mark.parametrize("injected", ["a\r\nx-evil: 1", "a\nb", "a\rb", "a\0b"])
@pytest.mark.parametrize("where", ["name", "value"])
async def test_a_header_cannot_end_its_line(injected: str, where: str) -> None:
    """Nor start another request; nothing is sent."""
    async with connected() as (server, client):
        headers = {injected: "v"} if where == "name" else {"x-amz-meta-a": injected}
        with pytest.raises(ValueError, match="header injection"):
            await client.call("put", "PUT", "k", headers, timeout_s=5)
        await client.call("read", "GET", "k", {}, timeout_s=5)
    assert [head[:4] for head in server.heads] == [b"GET "]


async def test_an_interim_response_is_skipped() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    async with connected(interim + OK) as (_, client):
        response = await client.call("put", "PUT", "k", {}, body=b"body", timeout_s=5)
    assert response.body == b"done"


async def test_a_head_response_has_no_body() -> None:
    """Its length is the object's. Another connection serves the next request."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"
    async with connected(head) as (server, client):
        response = await client.call("head", "HEAD", "k", {}, timeout_s=5)
        assert (response.headers["content-length"], response.body) == ("5000", b"")
        assert (await client.call("read", "GET", "k", {}, timeout_s=5)).body == b"done"
    assert server.connections == 2


async def test_a_stored_encoding_is_not_decoded() -> None:
    stored = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nraw"
    async with connected(stored) as (_, client):
        assert (await client.call("read", "GET", "k", {}, timeout_s=5)).body == b"raw"


@pytest.mark.parametrize(
    ("sent", "status", "body"),
    [
        (CHUNKED + b"2;x=y\r\ndo\r\n2\r\nne\r\n0\r\nETag: late\r\n\r\n", 200, b"done"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\n", 204, b""),
    ],
)
async def test_a_response_ends_where_its_framing_says(
    sent: bytes, status: int, body: bytes
) -> None:
    """In whatever pieces it arrives; and its connection is used again."""
    for size in (len(sent), 1):
        async with connected() as (server, client):
            server.pieces = [sent[at : at + size] for at in range(0, len(sent), size)]
            response = await client.call("read", "GET", "k", {}, timeout_s=5)
            assert (response.status, response.body) == (status, body)
            assert "etag" not in response.headers, "a trailer is no header"
            assert (await client.call("read", "GET", "k", {}, timeout_s=5)).body == b"done"
        assert server.connections == 1


async def test_a_response_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a server ignores a range, or lists without end."""
    monkeypatch.setattr(s3_connections, "RECORD_MAX_BYTES", 1000)
    async with connected(OK.replace(b"4", b"2000") + bytes(1500)) as (_, client):
        with pytest.raises(StorageUnavailableError, match="too long"):
            await client.call("read", "GET", "k", {}, timeout_s=5)


async def test_a_port_of_tls_is_recognized() -> None:
    """By the alert with which a server of TLS answers what is none."""
    async with connected(b"\x15\x03\x01\x00\x02\x02\x46") as (_, client):
        with pytest.raises(StorageTlsError, match="https://"):
            await client.call("read", "GET", "k", {}, timeout_s=5)


async def test_a_server_that_speaks_first_is_not_believed() -> None:
    """What it sends on a new connection answers no request."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server, asyncio.timeout(5):
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        exchange = Exchange(ConnectionPool(url, 1, None), "PUT")

        async def receive() -> None:
            await exchange.open()
            await asyncio.sleep(0.1)  # for the greeting to arrive before the request
            await exchange.read_all()

        with pytest.raises(ConnectionLostError, match="without a request"):
            await receive()
        exchange.close()
        await asyncio.sleep(0.1)  # for the server to notice


async def test_ipv6_addresses_are_connected_to() -> None:
    served = ByteServer()
    async with await asyncio.start_server(served.serve, "::1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with open_client(f"http://[::1]:{port}/bucket/") as client:
            assert (await client.call("read", "GET", "k", {}, timeout_s=5)).body == b"done"
    assert f"Host: [::1]:{port}\r\n".encode() in served.heads[0]


async def test_a_redirect_is_not_followed() -> None:
    moved = b"HTTP/1.1 307 Moved\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
    async with connected(moved) as (server, client):
        with pytest.raises(StorageUnavailableError, match="307"):
            await client.call("put", "PUT", "k", {}, body=b"body", timeout_s=5)
    assert len(server.heads) == 1


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-",
        b"not HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 2**17,
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 2000,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
        # The end of such a body would be the end of the connection, whatever ended it.
        b"HTTP/1.1 200 OK\r\n\r\nwithout a length",
        CHUNKED + b"4\r\ndone\r\n",
        CHUNKED + b"4\r\ndone\r\n0\r\nA: " + b"b" * 2**17,
        CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 4\r\n\r\n") + b"done",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 9\r\n\r\ndone",
        b"HTTP/1.1 200 OK\nContent-Length: 4\n\ndone",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
async def test_a_broken_response_is_an_error_and_its_connection_is_closed(
    broken: bytes, method: str
) -> None:
    """And no second attempt is made."""
    async with connected(OK, broken) as (server, client):
        await client.call("read", "GET", "k", {}, timeout_s=5)
        server.hangs_up = True
        with pytest.raises(StorageUnavailableError):
            await client.call("call", method, "k", {}, timeout_s=1)
        assert len(server.heads) == 2
        server.hangs_up = False
        assert (await client.call("read", "GET", "k", {}, timeout_s=5)).body == b"done"
    assert server.connections == 2


SILENT = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nslow",
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
]


@pytest.mark.parametrize(
    ("method", "sent"),
    [
        ("GET", SILENT[0]),
        ("PUT", SILENT[0]),
        *((each, SILENT[1]) for each in ("GET", "HEAD", "PUT")),
    ],
)
async def test_a_silent_server_ends_the_request_and_its_connection(
    method: str, sent: bytes
) -> None:
    async with connected(sent) as (server, client), asyncio.timeout(5):
        with pytest.raises(StorageUnavailableError, match="it did not respond in time"):
            await client.call("call", method, "k", {}, timeout_s=0.2)
        await server.hung_up.wait()


@pytest.mark.parametrize("sent", SILENT, ids=["in the body", "after an interim response"])
async def test_a_silent_server_ends_a_stream(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the whole may last."""
    monkeypatch.setattr(s3_http, "READ_TIMEOUT_S", 0.2)
    async with connected(sent) as (server, client), asyncio.timeout(5):
        with pytest.raises((StorageUnavailableError, TimeoutError)):
            async with client.open_get("stream", "k", {}) as exchange:
                await exchange.read_up_to(9)
        await server.hung_up.wait()


async def test_cancellation_closes_the_connection() -> None:
    """What the server still sends must not become the response to the next request."""
    partial = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nslow"
    async with connected(partial) as (server, client), asyncio.timeout(5):
        call: asyncio.Task[Any] = asyncio.create_task(
            client.call("read", "GET", "k", {}, timeout_s=30)
        )
        while not server.heads:  # noqa: ASYNC110  # the server gives no other sign
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await server.hung_up.wait()


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (ConnectionLostError("connection closed"), "connection closed"),
        (ConnectionResetError("?X-Amz-Signature=1"), "the connection was lost"),
        (TimeoutError(), "it did not respond in time"),
    ],
    ids=lambda value: getattr(type(value), "__name__", value),
)
def test_each_vendor_error_becomes_an_error_of_the_port(raised: Exception, text: str) -> None:
    """With the operation and the kind of failure alone."""
    caught = pytest.raises(StorageUnavailableError, match=f"read: .*{text}")
    with caught as error, translate_errors("read"):
        raise raised
    assert "Signature" not in str(error.value)
    assert error.value.__cause__ is raised


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(ValueError, match="own"), translate_errors("read"):
        raise ValueError("own")


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (ClientError({"Error": {"Code": "AccessDenied"}}, "AssumeRole"), "refuses them"),
        (aiohttp.ClientPayloadError("?X-Amz-Signature=1"), "cannot be reached"),
        (CredentialRetrievalError(provider="iam", error_msg="?X-Amz-Signature=1"), "provides none"),
    ],
    ids=["refusal", "loss", "none"],
)
async def test_a_failure_of_the_credential_service_is_no_refusal_of_the_storage(
    raised: Exception, text: str
) -> None:
    """Nothing was sent to the storage: a later attempt may succeed."""

    class Failing:
        async def get_frozen_credentials(self) -> None:
            raise raised

    caught = pytest.raises(StorageUnavailableError, match=f"credentials: .*{text}")
    with caught as error, translate_errors("put"):
        await ChainCredentials(cast("AioCredentials", Failing())).current()
    assert "Signature" not in str(error.value)


def test_a_certificate_is_refused_once_and_a_lost_connection_is_tried_again() -> None:
    with (
        pytest.raises(StorageTlsError, match="list: its certificate has expired"),
        translate_errors("list"),
    ):
        raise TlsFailedError("its certificate has expired")
    assert not may_pass(StorageTlsError("list: its certificate has expired"))
    assert may_pass(StorageUnavailableError("list: connection closed"))
    assert not may_pass(MissingError("list: NoSuchKey"))
