"""A worker that has nothing to do goes on knowing the storage's clock (SPEC 8.4)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage.clock import StorageClock
from keyturn_workers.storage.timekeeper import INTERVAL_S, keep_clock_known

LEASE_S = 15
BEGAN = datetime(2026, 11, 24, 10, tzinfo=UTC)
AN_HOUR_S = 3600.0


class Time:
    """A process's own clock, which sleeping moves on; the storage's agrees with it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        self.clock = StorageClock(LEASE_S, local_s=lambda: self.seconds)
        self.requests = 0
        self.fails = False
        patch.setattr("keyturn_workers.storage.timekeeper.asyncio.sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        if self.seconds > 1000 + AN_HOUR_S:
            raise asyncio.CancelledError

    def respond(self) -> Any:
        date = BEGAN + timedelta(seconds=int(self.seconds))
        return self.clock.observe(date, self.seconds, self.seconds)

    async def observe(self) -> None:
        self.requests += 1
        if self.fails and self.requests % 2:
            raise StorageUnavailableError("503")
        self.respond()


@pytest.mark.parametrize("fails", [False, True], ids=["answers", "fails every second time"])
async def test_an_idle_worker_proves_at_once(
    monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    time = Time(monkeypatch)
    time.fails = fails
    with pytest.raises(asyncio.CancelledError):
        await keep_clock_known(time.observe)
    assert time.requests == AN_HOUR_S // INTERVAL_S + 1
    assert time.respond().proves


async def test_without_it_an_idle_worker_would_prove_nothing_for_two_leases(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    time = Time(monkeypatch)
    time.respond()
    time.seconds += AN_HOUR_S
    assert not time.respond().proves
