"""`make audit` fails for a finding, and for a finding alone."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tools.servers.process import free_port
from tools.supply.audit import audit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow
# On a busy machine pip-audit alone may take longer to start than `make audit` waits.
_BUSY_S = 120

_REQUIREMENTS = f"""\
idna==3.20 \\
    --hash=sha256:{"0" * 64}
yarl==1.25.1 \\
    --hash=sha256:{"1" * 64}
"""
_VULNERABILITY = {
    "id": "PYSEC-2026-1",
    "summary": "of this test alone",
    "published": "2026-11-01T00:00:00Z",
    "modified": "2026-11-01T00:00:00Z",
    "affected": [
        {
            "package": {"name": "idna", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "3.21"}]}],
        }
    ],
}


class _Osv(BaseHTTPRequestHandler):
    """Answers `/v1/query` as the OSV database does; other paths break in their own ways."""

    queries: list[str]
    hold: threading.Event

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = query["package"]["name"]
        self.queries.append(name)
        if self.path == "/silent":
            self.hold.wait(30)
            return
        if self.path == "/broken":
            self._answer(500, b"")
            return
        found = {"vulns": [_VULNERABILITY]} if self.path == "/finding" and name == "idna" else {}
        self._answer(200, b"<html>" if self.path == "/no-json" else json.dumps(found).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def _service() -> Iterator[tuple[str, list[str]]]:
    queries: list[str] = []
    hold = threading.Event()
    handler = type("Handler", (_Osv,), {"queries": queries, "hold": hold})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", queries
    finally:
        hold.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    file = tmp_path / "requirements.txt"
    file.write_text(_REQUIREMENTS)
    return file


def test_clean(requirements: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with _service() as (url, queries):
        assert audit(requirements, url=f"{url}/clean", timeout_s=_BUSY_S) == 0
    assert sorted(queries) == ["idna", "yarl"]
    assert capfd.readouterr().out == "audit: 2 packages, 0 with known vulnerabilities\n"


def test_a_finding_fails_and_is_named(
    requirements: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with _service() as (url, _):
        assert audit(requirements, url=f"{url}/finding", timeout_s=_BUSY_S) == 1
    report = capfd.readouterr()
    assert report.err == "audit: idna 3.20: PYSEC-2026-1, fixed in 3.21\n"
    assert report.out == "audit: 2 packages, 1 with known vulnerabilities\n"


@pytest.mark.parametrize("path", ["/broken", "/no-json"])
def test_a_service_that_fails_passes_in_one_line(
    path: str, requirements: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with _service() as (url, queries):
        assert audit(requirements, url=url + path, timeout_s=_BUSY_S) == 0
    assert queries
    assert _not_done(capfd) == "could not be reached"


def test_an_unreachable_database_passes_in_one_line(
    requirements: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert audit(requirements, url=f"http://127.0.0.1:{free_port()}/", timeout_s=_BUSY_S) == 0
    assert _not_done(capfd) == "could not be reached"


def test_a_silent_database_passes_in_one_line(
    requirements: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with _service() as (url, _):
        assert audit(requirements, url=f"{url}/silent", timeout_s=3) == 0
    assert _not_done(capfd) in {"did not answer within 3 s", "could not be reached"}


def test_requirements_without_hashes_fail(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """That is not an outage."""
    file = tmp_path / "r.txt"
    file.write_text("idna==3.20\n")
    with _service() as (url, _):
        assert audit(file, url=f"{url}/clean", timeout_s=_BUSY_S) == 1
    assert "audit: failed" in capfd.readouterr().err


def _not_done(capfd: pytest.CaptureFixture[str]) -> str:
    report = capfd.readouterr()
    assert report.err == ""
    (line,) = report.out.splitlines()
    before, after = "audit: not done, the vulnerability database ", "; nothing is known either way"
    assert line.startswith(before)
    assert line.endswith(after)
    return line.removeprefix(before).removesuffix(after)
