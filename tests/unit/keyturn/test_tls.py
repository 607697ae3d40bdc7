"""TLS from files: each failure is one line, and renewed files are used (SPEC 11)."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import ssl
from contextlib import asynccontextmanager, closing, suppress
from typing import TYPE_CHECKING, Final

import aio_pika
import aiohttp
import pytest
import uvloop
from aio_pika.exceptions import AMQPException

from keyturn import tls
from keyturn.errors import SettingsError
from keyturn.tls import (
    BROKER,
    GATEWAY,
    STORAGE,
    client_context,
    describe_tls_failure,
    renewing_context,
    speaks_tls,
)
from tests.support.tls_proxy import server_context, tls_proxy
from tools.harness.loopback import loopback_server
from tools.servers.certificates import Authority, Certificate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

_NO_PEM = "this is no certificate, and no key\n"


def test_a_context_verifies_names_and_speaks_nothing_old(tmp_path: Path) -> None:
    made = Authority(tmp_path).issue()
    for context in (
        client_context(BROKER),
        client_context(BROKER, made.ca),
        client_context(BROKER, made.ca, made.certificate, made.key),
        client_context(GATEWAY, made.ca, with_system=True),
    ):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_private_authority_replaces_those_of_the_system(tmp_path: Path) -> None:
    """Unless they are to count beside it: a redirect may lead to a public server."""
    ca = Authority(tmp_path).ca
    assert len(client_context(BROKER, ca).get_ca_certs()) == 1
    system = len(client_context(BROKER).get_ca_certs())
    assert len(client_context(GATEWAY, ca, with_system=True).get_ca_certs()) == system + 1


def _refusal(ca: Path | None, certificate: Path | None = None, key: Path | None = None) -> str:
    with pytest.raises(SettingsError) as refused:
        client_context(BROKER, ca, certificate, key)
    # A path can be the key itself, by mistake: neither here nor in a cause.
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_an_authority_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    name = "KEYTURN_AMQP_CA_FILE"
    missing = f"{name} cannot be read (No such file or directory)"
    assert _refusal(tmp_path / "missing.pem") == missing
    assert _refusal(tmp_path) == f"{name} cannot be read (Is a directory)"
    (tmp_path / "text.pem").write_text(_NO_PEM)
    (tmp_path / "empty.pem").write_text("")
    key = Authority(tmp_path).issue().key
    for path in (tmp_path / "text.pem", tmp_path / "empty.pem", key):
        assert _refusal(path) == f"{name} holds no certificate in PEM"


def test_a_pair_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    good, other = authority.issue("good"), authority.issue("other")
    text = tmp_path / "text.pem"
    text.write_text(_NO_PEM)
    certificate, key = "KEYTURN_AMQP_CERT_FILE", "KEYTURN_AMQP_KEY_FILE"
    for pair, problem in (
        ((tmp_path / "no", good.key), f"{certificate} cannot be read (No such file or directory)"),
        ((good.certificate, tmp_path / "no"), f"{key} cannot be read (No such file or directory)"),
        ((text, good.key), f"{certificate} holds no certificate in PEM"),
        ((good.key, good.key), f"{certificate} holds no certificate in PEM"),
        ((good.certificate, text), f"{key} holds no private key in PEM"),
        ((good.certificate, good.certificate), f"{key} holds no private key in PEM"),
        (
            (good.certificate, other.key),
            f"{key} is not the key of the first certificate in {certificate}",
        ),
    ):
        assert _refusal(good.ca, *pair) == problem


@pytest.mark.parametrize("form", ["PKCS #8", "traditional"])
def test_an_encrypted_key_asks_nobody_for_a_password(tmp_path: Path, form: str) -> None:
    made = Authority(tmp_path).issue(password=b"canary-password")
    if form == "traditional":
        made.key.write_text(
            "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n"
            "DEK-Info: AES-256-CBC,00112233445566778899AABBCCDDEEFF\n\n"
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n-----END EC PRIVATE KEY-----\n"
        )
    text = _refusal(made.ca, made.certificate, made.key)
    assert text == "KEYTURN_AMQP_KEY_FILE is encrypted: store the key without a password"


def test_a_key_in_place_of_its_path_is_not_shown(tmp_path: Path) -> None:
    made = Authority(tmp_path).issue()
    pasted = tmp_path / made.key.read_text()
    text = _refusal(made.ca, made.certificate, pasted)
    assert text.startswith("KEYTURN_AMQP_KEY_FILE cannot be read (")
    assert "PRIVATE" not in text


def test_a_port_of_tls_is_told_from_one_that_is_not(tmp_path: Path) -> None:
    context = server_context(Authority(tmp_path).issue("any", ("other.example",)))
    with socket.create_server(("127.0.0.1", 0)) as plain:
        port = plain.getsockname()[1]
        assert not speaks_tls(f"http://127.0.0.1:{port}", 0.1)
        with tls_proxy(port, context) as secured:
            assert speaks_tls(f"http://127.0.0.1:{secured}")
    assert not speaks_tls("http://127.0.0.1:1")
    assert not speaks_tls("http://127.0.0.1:none")


# Each way in which a real handshake fails names what to change.


_UNKNOWN: Final = "its certificate is from an unknown authority: check KEYTURN_AMQP_CA_FILE"
_REQUIRED: Final = (
    "it requires a client certificate: set KEYTURN_AMQP_CERT_FILE and KEYTURN_AMQP_KEY_FILE"
)


def _server(authority: Authority, *, from_h: float = -1, to_h: float = 1) -> ssl.SSLContext:
    return server_context(authority.issue("server", ("localhost",), from_h=from_h, to_h=to_h))


def _requiring(authority: Authority, ca: Path) -> ssl.SSLContext:
    return server_context(authority.issue("server", ("localhost",)), clients=ca)


@asynccontextmanager
async def _listening(context: ssl.SSLContext | None) -> AsyncIterator[int]:
    """A server that greets and then says nothing; with a context behind TLS."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"AMQP\x00\x00\x09\x01")
            with suppress(OSError):
                await writer.drain()
                await reader.read()
        finally:
            writer.transport.abort()

    async with loopback_server(serve) as url:
        port = int(url.rpartition(":")[2])
        if context is None:
            yield port
            return
        with tls_proxy(port, context) as secured_port:
            yield secured_port


