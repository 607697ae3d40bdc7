"""`make doctor` if a server cannot be installed, and if a column is new. Starts no server."""

from __future__ import annotations

import pytest

from tools.doctor import __main__ as doctor
from tools.doctor.results import HOLDS, Column, ServerResults
from tools.doctor.server_kinds import Kind
from tools.servers.packages import MissingPackagesError


def _missing() -> None:
    raise MissingPackagesError("apt has no archive of it here")


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Kind("absent", _missing, lambda: "1.0", ("plain",))  # type: ignore[arg-type]
    monkeypatch.setattr(doctor, "KINDS", (kind,))


@pytest.mark.usefixtures("kinds")
def test_a_server_that_cannot_be_installed_is_skipped_with_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(doctor._started(["absent"], skip=True)) == []
    assert "absent is skipped: apt has no archive of it here" in capsys.readouterr().err


@pytest.mark.usefixtures("kinds")
def test_a_server_that_was_asked_for_is_not_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["doctor", "--only", "absent"])
    assert doctor.main() == 1
    assert "apt has no archive of it here" in capsys.readouterr().err


def test_a_column_without_a_committed_one_differs(capsys: pytest.CaptureFixture[str]) -> None:
    known = Column("a", "1.0", "plain", "2026-11-25", {"row": HOLDS})
    committed = ServerResults({"row": "required"}, [known])
    assert doctor._compare(committed, [known]) == 0
    new = Column("b", "1.0", "plain", "2026-11-25", {"row": HOLDS})
    assert doctor._compare(committed, [known, new]) == 1
    assert "b 1.0: row: yes, was: None" in capsys.readouterr().err
