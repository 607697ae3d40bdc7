"""The thief of `make chaos`: what he does to a keyring, and what he notices (SPEC 5.5)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from keyturn.messages import RotationAccepted, RotationRejected
from tests.unit.tools.chaos.fake_keyring import FakeS3
from tools.chaos import thief as of_thief
from tools.chaos.gateway_readers import GatewayReaders
from tools.chaos.plan import Action, Upload
from tools.chaos.publisher import EventLog
from tools.chaos.thief import Thief
from tools.harness.deployment import Deployment
from tools.servers import S3Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.chaos.attackers import Message

NEWEST, OLD = b"generation 2", b"generation 1"
NOW = datetime(2026, 11, 29, 10, tzinfo=UTC)
SECOND = timedelta(seconds=1)
REFUSAL = '{"request_id":"1","code":"keyring_rolled_back","event":"retry scheduled"}'
OTHER = '{"request_id":"1","code":"marks_unavailable","event":"retry scheduled"}'

_TRIES = ("read", "rotation")

During = Callable[[FakeS3], None]


class _Run:
    """A run around a thief: the worker that refuses everything, and a bucket."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, during: During) -> None:
        server = S3Server("http://127.0.0.1:9", "key", "secret", "us-east-1", "given")
        self.deployment = Deployment("amqp://127.0.0.1:9/", server, "bucket")
        self.s3 = FakeS3(NEWEST, put_at=NOW)
        self.knows_marks = True
        self.killed: list[str] = []
        self.early: list[str] = []
        self.present: list[bytes | None] = []
        self.answer: Callable[[str], Any] = _refused
        self.during = during
        self._events = EventLog()
        self._worker = SimpleNamespace(lines=[REFUSAL])
        tenant = SimpleNamespace(
            project="amber",
            client=self.s3,
            deployment=SimpleNamespace(bucket="bucket"),
            api_keys=["old", "new"],
        )
        self.operator = SimpleNamespace(
            tenants={"amber": tenant}, accepted={"amber": [0.0, 0.0]}, keyrings={"amber": [OLD]}
        )
        worker = SimpleNamespace(role="upload", logs=[self._worker])
        gateway = SimpleNamespace(role="gateway", logs=[], knows_marks=lambda: self.knows_marks)
        proxy = SimpleNamespace(sent_bytes=7, has_sent=self._connected)
        control = SimpleNamespace(role="control", logs=[], broker_proxy=proxy)
        supervisor: Any = SimpleNamespace(
            processes={"upload-1": worker, "gateway-1": gateway, "control-1": control},
            kill=self._kill,
        )
        self.operator.supervisor = supervisor
        sender: Any = SimpleNamespace(send_early=self._send_early)
        operator: Any = self.operator
        self.readers = GatewayReaders(operator, "", 7)
        self.thief = Thief(
            self.deployment, operator, supervisor, sender, self._events, self.readers, 7
        )
        monkeypatch.setattr(of_thief, "publish", self._publish)
        monkeypatch.setattr(of_thief, "_PAUSE_S", 0.001)
        monkeypatch.setattr(of_thief, "CACHED_S", 0.001)

    async def _kill(self, name: str) -> None:
        self.killed.append(name)

    async def _connected(self, size_bytes: int, *, timeout_s: float) -> None:
        """The successor connects, and has read nothing; the keyring is not yet stolen."""
        assert (size_bytes, self.s3.body) == (8, NEWEST)
        assert timeout_s > 60
        self.killed[-1] += " and started"

    async def _send_early(self, project: str) -> None:
        self.early.append(project)

    async def _publish(self, deployment: Deployment, message: Message) -> None:
        assert deployment is self.deployment
        self.present.append(self.s3.body)
        self.during(self.s3)
        self._worker.lines += [OTHER, REFUSAL]
        event = self.answer(message.message_id)
        self._events.events[message.message_id] = [event]


def _refused(rotation_id: str) -> RotationRejected:
    return RotationRejected(
        rotation_id=rotation_id,
        project="amber",
        at="2026-11-29T10:00:00.000000Z",
        code="keyring_rolled_back",
        detail="it was rolled back",
    )


def _accepted(rotation_id: str) -> RotationAccepted:
    return RotationAccepted(
        rotation_id=rotation_id, project="amber", at="2026-11-29T10:00:00.000000Z", generation=2
    )


def _nothing(_: FakeS3) -> None:
    """The workers leave the bucket alone."""


def _theft(kind: str, process: str = "") -> Action:
    return Action(5, "steal keyring", "amber", kind=kind, process=process)


