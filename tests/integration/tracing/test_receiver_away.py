"""Without a receiver a worker goes on, says so once, and stops in time (SPEC 11)."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import pytest

from tools.harness.deployment import Deployment
from tools.harness.otlp_receiver import otlp_receiver
from tools.harness.process import worker
from tools.harness.wire import open_wire
from tools.harness.worker_under_test import WorkerUnderTest, fresh_amqp_url
from tools.servers import new_bucket
from tools.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tools.servers import S3Server, Servers

pytestmark = [pytest.mark.servers, pytest.mark.slow]

_AWAY = "traces not exported"


@asynccontextmanager
async def _traced(
    broker: Servers, moto: S3Server, url: str, timeout_s: float
) -> AsyncIterator[WorkerUnderTest]:
    """A worker that sends its traces to this address."""
    deployment = Deployment(await fresh_amqp_url(broker), moto, new_bucket(moto))
    traces = {
        "KEYTURN_TRACING": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_EXPORTER_OTLP_TIMEOUT": str(timeout_s),
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    async with (
        worker(deployment.worker_env() | traces) as process,
        open_wire(deployment) as wire,
    ):
        served = WorkerUnderTest(deployment, process, wire)
        await served.enroll("acme")
        yield served


@contextmanager
def _silent() -> Iterator[str]:
    """A receiver that accepts connections, and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


async def test_a_worker_goes_on_and_reports_once_each_way(broker: Servers, moto: S3Server) -> None:
    port = free_port()
    async with _traced(broker, moto, f"http://127.0.0.1:{port}", 0.3) as served:
        await served.process.logged(_AWAY)
        for _ in range(3):
            await served.assert_serves_next()
            await asyncio.sleep(0.5)  # for an export of each to fail
        with otlp_receiver(port) as received:
            await served.assert_serves_next()
            await served.process.logged("traces exported again")
            await received.root("process keyturn:upload.requested:keyturn.upload")
        assert await served.process.terminate() == 0
        lines = served.process.lines
    assert sum(_AWAY in line for line in lines) == 1
    assert not [line for line in lines if "opentelemetry" in line.lower()]


async def test_a_receiver_that_never_answers_does_not_delay_the_end(
    broker: Servers, moto: S3Server
) -> None:
    with _silent() as url:
        async with _traced(broker, moto, url, 60) as served:
            await served.assert_serves_next()
            began = time.monotonic()
            assert await served.process.terminate() == 0
            # 5 seconds for traces; the rest of the end takes less than one.
            assert time.monotonic() - began < 12
