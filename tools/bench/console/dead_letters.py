"""What 100,000 dead letters cost the console: to read, to hold, to search, to discard (SPEC 16).

| figure | what it is |
| --- | --- |
| reading | until the last letter is back; meanwhile the queue looks empty to others |
| memory | what the process takes more, per letter, with the index that pages use |
| a search | the slowest filter: a text that no letter has |
| discarding | all of them as one job: each batch recorded by a control worker, then acknowledged |

The code runs in this process; the broker and the control worker are processes of their own.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import aio_pika

from keyturn.publisher import Publisher
from keyturn.topology import DEAD_QUEUES
from keyturn_workers.console.dead.index import DeadFilter, DeadIndex, DeadQuery, QueueLetters
from keyturn_workers.console.dead.letter_reader import read_queue
from keyturn_workers.console.dead.service import DeadLetters
from keyturn_workers.console.model import Model
from tools.bench.console.reports import publisher_settings
from tools.bench.figures import Row, Spread
from tools.bench.processes import BenchError, worker
from tools.harness import console_letters
from tools.harness.console import PUBLISHER

if TYPE_CHECKING:
    from keyturn_workers.console.dead.jobs import Job
    from tools.harness.console import ConsoleDeployment

_LOCK_TIMEOUT_S = 60
_LETTER_BYTES = 2**33
_AIM_MS = 150.0
_LETTER_AIM_BYTES = 1000.0


async def measure(deployment: ConsoleDeployment, scratch: Path, *, letters: int) -> list[Row]:
    """A row for each figure."""
    env = deployment.worker_env(DEAD_MAX_BYTES=str(_LETTER_BYTES))
    async with worker(env, scratch / "dead-letters.log", "control"):
        async with await aio_pika.connect(deployment.amqp_url) as connection:
            made = console_letters.refused_uploads(deployment, letters)
            await console_letters.publish(await connection.channel(), made)
        return [*await _read(deployment, letters), await _discard(deployment, letters)]


async def _read(deployment: ConsoleDeployment, letters: int) -> list[Row]:
    before = _resident_bytes()
    began = time.perf_counter()
    read = await read_queue(deployment.amqp_url, console_letters.UPLOADS, _LOCK_TIMEOUT_S)
    took_s = time.perf_counter() - began
    if len(read.letters) != letters:
        raise BenchError(f"read {len(read.letters)} of {letters} letters")
    index = DeadIndex([*(QueueLetters(name, as_of=read.as_of) for name in DEAD_QUEUES), read])
    now = datetime.now(UTC)
    index.page(DeadQuery(), now)
    per_letter = (_resident_bytes() - before) / letters
    began = time.perf_counter()
    index.page(DeadQuery(filter=DeadFilter(text="nowhere")), now)
    searched_ms = 1000 * (time.perf_counter() - began)
    name = f"console, {letters:,} dead letters"
    return [
        Row(f"{name}, reading", "-", "s", Spread((took_s,))),
        Row(
            f"{name}, memory of each",
            "-",
            "bytes",
            Spread((per_letter,)),
            at_most=_LETTER_AIM_BYTES,
        ),
        Row(f"{name}, a search", "-", "ms", Spread((searched_ms,)), at_most=_AIM_MS),
    ]


async def _discard(deployment: ConsoleDeployment, letters: int) -> Row:
    async with Publisher.open(publisher_settings(deployment)) as publisher:
        dead = DeadLetters(deployment.amqp_url, Model(PUBLISHER), publisher)
        running = asyncio.create_task(dead.run())
        try:
            while dead.index.as_of is None or dead.index.total < letters:  # noqa: ASYNC110  # no event
                await asyncio.sleep(0.1)
            plan = dead.prepare("ada", "discard", dead.index.letters, selection="all", back="/")
            job = dead.start(plan, "measured")
            took_s = await _ended(job)
        finally:
            running.cancel()
            await asyncio.wait({running})
    if job.done != letters:
        raise BenchError(f"discarded {job.done} of {letters} letters: {job.problem}")
    per_s = letters / took_s
    return Row(f"console, {letters:,} dead letters, discarding", "-", "letters/s", Spread((per_s,)))


async def _ended(job: Job) -> float:
    began = time.perf_counter()
    while not job.has_ended:  # noqa: ASYNC110  # a job has no event
        await asyncio.sleep(0.05)
    return time.perf_counter() - began


def _resident_bytes() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
