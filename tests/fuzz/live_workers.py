"""Mutated messages to real worker processes, on a real broker and a real bucket (SPEC 6, 12).

Whatever is sent, the queue moves on: each message ends in a dead-letter queue with a code,
its body and headers as sent, or it was good and is served; good uploads between them are all
stored. The workers keep their one connection, their memory and their secrets.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import aiormq
import psutil
from aio_pika import IncomingMessage
from pamqp import commands

from keyturn.crypto import SealError, user_kek
from keyturn.errors import all_errors
from keyturn.identifiers import object_s3_key
from keyturn.topology import (
    CODE_HEADER,
    CONTROL_QUEUE,
    REQUESTS,
    UNSIGNED_DEAD_QUEUE,
    UPLOAD_QUEUE,
)
from keyturn_workers.process.message_copies import CODES_WITHOUT_BODY
from keyturn_workers.process.property_tolerance import tolerate_odd_properties
from tests.fuzz import valid_messages
from tests.fuzz.cases import Case, Cases
from tests.fuzz.dead_letters import check_copy, dead_queue_of
from tests.fuzz.offline_worker import Channel, FrameError, received
from tests.fuzz.watch import Report, Watch
from tools.harness import requests as rq
from tools.harness import stored_objects
from tools.harness.bucket import Bucket
from tools.harness.canaries import Canaries
from tools.harness.process import worker
from tools.harness.wire import SignedPublisher, open_wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiormq.abc import AbstractChannel, DeliveredMessage

    from tools.harness.deployment import Deployment
    from tools.harness.process import WorkerProcess

_QUEUES: Final = (UPLOAD_QUEUE, CONTROL_QUEUE)
_GOOD_EVERY: Final = 25
_AT_ONCE: Final = 50
_SETTLE_TIMEOUT_S: Final = 90
_TAKEN_S: Final = 5
# Caches fill in the first 10,000 messages, by about 40 MiB; then memory stays level.
_MAX_GROWTH_MIB: Final = 32
# Only for valid uploads: a mutated request may rotate or delete objects of other projects.
_GOOD_PROJECT: Final = "good"
_PROJECTS: Final = (valid_messages.PROJECT, valid_messages.OTHER_PROJECT, _GOOD_PROJECT)
# Short, so that deferred requests end during the run: older requests expire.
_SETTINGS: Final = {
    "LOG_LEVEL": "debug",
    "LEASE_S": "3",
    "KEYRING_CACHE_S": "1",
    "REQUEST_MAX_AGE_S": "25",
}
_SERVED: Final = (
    "upload.stored",
    "project.enrolled",
    "rotation.accepted",
    "object.deleted",
    "delete.requested",  # of many keys
    "sweep.requested",
    "erase.requested",
    "status.reported",
    "dead_letters.moved",
)


class Properties(commands.Basic.Properties):
    """Properties that are sent as the bytes that they were made of."""

    raw: bytes = b""

    def marshal(self) -> bytes:
        return self.raw


class Sender:
    """Publishes cases, confirmed; what the broker refuses costs its connection, and no more."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._channel: AbstractChannel | None = None

    async def send(self, case: Case) -> bool:
        """Whether the broker took it."""
        if self._channel is None or self._channel.is_closed:
            self._channel = await (await aiormq.connect(self._url)).channel()
        properties = Properties()
        properties.raw = case.header
        routed = case.routing_key in REQUESTS and _queue_of(case.routing_key) == case.queue
        exchange, key = ("keyturn", case.routing_key) if routed else ("", case.queue)
        try:
            async with asyncio.timeout(_TAKEN_S):
                await self._channel.basic_publish(
                    case.body, exchange=exchange, routing_key=key, properties=properties
                )
        except (aiormq.AMQPError, ConnectionError, TimeoutError):
            self._channel = None
            return False
        return True


def _queue_of(routing_key: str) -> str:
    return UPLOAD_QUEUE if routing_key == "upload.requested" else CONTROL_QUEUE


@dataclass
class Letters:
    """Every dead letter so far."""

    found: list[tuple[str, IncomingMessage]] = field(default_factory=list)

    async def follow(self, url: str) -> None:
        """Take them off their queues as they come."""
        channel = await (await aiormq.connect(url)).channel()
        for name in (*(f"{queue}.dead" for queue in _QUEUES), UNSIGNED_DEAD_QUEUE):
            await channel.basic_consume(name, self._take(name), no_ack=True)

    def _take(self, queue: str) -> Callable[[DeliveredMessage], Any]:
        async def take(message: DeliveredMessage) -> None:
            self.found.append((queue, IncomingMessage(message, no_ack=True)))

        return take


