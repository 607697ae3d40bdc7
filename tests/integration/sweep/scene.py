"""Shared by the tests of sweeps: projects with their keys, requests followed to their end.

Most of a sweep's time is the wait for two leases. So tests that need a sweep each are
scenarios: the ones of a module run at once against its worker, and each is reported by a test
of its own (see `running` in the conftest).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keyturn import topology
from keyturn.crypto import Secret, admin_kek, new_api_key, user_kek
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn.messages import COUNT_FIELDS
from tools.harness import requests
from tools.harness.bucket import Bucket

if TYPE_CHECKING:
    from aio_pika.abc import AbstractIncomingMessage

    from tools.harness.bucket import HandmadeObject
    from tools.harness.deployment import Deployment
    from tools.harness.wire import Wire
    from tools.harness.worker_under_test import OutgoingRequest, WorkerUnderTest

Document = dict[str, Any]
Event = dict[str, Any]

LEASE_S = 2
WORKER_ENV = {"LEASE_S": str(LEASE_S), "KEYRING_CACHE_S": "0.5", "SWEEP_PAGE_KEYS": "7"}
NO_COUNTS: dict[str, Any] = dict.fromkeys(COUNT_FIELDS, 0)
_END_TIMEOUT_S = 100


def counts(event: Event) -> dict[str, Any]:
    """An event's counts, without those that are 0."""
    return {name: event[name] for name in COUNT_FIELDS if event[name]} | {"clean": event["clean"]}


@dataclass
class Scene:
    """A deployment while its worker serves it; its requests may overlap."""

    served: WorkerUnderTest
    _dead: list[tuple[str, AbstractIncomingMessage]] = field(default_factory=list)
    _taking: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.bucket = Bucket(self.deployment)

    @property
    def deployment(self) -> Deployment:
        return self.served.deployment

    @property
    def wire(self) -> Wire:
        return self.served.wire

    async def enrolled(self, name: str, **more: Any) -> Project:
        """A project with its own key."""
        project = Project(self, name)
        event = await self.first_event(requests.enroll(self.deployment, name, **more))
        assert (event["type"], event["generation"]) == ("project.enrolled", 1), event
        return project

    async def send(self, document: Document) -> OutgoingRequest:
        """Publish a request of the publisher `api`."""
        sent = self.served.sign(document)
        await self.served.publish(sent, message_id=sent.request_id)
        return sent

    async def first_event(self, document: Document, *, after: int | None = None) -> Event:
        """Publish a request; returns its first event from then on that is no progress.

        Progress may come before the answer: a round can begin before that is published.
        """
        known = len(self.wire.events) if after is None else after
        sent = await self.send(document)
        return await self.wire.event(
            lambda event: (
                sent.request_id in event.values()
                and event["type"] != "sweep.progressed"
                and event not in self.wire.events[:known]
            )
        )

    async def ended(self, request_id: str, *, nth: int = 1) -> Event:
        """How a rotation or a sweep ended: its `nth` such event; raises if it was rejected."""

        def last(event: Event) -> bool:
            return request_id in event.values() and event["type"] in _ENDS

        async with asyncio.timeout(_END_TIMEOUT_S):
            while True:
                found = [event for event in self.wire.events if last(event)]
                if len(found) >= nth:
                    event = found[nth - 1]
                    assert event["type"].endswith("completed"), event
                    return event
                await self.wire.more(len(self.wire.events))

    async def swept(self, project: str, **more: Any) -> Event:
        """Request a sweep, and wait for its end."""
        document = requests.sweep(project, **more)
        await self.send(document)
        return await self.ended(document["sweep_id"])

    def origin(self, project: str, request_id: str) -> dict[str, Any]:
        """A rotation or a sweep in the record of its project, or of all (`*`)."""
        origins = self.bucket.record(f".keyturn/sweeps/{project}.json", project)["origins"]
        found: dict[str, Any] = next(each for each in origins if each["id"] == request_id)
        return found

    def failures(self, project: str, request_id: str) -> dict[str, str]:
        """The failures with which a rotation or a sweep ended: codes by object key."""
        round_id = self.origin(project, request_id)["end"]["round_id"]
        pages = self.bucket.keys(f".keyturn/sweeps/{project}/{round_id}/failures/")
        rows = [row for page in pages for row in self.bucket.record(page, project)["failures"]]
        return {row["key"]: row["code"] for row in rows}

    def events(self, request_id: str) -> list[Event]:
        """Every event of a request so far."""
        return [event for event in self.wire.events if request_id in event.values()]

    async def dead(self, queue: str, text: str) -> AbstractIncomingMessage:
        """The dead letter of this queue whose body contains this text; other ones stay."""
        async with asyncio.timeout(60):
            while True:
                async with self._taking:
                    for row in self._dead:
                        if row[0] == queue and text.encode() in row[1].body:
                            self._dead.remove(row)
                            return row[1]
                    source = await self.wire.channel.get_queue(f"{queue}.dead", ensure=False)
                    if (message := await source.get(fail=False)) is not None:
                        await message.ack()
                        self._dead.append((queue, message))
                        continue
                # A queue does not signal that it has a message to fetch.
                await asyncio.sleep(0.1)