async def _failure(
    context: ssl.SSLContext | None, trusting: ssl.SSLContext, host: str = "localhost"
) -> str | None:
    async with _listening(context) as port, asyncio.timeout(10):
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=trusting, server_hostname=host
            )
            try:
                writer.write(b"AMQP\x00\x00\x09\x01")
                await reader.readexactly(9)
            finally:
                writer.transport.abort()
        except OSError as exc:
            try:
                raise ConnectionError("of a library between") from exc  # noqa: TRY301
            except ConnectionError as wrapped:
                return describe_tls_failure(wrapped, BROKER)
    return "it was accepted"


async def test_a_server_that_is_not_the_one(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "a")
    stranger = Authority(tmp_path / "b")
    trusting = client_context(BROKER, authority.ca)
    assert await _failure(_server(stranger), trusting) == _UNKNOWN
    assert await _failure(_server(authority), trusting, host="other.example") == (
        "its certificate is for another host than the one in KEYTURN_AMQP_URL"
    )
    assert await _failure(_server(authority), trusting, host="127.0.0.2") == (
        "its certificate is for another host than the one in KEYTURN_AMQP_URL"
    )


async def test_a_certificate_out_of_its_time(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    trusting = client_context(BROKER, authority.ca)
    expired = _server(authority, from_h=-2, to_h=-1)
    assert await _failure(expired, trusting) == "its certificate has expired"
    early = _server(authority, from_h=0.5, to_h=1)
    assert await _failure(early, trusting) == "its certificate is not valid yet"


async def test_a_client_certificate_that_is_missing_or_refused(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    server = _requiring(authority, authority.ca)
    assert await _failure(server, client_context(BROKER, authority.ca)) == _REQUIRED
    for made, why in (
        (stranger.issue("client", ()), "unknown authority"),
        (authority.issue("client", (), from_h=-2, to_h=-1), "expired"),
    ):
        trusting = client_context(BROKER, authority.ca, made.certificate, made.key)
        assert await _failure(server, trusting) == (
            f"it refused the client certificate of KEYTURN_AMQP_CERT_FILE: {why}"
        )


async def test_a_client_certificate_that_tls_1_2_requires(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = _requiring(authority, authority.ca)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    found = await _failure(server, client_context(BROKER, authority.ca))
    assert found == (
        "it refused the handshake: it may require a client certificate, KEYTURN_AMQP_CERT_FILE"
    )


async def test_a_server_without_tls(tmp_path: Path) -> None:
    trusting = client_context(BROKER, Authority(tmp_path).ca)
    expected = "it does not speak TLS on that port: check KEYTURN_AMQP_URL"
    assert await _failure(None, trusting) == expected


async def test_nothing_is_wrong_with_a_good_one(tmp_path: Path) -> None:
    """The check of the tests themselves: the same way, and no failure."""
    authority = Authority(tmp_path)
    made = authority.issue("client", ())
    server = _requiring(authority, authority.ca)
    trusting = client_context(BROKER, authority.ca, made.certificate, made.key)
    with pytest.raises(TimeoutError):  # it waits for a ninth byte
        async with asyncio.timeout(0.5):
            await _failure(server, trusting)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConnectionRefusedError(111, "refused"),
        lambda: ssl.SSLError(1, "of no known kind"),
        lambda: ssl.SSLEOFError(8, "EOF"),
        lambda: ssl.SSLCertVerificationError("without a code"),
        lambda: ValueError("anything else"),
    ],
)
def test_other_failures_are_not_of_tls(make: Callable[[], Exception]) -> None:
    assert describe_tls_failure(make(), BROKER) is None


def test_causes_that_go_round_in_circles_end() -> None:
    first, second = OSError("a"), OSError("b")
    first.__context__, second.__context__ = second, first
    assert describe_tls_failure(first, BROKER) is None


async def test_a_server_with_tls_that_is_spoken_to_without() -> None:
    """RabbitMQ, like Go's servers, sends an alert. One of OpenSSL says nothing."""
    expected = "it speaks TLS on that port: KEYTURN_{} must begin with {}"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(b"\x15\x03\x01\x00\x02\x02\x0a")
        writer.close()
        await writer.wait_closed()

    async with loopback_server(serve) as url:
        with pytest.raises((AMQPException, OSError)) as by_amqp:
            await aio_pika.connect(url.replace("http", "amqp"))
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError) as by_http:
                await session.get(url)
    found = describe_tls_failure(by_amqp.value, BROKER)
    assert found == expected.format("AMQP_URL", "amqps://")
    found = describe_tls_failure(by_http.value, STORAGE)
    assert found == expected.format("S3_ENDPOINT_URL", "https://")


