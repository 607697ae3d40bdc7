"""The gateway's and the console's own TLS: renewal under load, and clients that harm (SPEC 9.7)."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

import aiohttp
import pytest
import pytest_asyncio

from keyturn.tls import GATEWAY, client_context
from tests.integration.gateway.conftest import NO_BROKER
from tests.integration.tls.conftest import refusal
from tools.harness.bucket import Bucket
from tools.harness.console import ConsoleDeployment
from tools.harness.http import object_target, read_response, request
from tools.harness.process import console, gateway
from tools.servers import new_bucket
from tools.servers.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tools.harness.process import GatewayProcess
    from tools.servers import S3Server
    from tools.servers.certificates import Certificate

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

_FILM: Final = bytes(24 * 2**20)
_CONCURRENCY: Final = 2  # eight connections


class _Listener:
    """A gateway with TLS, its certificate's files, and a project with objects."""

    def __init__(
        self, process: GatewayProcess, deployment: ConsoleDeployment, authority: Authority, at: Path
    ) -> None:
        self.process = process
        self.deployment = deployment
        self.authority = authority
        self.files = at

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            self.process.port,
            ssl=client_context(GATEWAY, self.authority.ca),
            server_hostname="localhost",
            limit=2**16,
        )
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    def request(self, key: str) -> bytes:
        headers = {"Authorization": f"Bearer {self.deployment.api_key}"}
        return request("GET", object_target("acme", key), headers)

    def put(self, pair: Certificate) -> None:
        for source, name in ((pair.certificate, "tls.crt"), (pair.key, "tls.key")):
            renewed = self.files / f"{name}.new"
            shutil.copy(source, renewed)
            renewed.rename(self.files / name)

    async def shown(self) -> str:
        """The serial number of the certificate that a new connection gets."""
        async with self.connected() as (_, writer):
            return str(writer.get_extra_info("peercert")["serialNumber"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def listener(
    ceph: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[_Listener]:
    folder = tmp_path_factory.mktemp("listener")
    deployment = ConsoleDeployment(NO_BROKER, ceph, new_bucket(ceph))
    bucket = Bucket(deployment)
    bucket.put_keyring("acme")
    film = bucket.made("acme", "film", _FILM)
    bucket.put_made("acme", film)
    broken = bucket.made("acme", "broken", _FILM)
    bucket.put_made("acme", broken)
    cut = bytearray(broken.body)
    cut[-100] ^= 1  # its last chunk
    bucket.put("acme/broken", bytes(cut), broken.metadata)
    authority = Authority(folder / "ca")
    made = authority.issue("first")
    shutil.copy(made.certificate, folder / "tls.crt")
    shutil.copy(made.key, folder / "tls.key")
    env = deployment.gateway_env(
        GATEWAY_TLS_CERT=str(folder / "tls.crt"),
        GATEWAY_TLS_KEY=str(folder / "tls.key"),
        GATEWAY_CONCURRENCY=str(_CONCURRENCY),
        GATEWAY_PROJECT_SHARE="1",
        GATEWAY_HEAD_TIMEOUT_S="4",
        GATEWAY_IDLE_TIMEOUT_S="2",
    )
    async with gateway(env) as process:
        yield _Listener(process, deployment, authority, folder)


async def test_a_renewal_reaches_new_connections_and_a_download_goes_on(
    listener: _Listener,
) -> None:
    """In the middle of it there is a broken pair, which changes nothing but the log."""
    before = await listener.shown()
    async with listener.connected() as (reader, writer):
        writer.write(listener.request("film"))
        await reader.readuntil(b"\r\n\r\n")
        received = len(await reader.readexactly(2**16))

        async def read_slowly() -> None:
            nonlocal received
            while received < len(_FILM):
                received += len(await reader.read(2**16))
                await asyncio.sleep(0.05)  # in all far longer than two renewals take

        reading = asyncio.create_task(read_slowly())
        known = len(listener.process.lines)
        shutil.copy(listener.authority.issue("other").key, listener.files / "tls.key")
        line = await listener.process.logged("certificate not renewed", after=known, timeout_s=10)
        assert "KEYTURN_GATEWAY_TLS_KEY is not the key of" in line
        assert await listener.shown() == before
        listener.put(listener.authority.issue("second"))
        await listener.process.logged("certificate renewed", after=known, timeout_s=10)
        assert await listener.shown() != before
        assert not reading.done(), "the download was to outlast the renewal"
        reading.cancel()
        while received < len(_FILM):
            received += len(await reader.read(2**20))
    assert received == len(_FILM)
    refused = [each for each in listener.process.lines[known:] if "not renewed" in each]
    assert len(refused) == 1


async def test_a_body_that_breaks_is_seen_to_break(listener: _Listener) -> None:
    async with listener.connected() as (reader, writer), asyncio.timeout(30):
        writer.write(listener.request("broken"))
        response = await read_response(reader)
    assert (response.status, response.end) == (200, "reset")
    assert len(response.body) < len(_FILM)


async def test_half_open_handshakes_end_and_keep_nobody_out(listener: _Listener) -> None:
    async with AsyncExitStack() as stack:
        ended, writers = [], []
        for number in range(_CONCURRENCY * 4 * 3):
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.process.port)
            writers.append(writer)
            stack.callback(writer.transport.abort)
            if number % 2:
                writer.write(b"\x16\x03\x01\x02\x00\x01")
            ended.append(asyncio.create_task(reader.read()))
        async with asyncio.timeout(10):
            while True:  # its own connection may be the one that is closed for another
                try:
                    async with listener.connected() as (reader, writer):
                        writer.write(request("GET", "/healthz", []))
                        if (await read_response(reader)).status == 200:
                            break
                except OSError:
                    pass
            await asyncio.gather(*ended, return_exceptions=True)


async def test_a_client_that_reads_nothing_is_cut_off(listener: _Listener) -> None:
    """What TLS buffers does not count as progress."""
    async with listener.connected() as (reader, writer), asyncio.timeout(20):
        writer.write(listener.request("film"))
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(15):
            while await _downloads(listener):  # noqa: ASYNC110  # nothing reports it
                await asyncio.sleep(0.1)


async def _downloads(listener: _Listener) -> bool:
    async with listener.connected() as (reader, writer):
        writer.write(request("GET", "/metrics", []))
        await reader.readuntil(b"\nkeyturn_gateway_requests_in_flight ")
        return float(await reader.readline()) > 1  # this request is one


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_both_versions_are_spoken(listener: _Listener, version: ssl.TLSVersion) -> None:
    context = client_context(GATEWAY, listener.authority.ca)
    context.minimum_version = context.maximum_version = version
    url = f"https://localhost:{listener.process.port}/healthz"
    async with aiohttp.ClientSession() as session, session.get(url, ssl=context) as response:
        assert response.status == 200


async def test_idle_clients_do_not_delay_the_end(listener: _Listener) -> None:
    """A blocking client looks at its kept connection only when it needs it. The last test here."""

    def ask() -> ssl.SSLSocket:
        context = client_context(GATEWAY, listener.authority.ca)
        plain = socket.create_connection(("127.0.0.1", listener.process.port), timeout=10)
        sock = context.wrap_socket(plain, server_hostname="localhost")
        sock.sendall(request("GET", "/healthz", []))
        assert b" 200 " in sock.recv(4096)
        return sock

    sock = await asyncio.to_thread(ask)
    try:
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await listener.process.terminate() == 0
        assert loop.time() - began < 5
    finally:
        sock.close()


@pytest.mark.parametrize("process", ["gateway", "console"])
async def test_a_certificate_that_cannot_be_used_stops_the_start(
    ceph: S3Server, tmp_path: Path, process: str
) -> None:
    deployment = ConsoleDeployment(NO_BROKER, ceph, "no-bucket")
    made = Authority(tmp_path).issue()
    encrypted = Authority(tmp_path / "e").issue(password=b"canary-password")
    (tmp_path / "passwords").write_text("")
    base = (
        deployment.gateway_env()
        if process == "gateway"
        else deployment.console_env(tmp_path / "passwords")
    )
    names = [f"KEYTURN_{process.upper()}_TLS_{part}" for part in ("CERT", "KEY")]
    cases = [
        ((made.certificate, ""), f"{names[0]} and {names[1]} must be set together"),
        ((tmp_path / "no", made.key), f"{names[0]} cannot be read (No such file or directory)"),
        (
            (made.certificate, encrypted.key),
            f"{names[1]} is encrypted: store the key without a password",
        ),
        (
            (encrypted.certificate, made.key),
            f"{names[1]} is not the key of the first certificate in {names[0]}",
        ),
    ]
    runs = [
        refusal(base | dict(zip(names, map(str, pair), strict=True)), process) for pair, _ in cases
    ]
    for (status, output), (_, problem) in zip(await asyncio.gather(*runs), cases, strict=True):
        assert (status, output) == (2, f"keyturn: {problem}\n")


async def test_the_console_is_served_with_tls(ceph: S3Server, tmp_path: Path) -> None:
    deployment = ConsoleDeployment(NO_BROKER, ceph, "no-bucket")
    (tmp_path / "passwords").write_text("")
    authority = Authority(tmp_path / "ca")
    made = authority.issue()
    env = deployment.console_env(
        tmp_path / "passwords",
        CONSOLE_TLS_CERT=str(made.certificate),
        CONSOLE_TLS_KEY=str(made.key),
    )
    trusting = client_context(GATEWAY, authority.ca)
    async with console(env) as process, aiohttp.ClientSession() as session:
        url = f"https://localhost:{process.port}"
        async with session.get(f"{url}/sign-in", ssl=trusting) as page:
            assert page.status == 200
            assert all(cookie["secure"] for cookie in page.cookies.values())
        form = {"name": "kim", "password": "wrong"}
        async with session.post(
            f"{url}/sign-in",
            data=form,
            ssl=trusting,
            headers={"Origin": url.replace("https", "http")},
        ) as refused:
            assert refused.status == 403
