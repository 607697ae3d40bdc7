"""Upload slots for larger bodies (SPEC 9.3)."""

from __future__ import annotations

import asyncio

import pytest

from keyturn.errors import TooManyRequestsError
from keyturn_workers.gateway import upload_limits
from keyturn_workers.gateway.fair_shares import MIN_STAGED_BYTES, GatewayBusyError
from keyturn_workers.gateway.upload_limits import UploadSlots

MIB = MIN_STAGED_BYTES


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_two_projects_leave_slots_for_a_third() -> None:
    """Two tenants with four slow bodies each used all eight slots."""
    slots, leave = UploadSlots(8, 0.25), asyncio.Event()
    taken: list[str] = []

    async def take(project: str) -> None:
        async with slots.hold(project):
            taken.append(project)
            await leave.wait()

    tasks = [asyncio.create_task(take(project)) for project in "aaaabbbb"]
    await _settle()
    assert sorted(taken) == ["a", "a", "b", "b"]
    async with asyncio.timeout(1), slots.hold("c"):
        pass
    leave.set()
    await asyncio.gather(*tasks)
    assert not slots._projects


async def test_waiting_uploads_are_limited_for_each_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upload_limits, "SLOT_WAIT_S", 5)
    slots, leave = UploadSlots(4, 0.25), asyncio.Event()

    async def take() -> None:
        async with slots.hold("a"):
            await leave.wait()

    tasks = [asyncio.create_task(take()) for _ in range(5)]
    await _settle()
    with pytest.raises(TooManyRequestsError):
        await take()
    async with slots.hold("b"):  # and delays no other project
        pass
    leave.set()
    await asyncio.gather(*tasks)


async def test_a_timeout_reports_whose_slots_are_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upload_limits, "SLOT_WAIT_S", 0.02)
    slots = UploadSlots(2, 0.5)
    async with slots.hold("a"):
        with pytest.raises(TooManyRequestsError):
            async with slots.hold("a"):
                pass
        async with slots.hold("b"):
            with pytest.raises(GatewayBusyError):
                async with slots.hold("c"):
                    pass
    assert not slots._projects
