"""A publisher's traces: off by default, and one line where their extra is missing."""

from __future__ import annotations

import sys

import pytest

from keyturn.errors import SettingsError
from keyturn.publisher.client import publisher_tracing
from keyturn.tracing import PublisherTracing
from tests.unit.keyturn.publisher.test_requests import SETTINGS

TRACED = SETTINGS.model_copy(update={"tracing": True})


def test_they_are_off_by_default() -> None:
    assert publisher_tracing(SETTINGS) is None


def test_they_are_recorded_where_they_are_on() -> None:
    assert isinstance(publisher_tracing(TRACED), PublisherTracing)


def test_a_missing_extra_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "keyturn.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(SettingsError, match=r"KEYTURN_TRACING .*keyturn\[otel\]"):
        publisher_tracing(TRACED)
