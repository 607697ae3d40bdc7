"""New connections use renewed files; files that cannot be used change nothing (SPEC 11)."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import ssl
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import uvloop

from keyturn import tls
from keyturn.errors import SettingsError
from keyturn.tls import BROKER, renewing_context
from tests.support.tls_proxy import server_context
from tools.harness.loopback_server import loopback_server
from tools.servers.certificates import Authority, Certificate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