@pytest.mark.parametrize(
    ("kind", "process", "present"),
    [
        ("rolled back", "", OLD),
        ("removed", "", None),
        ("rolled back before a fresh process", "control-1", OLD),
    ],
)
async def test_a_keyring_is_stolen_and_put_back(
    monkeypatch: pytest.MonkeyPatch, kind: str, process: str, present: bytes | None
) -> None:
    run = _Run(monkeypatch, _nothing)
    await run.thief.steal(_theft(kind, process))
    assert run.present == [present]
    assert run.s3.body == NEWEST
    assert run.killed == ([f"{process} and started"] if process else [])
    (theft,) = run.thief.thefts
    assert (theft.kind, theft.generation, theft.newest) == (kind, 1, 2)
    assert theft.answer == "keyring_rolled_back"
    # Not the refusal that was in the log before.
    assert theft.refusals == {"upload": 1}
    assert theft.problems == []
    await asyncio.sleep(0)
    assert run.early == ["amber"]


async def test_an_accepted_rotation_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = _Run(monkeypatch, _nothing)
    run.answer = _accepted
    await run.thief.steal(_theft("rolled back"))
    assert run.thief.thefts[0].answer == "rotation.accepted"


def _replace(s3: FakeS3) -> None:
    s3.body = b"generation 2 of the thief, or 1 of another enrollment"


def _write(s3: FakeS3) -> None:
    """An object that was written before may have any generation: its sweep may not be over."""
    s3.objects = {
        "amber/before": ("1:kek", NOW - SECOND),
        "amber/newest": ("2:kek", NOW + SECOND),
        "amber/tombstone": ("", NOW + SECOND),
        "amber/old": ("1:kek", NOW + SECOND),
    }


@pytest.mark.parametrize(
    ("kind", "during", "problem"),
    [
        ("rolled back", _replace, ".keyturn/keyrings/amber.json was changed meanwhile"),
        ("removed", _replace, ".keyturn/keyrings/amber.json was changed meanwhile"),
        ("rolled back", _write, "amber/old was written under generation 1:kek meanwhile"),
    ],
)
async def test_what_a_worker_does_for_a_stolen_keyring_is_noticed(
    monkeypatch: pytest.MonkeyPatch, kind: str, during: During, problem: str
) -> None:
    run = _Run(monkeypatch, during)
    await run.thief.steal(_theft(kind))
    (found,) = run.thief.thefts[0].problems
    assert found.startswith(problem)
    assert run.s3.body == NEWEST


@asynccontextmanager
async def _gateway(status: int, *, seen: list[str]) -> AsyncIterator[str]:
    async def respond(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer old"
        seen.append(f"{request.method} {request.path}")
        return web.Response(status=status)

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", respond)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "is_killed", "judged"),
    [(200, False, 2), (202, False, 2), (401, False, 2), (503, False, 2), (200, True, 0)],
)
async def test_a_gateway_that_serves_the_old_key_is_noticed(
    monkeypatch: pytest.MonkeyPatch, status: int, is_killed: bool, judged: int
) -> None:
    """One that was killed meanwhile is not judged: it may not have read the marks yet."""
    run, seen = _Run(monkeypatch, _nothing), list[str]()

    def kill(_: FakeS3) -> None:
        run.knows_marks = False

    if is_killed:
        run.during = kill
    run.readers.stored = [Upload(1, "id", "amber", "a.bin", 3), Upload(2, "id", "birch", "b", 3)]
    async with _gateway(status, seen=seen) as run.readers.url:
        await run.thief.steal(_theft("rolled back"))
    assert seen == ["GET /v1/projects/amber/objects/a.bin", "POST /v1/projects/amber/rotations"]
    (theft,) = run.thief.thefts
    assert theft.responses.total() == judged
    served = [f"the gateway answered {status} to a {what} with the old key" for what in _TRIES]
    assert theft.problems == (served if judged and status < 300 else [])


async def test_a_theft_waits_until_a_rotation_is_long_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = _Run(monkeypatch, _nothing)
    monkeypatch.setattr(of_thief, "_SETTLES_S", 1000.0)
    run.operator.accepted["amber"][-1] = time.monotonic()
    theft = asyncio.create_task(run.thief.steal(_theft("rolled back")))
    await asyncio.sleep(0.05)
    assert not theft.done()
    assert run.s3.body == NEWEST
    run.operator.accepted["amber"][-1] -= 2000
    await theft
    assert run.present == [OLD]
