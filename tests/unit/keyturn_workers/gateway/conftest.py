"""No long wait for bodies that never come."""

from __future__ import annotations

import pytest

from keyturn_workers.process.http_server import client_connection


@pytest.fixture(autouse=True)
def _short_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's client sends what it has at once."""
    monkeypatch.setattr(client_connection, "_DRAIN_TIMEOUT_S", 0.02)