# Renewed files.


_RENEWED = "certificate renewed: "
_STAYS = "certificate not renewed; the old one stays in use: "
_CERTIFICATE, _KEY = "KEYTURN_AMQP_CERT_FILE", "KEYTURN_AMQP_KEY_FILE"


class _Files:
    """The files of one client, and a server that requires its certificate."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "authority")
        self.server = self.authority.issue("server", ("localhost",))
        self.ca, self.certificate, self.key = (
            folder / name for name in ("ca.pem", "tls.crt", "tls.key")
        )
        shutil.copy(self.authority.ca, self.ca)
        self.write(self.authority.issue("first", ()))

    def write(self, pair: Certificate) -> None:
        shutil.copy(pair.certificate, self.certificate)
        shutil.copy(pair.key, self.key)

    def context(self) -> ssl.SSLContext:
        return renewing_context(BROKER, self.ca, self.certificate, self.key)

    async def shown(self, context: ssl.SSLContext, *, server: Certificate | None = None) -> str:
        """The name in the certificate that a new connection presents."""
        names: list[str] = []
        required = server_context(server or self.server, clients=self.authority.ca)

        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            subject = writer.get_extra_info("peercert")["subject"]
            names.extend(value for part in subject for name, value in part if name == "commonName")
            writer.write(b"x")
            writer.close()

        async with loopback_server(serve, tls=required) as url:
            port = int(url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
            assert await reader.read() == b"x"
            writer.close()
        return names[0]


@pytest.fixture
def files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> _Files:
    caplog.set_level(logging.INFO, "keyturn.tls")
    return _Files(tmp_path)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files count as settled at once."""
    monkeypatch.setattr(tls, "_SETTLED_NS", 0)