class Live:
    """One run against the workers of one deployment."""

    def __init__(self, deployment: Deployment, seed: int) -> None:
        self._deployment = deployment
        self._rng = random.Random(seed)  # noqa: S311  # no secret
        self.watch = Watch("live", seed)
        self._sent: dict[str, Case] = {}
        self._stored: dict[str, bytes] = {}
        self._letters = Letters()
        self._workers: list[WorkerProcess] = []
        self._memory: list[tuple[float, tuple[int, ...]]] = []

    async def run(self, count: int) -> Report:
        """Send `count`, wait for the end of each, and check what became of them."""
        env = self._deployment.worker_env(**_SETTINGS)
        async with AsyncExitStack() as stack:
            for role in ("upload", "control"):
                self._workers.append(await stack.enter_async_context(worker(env, role)))
            await self._enroll()
            await self._letters.follow(self._deployment.amqp_url)
            connections = self._connections()
            watching = asyncio.create_task(self._sample(count))
            await self._send(count)
            await self._settled()
            watching.cancel()
            await self._good_one("after all of them")
            # A report may have opened more of them, to follow a stream.
            if any(map(set.difference, connections, self._connections())):
                self._found("a worker has lost its connection")
            for running in self._workers:
                if await running.terminate() != 0:
                    self._found("a worker did not end well")
        self._judge()
        return self.watch.finish()

    async def _enroll(self) -> None:
        async with open_wire(self._deployment) as wire:
            await SignedPublisher(self._deployment, wire).enroll(*_PROJECTS)

    async def _send(self, count: int) -> None:
        pool = valid_messages.pool(self._deployment, self._rng, fresh=60)
        self._canaries = Canaries.of(self._deployment, *_PROJECTS)
        self._canaries.secrets |= pool.secrets
        await asyncio.to_thread(self._stage, pool.staged)
        cases = Cases(self._deployment, pool, self._rng)
        self._good = cases.good
        plain, other = Sender(self._deployment.amqp_url), Sender(self._deployment.amqp_url)
        for start in range(0, count, _AT_ONCE):
            drawn = [
                (f"m{number}", self._drawn(cases, number))
                for number in range(start, min(start + _AT_ONCE, count))
            ]
            good = [one for one in drawn if one[1].plain]
            await asyncio.gather(*(self._sent_by(plain, *one) for one in good))
            for one in drawn:
                if one not in good:
                    await self._sent_by(other, *one)

    def _drawn(self, cases: Cases, number: int) -> Case:
        if number % _GOOD_EVERY:
            return cases.draw(f"m{number}")
        key, plaintext = f"good/{number}", self._rng.randbytes(self._rng.choice((0, 100, 30_000)))
        self._stored[key] = plaintext
        upload = rq.upload(self._deployment, _GOOD_PROJECT, key, plaintext)
        return cases.good(upload.document, f"m{number}")

    async def _sent_by(self, sender: Sender, message_id: str, case: Case) -> None:
        if await sender.send(case):
            self._sent[message_id] = case
        elif case.plain:
            self.watch.found("the broker did not take a plain message", case.dump())
        else:
            self.watch.outcome("not taken by the broker", 0)

    def _stage(self, staged: dict[str, bytes]) -> None:
        client = stored_objects.s3_client(self._deployment)
        for key, body in staged.items():
            client.put_object(Bucket=self._deployment.bucket, Key=key, Body=body)

    async def _good_one(self, key: str) -> None:
        """One more, which must not wait behind anything."""
        upload = rq.upload(self._deployment, _GOOD_PROJECT, key, b"last")
        self._stored[key] = b"last"
        case = self._good(upload.document, "last")
        self._sent["last"] = case
        await Sender(self._deployment.amqp_url).send(case)
        await self._workers[0].logged(upload.upload_id, timeout_s=10)

    async def _settled(self) -> None:
        """Wait until each one is served or dead."""
        try:
            async with asyncio.timeout(_SETTLE_TIMEOUT_S):
                while self._ended < len(self._sent):  # noqa: ASYNC110  # two logs and a list
                    await asyncio.sleep(0.1)
        except TimeoutError:
            self._found(f"{len(self._sent) - self._ended} messages came to no end")

    @property
    def _served(self) -> Counter[str]:
        lines = (line for running in self._workers for line in running.lines)
        return Counter(name for line in lines for name in _SERVED if f'"event":"{name}"' in line)

    @property
    def _ended(self) -> int:
        return len(self._letters.found) + self._served.total() - len(_PROJECTS)

    async def _sample(self, count: int) -> None:
        processes = [psutil.Process(running.process.pid) for running in self._workers]
        while True:
            rss = tuple(process.memory_info().rss for process in processes)
            self._memory.append((self._ended / count, rss))
            await asyncio.sleep(0.25)

    def _connections(self) -> list[set[int]]:
        """The workers' own ports on their connections to the broker."""
        broker = urlsplit(self._deployment.amqp_url).port
        return [
            {
                found.laddr.port
                for found in psutil.Process(running.process.pid).net_connections("tcp")
                if found.raddr and found.raddr.port == broker
            }
            for running in self._workers
        ]

    def _found(self, what: str, case: Case | None = None) -> None:
        self.watch.found(what, b"" if case is None else case.dump())

    def _judge(self) -> None:
        for name, count in self._served.items():
            for _ in range(count):
                self.watch.outcome(f"served {name}", 0)
        unmatched = {name: case for name, case in self._sent.items() if not case.sound}
        for queue, letter in self._letters.found:
            self._judge_letter(queue, letter, unmatched)
        self._judge_stored()
        self._judge_logs()
        self._judge_memory()

    def _judge_letter(
        self, queue: str, letter: IncomingMessage, unmatched: dict[str, Case]
    ) -> None:
        code = str(letter.headers.get(CODE_HEADER))
        self.watch.outcome(code, 0)
        case = self._sent.get(letter.message_id or "")
        if case is None:
            case = next((c for c in unmatched.values() if c.body == letter.body), None)
        if case is None:
            self._found(f"a dead letter that was never sent: {letter.message_id}")
            return
        if code not in all_errors() or queue != dead_queue_of(case.queue, code):
            self._found(f"dead with {code} in {queue}", case)
        if letter.body != case.body and code not in CODES_WITHOUT_BODY:
            self._found("its body is not as it was sent", case)
        try:
            sent = received(case.header, case.body, case.routing_key, Channel())
        except FrameError:
            return
        for problem in check_copy(sent, letter):
            self._found(problem, case)

    def _judge_stored(self) -> None:
        bucket = Bucket(self._deployment)
        kek = user_kek(self._deployment.api_key, _GOOD_PROJECT)
        for key, plaintext in self._stored.items():
            try:
                opened = bucket.opened(object_s3_key(_GOOD_PROJECT, key), kek, "user", 1)
            except (SealError, bucket.client.exceptions.ClientError) as exc:
                self._found(f"a good upload is not stored: {key}: {exc!r}")
                continue
            if opened != plaintext:
                self._found(f"a good upload was stored wrong: {key}")

    def _judge_logs(self) -> None:
        lines = [line for running in self._workers for line in running.lines]
        for line in lines:
            if '"level":"error"' in line:
                self._found(f"an error in the log: {line[:600]}")
        for name in self._canaries.found(lines):
            self._found(f"a log shows a secret: {name}")

    def _judge_memory(self) -> None:
        """The last third of the work must not need more than the first, after its start."""
        first = [rss for share, rss in self._memory if 0.15 < share <= 0.4]
        last = [rss for share, rss in self._memory if share > 0.7]
        if not first or not last:
            self._found("the run was too short to look at memory")
            return
        for number in range(len(self._workers)):
            before = median(rss[number] for rss in first) / 2**20
            after = median(rss[number] for rss in last) / 2**20
            self.watch.report.rss_mib = (round(before), round(after))
            if after - before > _MAX_GROWTH_MIB:
                self._found(f"a worker grew from {before:.0f} to {after:.0f} MiB")


def run(deployment: Deployment, seed: int, count: int) -> Report:
    """`count` mutated messages to workers of this deployment, from this seed."""
    tolerate_odd_properties()
    logging.disable(logging.CRITICAL)  # the client's, of connections that the broker closes
    return asyncio.run(Live(deployment, seed).run(count))
