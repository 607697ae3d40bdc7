"""Logs as a process writes them, but cheap ones, and no long wait for bodies that never come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import structlog

from keyturn_workers.http_server import client_connection

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _plain_logs() -> Iterator[None]:
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()]
    )
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _short_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's client sends what it has at once."""
    monkeypatch.setattr(client_connection, "_DRAIN_TIMEOUT_S", 0.02)
