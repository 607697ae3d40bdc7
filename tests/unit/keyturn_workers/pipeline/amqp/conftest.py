"""What the consumers' unit tests share."""

from __future__ import annotations

import pytest

from keyturn_workers.pipeline.amqp import settlement


@pytest.fixture(autouse=True)
def _no_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery that cannot be finished is given back at once."""
    monkeypatch.setattr(settlement, "hold_s", lambda _: 0)
