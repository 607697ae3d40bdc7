"""A session that was signed out stays so, over restarts too if there is a file (SPEC 16.3)."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from keyturn.errors import SettingsError
from keyturn_workers.console.auth.signed_out import SignedOut

if TYPE_CHECKING:
    from pathlib import Path


def test_it_is_remembered_until_the_session_would_have_ended() -> None:
    now = [100.0]
    signed_out = SignedOut(None, clock=lambda: now[0])
    signed_out.add("one", 200)
    assert "one" in signed_out
    assert "two" not in signed_out
    now[0] = 300
    signed_out.add("two", 400)
    assert "one" not in signed_out


def test_a_file_survives_a_restart_and_keeps_no_old_lines(tmp_path: Path) -> None:
    path = tmp_path / "signed-out"
    now = [100.0]
    for session, end in (("one", 200), ("two", 400)):
        SignedOut(path, clock=lambda: now[0]).add(session, end)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "one" in SignedOut(path, clock=lambda: now[0])
    now[0] = 300
    restarted = SignedOut(path, clock=lambda: now[0])
    assert "two" in restarted
    assert "one" not in restarted
    assert path.read_text() == "two 400\n"


def test_a_file_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="CONSOLE_SIGNED_OUT_FILE"):
        SignedOut(tmp_path)
    malformed = tmp_path / "malformed"
    malformed.write_text("no line of ours\n")
    with pytest.raises(SettingsError, match="CONSOLE_SIGNED_OUT_FILE"):
        SignedOut(malformed)


def test_a_disk_that_fails_later_does_not_keep_anybody_signed_in(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    signed_out = SignedOut(folder / "signed-out")
    (folder / "signed-out").unlink()
    folder.rmdir()
    with capture_logs() as logs:
        signed_out.add("one", 1e10)
    assert "one" in signed_out
    assert [line["event"] for line in logs] == ["sign-out not recorded in the file"]
