"""A source that is lost is one line in the log, however often the driver tries again (SPEC 16)."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from keyturn_workers.console.model import Feed, Model
from keyturn_workers.console.source_log import log_sources

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    driver = logging.getLogger("aiormq.connection")
    level = driver.level
    yield
    driver.setLevel(level)


async def test_a_source_is_logged_when_it_goes_and_when_it_is_back() -> None:
    model = Model("console")
    with capture_logs() as logs:
        logging_task = asyncio.create_task(log_sources(model, pause_s=0))
        for problem in ("no broker", "no broker", None, None):
            await asyncio.sleep(0.005)
            model.set_feed(Feed("events", is_connected=problem is None, problem=problem))
        await asyncio.sleep(0.005)
        logging_task.cancel()
    assert [(line["log_level"], line["event"], line["source"]) for line in logs] == [
        ("warning", "source is away", "events"),
        ("info", "source is back", "events"),
    ]
    assert logs[0]["problem"] == "no broker"
    assert not logging.getLogger("aiormq.connection").isEnabledFor(logging.ERROR)
