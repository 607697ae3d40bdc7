"""Notifications to systemd: a datagram, or nothing without a service manager."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from keyturn_workers.process.service_manager import READY, STOPPING, notify_service_manager

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("is_abstract", [False, True])
def test_states_are_sent_as_datagrams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_abstract: bool
) -> None:
    name = f"{tmp_path.name[:40]}-notify" if is_abstract else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if is_abstract else name)
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(f"\0{name}" if is_abstract else name)
        manager.settimeout(10)
        for state in (READY, STOPPING):
            notify_service_manager(state)
            assert manager.recv(100) == state.encode()


def test_without_a_service_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with capture_logs() as logs:
        notify_service_manager(READY)
    assert logs == []


def test_a_service_manager_that_is_away_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    with capture_logs() as logs:
        notify_service_manager(READY)
    assert [(one["event"], one["state"]) for one in logs] == [
        ("service manager not notified", READY)
    ]