_ENDS = (
    "rotation.completed",
    "rotation.failed",
    "rotation.rejected",
    "sweep.completed",
    "sweep.failed",
    "sweep.rejected",
)


@dataclass
class Project:
    """A project, and the API keys of its generations so far."""

    scene: Scene
    name: str
    api_keys: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.api_keys = self.api_keys or [self.scene.deployment.api_key]
        self.bucket = self.scene.bucket

    @property
    def generation(self) -> int:
        return len(self.api_keys)

    def user_kek(self, generation: int) -> Secret:
        return user_kek(self.api_keys[generation - 1], self.name)

    def admin_kek(self, master_key: bytes | None = None) -> Secret:
        return admin_kek(master_key or self.scene.deployment.master_key, self.name)

    def s3_key(self, key: str) -> str:
        return object_s3_key(self.name, key)

    def made(self, key: str, plaintext: bytes = b"hello", **more: Any) -> HandmadeObject:
        """An object by hand, at the current generation unless `more` names another."""
        more.setdefault("generation", self.generation)
        more.setdefault("api_key", self.api_keys[more["generation"] - 1])
        return self.bucket.made(self.name, key, plaintext, **more)

    def put(self, key: str, plaintext: bytes = b"hello", **more: Any) -> HandmadeObject:
        """Put such an object; `more` are arguments of boto3's `put_object`."""
        made = self.made(key, plaintext)
        self.bucket.put_made(self.name, made, **more)
        return made

    def fill(self, count: int, prefix: str = "k/") -> dict[str, bytes]:
        """Put `count` objects; returns their plaintexts by key."""
        plaintexts = {f"{prefix}{n:03}": f"plaintext {n}".encode() for n in range(count)}
        for key, plaintext in plaintexts.items():
            self.put(key, plaintext)
        return plaintexts

    async def upload(self, key: str, plaintext: bytes) -> Event:
        """Upload by the worker."""
        document = requests.upload(self.scene.deployment, self.name, key, plaintext).document
        event = await self.scene.first_event(document)
        assert event["type"] == "upload.stored", event
        return event

    def rotation(self, **more: Any) -> Document:
        """A rotation to a fresh API key, which is the project's newest from now on."""
        self.api_keys.append(new_api_key())
        return requests.rotation(self.scene.deployment, self.name, self.api_keys[-1], **more)

    async def rotated(self, **more: Any) -> Event:
        """Rotate, and wait for the end."""
        document = self.rotation(**more)
        event = await self.scene.first_event(document)
        assert event["type"] == "rotation.accepted", event
        assert event["generation"] == self.generation
        return await self.scene.ended(document["rotation_id"])

    def keyring(self, master_key: tuple[str, bytes] | None = None) -> dict[str, Any]:
        """The keyring's sealed part."""
        return self.bucket.keyring(self.name, master_key)

    def keyring_bytes(self) -> bytes:
        return self.bucket.get(keyring_s3_key(self.name))[0]

    def put_keyring(self, body: bytes) -> None:
        """Write the keyring as an attacker in the bucket could."""
        self.bucket.put(keyring_s3_key(self.name), body, {})

    def assert_opens_as(
        self, plaintexts: dict[str, bytes], *, master_key: bytes | None = None
    ) -> None:
        """Each object opens with the newest keys at the newest generation alone."""
        newest = self.generation
        for key, plaintext in plaintexts.items():
            at = self.s3_key(key)
            assert self.bucket.opened(at, self.user_kek(newest), "user", newest) == plaintext
            admin = self.admin_kek(master_key)
            assert self.bucket.opened(at, admin, "admin", newest) == plaintext
            for earlier in range(1, newest):
                kek = self.user_kek(earlier)
                for generation in range(1, newest + 1):
                    assert self.bucket.unwrapped(kek, "user", at, generation) is None


def types(events: list[Event]) -> Counter[str]:
    """How many events of each type."""
    assert all(event["type"] in topology.EVENTS for event in events)
    return Counter(event["type"] for event in events)
