"""One log line when the console loses a source of what it shows, and one when it is back (SPEC 16).

The driver logs each attempt to connect: with a stream for each source, several lines a second for
as long as the broker is away. Those are dropped.
"""

import asyncio
import logging
from contextlib import aclosing
from typing import Final

import structlog

from keyturn_workers.console.model import Model

_PAUSE_S: Final = 1.0

_log = structlog.get_logger()


async def log_sources(model: Model, *, pause_s: float = _PAUSE_S) -> None:
    """Log for ever; cancel it to stop."""
    logging.getLogger("aiormq.connection").setLevel(logging.CRITICAL)
    problems: dict[str, str | None] = {}
    async with aclosing(model.changes.subscribe()) as changes:
        async for _ in changes:
            for feed in model.feeds():
                problem = None if feed.is_connected else feed.problem
                if problem != problems.get(feed.name):
                    problems[feed.name] = problem
                    _write(feed.name, problem)
            # What is shown changes with every event; a source does not come and go that often.
            await asyncio.sleep(pause_s)


def _write(name: str, problem: str | None) -> None:
    if problem is None:
        _log.info("source is back", source=name)
    else:
        _log.warning("source is away", source=name, problem=problem)
