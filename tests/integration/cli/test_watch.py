"""`rotate`, `sweep` and `delete` on a real broker; the test replaces the workers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from keyturn import topology
from keyturn.crypto import from_base64, kek_info, new_api_key, user_kek
from keyturn.messages import (
    COUNT_FIELDS,
    Event,
    RequestOrigin,
    parse_event,
    parse_request,
    request_id,
    with_origin,
)
from tests.integration.publisher.side import WorkerSide, worker_side

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.cli.conftest import Cli

pytestmark = pytest.mark.servers

_ENDED = "The rotation of acme to generation 2 ended clean after 0 s"
_AT = "2026-11-24T10:00:00Z"
_PUBLISHER = "api"


def _event(type_: str, **fields: Any) -> Event:
    counts: dict[str, Any] = {}
    if type_.endswith((".completed", ".progressed")):
        counts = dict.fromkeys(COUNT_FIELDS, 0) | {"clean": True}
    given = {"type": type_, "project": "acme", "at": _AT} | counts | fields
    return parse_event(json.dumps(given).encode())


class Workers:
    """Receives control requests and publishes signed events, like a worker."""

    def __init__(self, side: WorkerSide, cli: Cli) -> None:
        self._side = side
        self._cli = cli
        self._bodies: dict[str, bytes] = {}

    async def request(self) -> Any:
        """Wait for the next request; later events with its id answer it."""
        message = await self._side.next(topology.CONTROL_QUEUE)
        request = parse_request(message.body)
        self._bodies[request_id(request)] = message.body
        return request

    async def publish(self, type_: str, publisher: str = _PUBLISHER, **fields: Any) -> None:
        """Publish an event that answers this publisher's request."""
        event = _event(type_, **fields)
        origin = RequestOrigin.of(publisher, self._bodies[request_id(event)])
        signed = with_origin(event, origin)
        await self._side.publish(signed, key=self._cli.deployment.event_key)


@pytest.fixture
async def workers(cli: Cli) -> AsyncIterator[Workers]:
    async with worker_side(cli.deployment.amqp_url) as side:
        await side.declare_publisher_stream(_PUBLISHER)
        yield Workers(side, cli)


@asynccontextmanager
async def started(
    cli: Cli, *arguments: str, **env: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    named = {f"KEYTURN_{name}": value for name, value in env.items()}
    # As a publisher, who has no master key.
    given = {name: value for name, value in cli.env.items() if "MASTER_KEY" not in name}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "keyturn_workers",
        *arguments,
        env={**os.environ, **given, **named},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def stderr_line(process: asyncio.subprocess.Process, text: str) -> str:
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while line := await process.stderr.readline():
            if text in line.decode():
                return line.decode()
    raise AssertionError(f"no line contains {text}")


async def test_ctrl_c_says_how_to_follow_the_rotation(cli: Cli, workers: Workers) -> None:
    key = new_api_key()
    async with started(cli, "rotate", "acme", "--watch", NEW_API_KEY=key) as process:
        request = await workers.request()
        rotation_id = request.rotation_id
        await workers.publish("rotation.accepted", rotation_id=rotation_id, generation=2)
        await stderr_line(process, "is at generation 2")
        await workers.publish("sweep.progressed", sweep_id=rotation_id, objects=3)
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"")
    assert err.decode().endswith(f"keyturn status {rotation_id} --project acme --watch\n")
    # The printed command works where it was printed: with a publisher's settings alone.
    command = err.decode().rsplit("keyturn ", 1)[1].split()
    async with started(cli, *command) as process:
        await workers.publish("sweep.progressed", sweep_id=rotation_id, objects=4)
        await workers.publish("rotation.completed", rotation_id=rotation_id, objects=5)
        out, err = await process.communicate()
    assert process.returncode == 0, err
    assert out.decode().startswith(_ENDED)
    info = kek_info("rotation", rotation_id, "acme")
    kek = cli.deployment.intake.open(from_base64(request.sealed_kek.ciphertext), info)
    assert kek == user_kek(key, "acme").reveal()


async def test_a_publisher_sees_its_own_requests_by_their_events(
    cli: Cli, workers: Workers
) -> None:
    async with started(cli, "sweep", "acme", "--json") as process:
        sweep_id = (await workers.request()).sweep_id
        await process.communicate()
    unknown = await _status(cli, sweep_id, exit_code=1)
    assert "this publisher has no event of a request with this id" in unknown
    failure = {"sweep_id": sweep_id, "code": "keyring_rolled_back", "detail": "older"}
    await workers.publish("sweep.failed", **failure)
    # Others may sign requests under this id; they have streams of their own.
    await workers.publish("sweep.completed", "other", sweep_id=sweep_id)
    failed = "The sweep of acme failed: keyring_rolled_back: older"
    assert (await _status(cli, sweep_id)).splitlines()[0] == failed
    watched = await _status(cli, sweep_id, "--watch", exit_code=1)
    assert watched.endswith("keyturn: keyring_rolled_back: older")
    # It is resumed: its dead letter is replayed. The failure is not the end any more.
    progress = {"phase": "rewrapping", "done": 1, "total": 2}
    await workers.publish("sweep.progressed", sweep_id=sweep_id, objects=1, progress=progress)
    running = "The sweep of acme is running: rewrapping 1 of 2."
    assert (await _status(cli, sweep_id)).splitlines()[0] == running
    async with started(cli, "status", sweep_id, "--watch") as process:
        await stderr_line(process, "rewrapping 1 of 2")
        await workers.publish("sweep.completed", sweep_id=sweep_id, objects=2)
        out, _ = await process.communicate()
    assert process.returncode == 0
    assert out.decode().startswith("The sweep of acme ended clean")


async def _status(cli: Cli, *arguments: str, exit_code: int = 0) -> str:
    """The output of `keyturn status`, without the line break at the end."""
    async with started(cli, "status", *arguments) as process:
        out, err = await process.communicate()
    assert process.returncode == exit_code, err
    return (out + err).decode().removesuffix("\n")