async def test_a_new_connection_shows_the_renewed_certificate(
    files: _Files, caplog: pytest.LogCaptureFixture
) -> None:
    context = files.context()
    assert await files.shown(context) == "first"
    files.write(files.authority.issue("second", ()))
    assert await files.shown(context) == "second"
    assert await files.shown(context) == "second"
    (line,) = caplog.messages
    assert line.startswith(f"{_RENEWED}{_CERTIFICATE}, {_KEY}, expires ")


def test_so_does_one_of_uvloop(files: _Files) -> None:
    """Workers, gateway and console run on it."""
    context = files.context()
    files.write(files.authority.issue("second", ()))
    assert uvloop.run(files.shown(context)) == "second"


def test_so_does_one_without_an_event_loop(files: _Files) -> None:
    context = files.context()
    files.write(files.authority.issue("second", ()))
    near, far = socket.socketpair()
    with closing(near), closing(far):
        secured = context.wrap_socket(
            near, server_hostname="localhost", do_handshake_on_connect=False
        )
        assert secured.context is not context
        secured.close()


def test_the_context_itself_trusts_no_authority(files: _Files) -> None:
    """A library that bypasses the current files cannot connect."""
    context = files.context()
    assert context.cert_store_stats() == {"x509": 0, "crl": 0, "x509_ca": 0}
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


async def test_another_authority_counts_as_well(
    files: _Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And one that was removed no longer counts."""
    stranger = Authority(tmp_path / "stranger").issue("stranger", ("localhost",))
    context = files.context()
    with pytest.raises(ssl.SSLCertVerificationError):
        await files.shown(context, server=stranger)
    shutil.copy(stranger.ca, files.ca)
    assert await files.shown(context, server=stranger) == "first"
    with pytest.raises(ssl.SSLCertVerificationError):
        await files.shown(context)
    assert caplog.messages == [f"{_RENEWED}KEYTURN_AMQP_CA_FILE"]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (
            lambda files: shutil.copy(files.authority.issue("other").key, files.key),
            f"{_KEY} is not the key of the first certificate in {_CERTIFICATE}",
        ),
        (
            lambda files: files.key.unlink(),
            f"{_KEY} cannot be read (No such file or directory)",
        ),
        (
            lambda files: files.write(files.authority.issue("old", (), from_h=-2, to_h=-1)),
            f"{_CERTIFICATE} has expired",
        ),
        (
            lambda files: files.ca.write_text(""),
            "KEYTURN_AMQP_CA_FILE holds no certificate in PEM",
        ),
    ],
    ids=["another key", "no key", "expired", "no authority"],
)
async def test_files_that_cannot_be_used_change_nothing(
    files: _Files,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[_Files], object],
    problem: str,
) -> None:
    """That is reported once; good files are used afterwards."""
    context = files.context()
    spoil(files)
    assert await files.shown(context) == "first"
    assert await files.shown(context) == "first"
    assert caplog.messages == [f"{_STAYS}{problem}"]
    shutil.copy(files.authority.ca, files.ca)
    files.write(files.authority.issue("third", ()))
    assert await files.shown(context) == "third"


async def test_a_certificate_without_its_key_yet_is_not_reported(
    files: _Files, caplog: pytest.LogCaptureFixture
) -> None:
    """A renewal writes one file after the other."""
    context, second = files.context(), files.authority.issue("second", ())
    shutil.copy(second.certificate, files.certificate)
    assert await files.shown(context) == "first"
    shutil.copy(second.key, files.key)
    assert await files.shown(context) == "second"
    assert [line.partition(": ")[0] for line in caplog.messages] == ["certificate renewed"]


def test_a_start_with_files_that_cannot_be_used_is_not_possible(files: _Files) -> None:
    files.key.write_text("x")
    with pytest.raises(SettingsError, match=rf"^{_KEY} holds no private key in PEM$"):
        files.context()


def test_without_files_the_system_verifies() -> None:
    context = renewing_context(BROKER)
    assert type(context) is ssl.SSLContext
    assert context.verify_mode is ssl.CERT_REQUIRED
