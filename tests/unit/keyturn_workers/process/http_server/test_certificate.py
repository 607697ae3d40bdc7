"""A renewed certificate is taken once it is whole; a broken one never is (SPEC 9.7)."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from keyturn.errors import SettingsError
from keyturn.tls import PairSettings
from keyturn_workers.process.http_server.tls import ServerCertificate, open_certificate
from tools.servers.certificates import Authority, Certificate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_NAMES = PairSettings("CERT", "KEY")
_STAYS = "certificate not renewed; the old one stays in use"


class _Files:
    """The files of one listener, and pairs to put there."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "ca")
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"
        self.write(self.authority.issue("first"))

    def opened(self) -> ServerCertificate:
        return ServerCertificate(self.certificate, self.key, _NAMES)

    def write(self, pair: Certificate) -> None:
        shutil.copy(pair.certificate, self.certificate)
        shutil.copy(pair.key, self.key)

    def rename(self, pair: Certificate) -> None:
        for source, target in ((pair.certificate, self.certificate), (pair.key, self.key)):
            renewed = target.with_suffix(".new")
            shutil.copy(source, renewed)
            renewed.rename(target)


@pytest.fixture
def files(tmp_path: Path) -> _Files:
    return _Files(tmp_path)


def _settle(certificate: ServerCertificate) -> None:
    """One check sees a change, the next that it is over."""
    certificate.check()
    certificate.check()


@pytest.mark.parametrize("how", [_Files.write, _Files.rename], ids=["in place", "renamed"])
def test_a_new_pair_is_taken_once_it_no_longer_changes(
    files: _Files, how: Callable[[_Files, Certificate], None]
) -> None:
    opened = files.opened()
    before = opened.context
    how(files, files.authority.issue("second"))
    with capture_logs() as logs:
        opened.check()
        assert opened.context is before, "it may still be written"
        opened.check()
        assert opened.context is not before
        _settle(opened)
    assert [line["event"] for line in logs] == ["certificate renewed"]
    assert logs[0]["expires"] == str(opened.expires)


def test_a_folder_that_a_link_leads_to_can_change_as_a_whole(files: _Files, tmp_path: Path) -> None:
    """As Kubernetes replaces a mounted secret."""
    link = tmp_path / "data"
    pairs = [files.authority.issue(name) for name in ("one", "two")]
    for name, pair in zip(("..1", "..2"), pairs, strict=True):
        (tmp_path / name).mkdir()
        shutil.copy(pair.certificate, tmp_path / name / "tls.crt")
        shutil.copy(pair.key, tmp_path / name / "tls.key")
    link.symlink_to("..1")
    opened = ServerCertificate(link / "tls.crt", link / "tls.key", _NAMES)
    before = opened.context
    (tmp_path / "new").symlink_to("..2")
    (tmp_path / "new").rename(link)
    _settle(opened)
    assert opened.context is not before


def test_a_certificate_without_its_key_yet_is_waited_for(files: _Files) -> None:
    """A program that renews writes one file after the other."""
    opened, second = files.opened(), files.authority.issue("second")
    before = opened.context
    with capture_logs() as logs:
        shutil.copy(second.certificate, files.certificate)
        opened.check()
        shutil.copy(second.key, files.key)
        opened.check()
        assert opened.context is before
        opened.check()
    assert opened.context is not before
    assert [line["event"] for line in logs] == ["certificate renewed"]


def test_a_broken_pair_keeps_the_old_one_and_is_reported_once(files: _Files) -> None:
    opened = files.opened()
    before = opened.context
    shutil.copy(files.authority.issue("other").key, files.key)
    with capture_logs() as logs:
        for _ in range(4):
            opened.check()
        files.key.unlink()
        for _ in range(4):
            opened.check()
    assert opened.context is before
    assert [(line["event"], line["problem"]) for line in logs] == [
        (_STAYS, "KEY is not the key of the first certificate in CERT"),
        (_STAYS, "KEY cannot be read (No such file or directory)"),
    ]
    files.write(files.authority.issue("third"))
    _settle(opened)
    assert opened.context is not before, "a good one is taken all the same"


def test_a_renewal_that_has_expired_is_a_mistake(files: _Files) -> None:
    opened = files.opened()
    before = opened.context
    files.write(files.authority.issue("old", from_h=-2, to_h=-1))
    with capture_logs() as logs:
        _settle(opened)
    assert opened.context is before
    assert [line["problem"] for line in logs] == ["CERT has expired"]


def test_a_start_with_an_expired_one_is_possible_and_reported(files: _Files) -> None:
    files.write(files.authority.issue("old", from_h=-2, to_h=-1))
    with capture_logs() as logs:
        files.opened()
    assert [line["event"] for line in logs] == ["certificate expired"]


def test_a_start_with_a_broken_pair_is_not(files: _Files) -> None:
    files.key.write_text("x")
    with pytest.raises(SettingsError, match=r"^KEY holds no private key in PEM$"):
        files.opened()


def test_no_certificate_means_no_tls(files: _Files) -> None:
    assert open_certificate(None, None, _NAMES) is None
    assert open_certificate(files.certificate, files.key, _NAMES) is not None


async def test_files_are_watched(files: _Files) -> None:
    opened = files.opened()
    before = opened.context
    watching = asyncio.create_task(opened.watch(0.01))
    files.rename(files.authority.issue("second"))
    async with asyncio.timeout(10):
        while opened.context is before:  # noqa: ASYNC110  # nothing reports it
            await asyncio.sleep(0.01)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching


def test_what_is_offered_is_modern(files: _Files) -> None:
    context = files.opened().context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    old = [c["name"] for c in context.get_ciphers() if c["protocol"] != "TLSv1.3"]
    assert old
    assert all(name.startswith("ECDHE-") for name in old)
    assert not [name for name in old if "CBC" in name or name.endswith("SHA")]
