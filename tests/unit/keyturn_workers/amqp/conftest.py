"""What the consumers' unit tests share."""

from __future__ import annotations

import pytest

from keyturn_workers.amqp import consumer


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "_PAUSE_S", 0)
