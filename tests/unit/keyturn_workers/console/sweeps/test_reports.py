"""A report is asked for once while pages are looked at, and its failure shows no error."""

from __future__ import annotations

import asyncio
from functools import partial

from keyturn.errors import NotPermittedError, WaitTimeoutError
from keyturn_workers.console.sweeps.reports import Reports


async def test_the_same_report_is_asked_for_once() -> None:
    asked: list[str] = []

    async def ask(name: str) -> None:
        asked.append(name)

    reports = Reports()
    for name in ("a", "b", "a"):
        reports.want((name,), partial(ask, name))
    await asyncio.sleep(0)
    assert asked == ["a", "b"]


async def test_it_is_asked_for_again_after_a_while_also_where_it_failed() -> None:
    errors = [WaitTimeoutError("10 s"), NotPermittedError("no grant")]

    async def ask() -> None:
        raise errors.pop()

    reports = Reports(again_after_s=0)
    reports.want(("a",), ask)
    reports.want(("a",), ask)
    await asyncio.sleep(0)
    assert not errors
