"""The publisher of a run: the product's client, with retries until the broker confirms.

It also collects every event that the deployment signed, by request id.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import format_time
from keyturn.messages import request_id
from keyturn.publisher import Publisher, PublisherError
from keyturn.publisher.requests import SignedRequest
from tools.chaos.plan import CUSTOMER_KEYS, FLAWS_WITHOUT_EVENT, RIVAL, plaintext
from tools.harness import requests as rq

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from keyturn.messages import Event
    from tools.chaos.plan import Plan, Upload
    from tools.harness.deployment import Deployment

_TYPE = "upload.requested"
_TOO_LARGE_BYTES = 6 * 1024**3
_TOO_OLD = timedelta(days=8)

PUBLISH_TIMEOUT_S = 10
_PAUSE_S = 0.2
_SENDERS = 16
_LARGEST_WINDOW = 160

_T = TypeVar("_T")


class RecordingPublisher(Publisher):
    """The product's client, which records its messages, to repeat them and to search for them."""

    sent: dict[str, list[SignedRequest]]

    async def _publish(self, signed: SignedRequest) -> None:
        # Recorded before publishing: a message with unknown outcome may be on the broker's disk.
        self.__dict__.setdefault("sent", {}).setdefault(signed.request_id, []).append(signed)
        await super()._publish(signed)


@dataclass
class EventLog:
    """Every signed event so far by request id, except the hostile publisher's."""

    events: dict[str, list[Event]] = field(default_factory=dict)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def listen(self, publisher: Publisher, heard: Callable[[str], None]) -> None:
        """Collect events forever; `heard` is called with the request id of each."""
        async with aclosing(publisher.events()) as events:
            async for event in events:
                if event.publisher == RIVAL:
                    continue  # it uses others' ids, but these events are not theirs (SPEC 6.7)
                await self.add(event)
                heard(request_id(event))

    async def add(self, event: Event) -> None:
        """Record an event, and wake those who wait for it."""
        async with self._changed:
            self.events.setdefault(request_id(event), []).append(event)
            self._changed.notify_all()

    def is_stored(self, upload_id: str) -> bool:
        """Whether an upload was reported as stored."""
        return any(event.type == "upload.stored" for event in self.events.get(upload_id, ()))

    async def event(self, of_request: str, *types: str, after: int = 0) -> Event:
        """Wait for the first event of a request, of any type or one of these types.

        The first `after` events of the request are skipped.
        """
        async with self._changed:
            while True:
                for event in self.events.get(of_request, ())[after:]:
                    if not types or event.type in types:
                        return event
                await self._changed.wait()


@dataclass
class LoadSender:
    """Publishes the load in its order; `confirmed` counts publishes, the progress of the run.

    `sent_s` and `heard_s` have the monotonic times at which an upload was first confirmed, and at
    which its first event arrived.
    """

    plan: Plan
    deployment: Deployment
    publisher: RecordingPublisher
    event_log: EventLog
    enrolled: dict[str, asyncio.Event]
    confirmed: int = 0
    confirmed_ids: set[str] = field(default_factory=set)
    repeated: Counter[str] = field(default_factory=Counter)
    sent_s: dict[str, float] = field(default_factory=dict)
    heard_s: dict[str, float] = field(default_factory=dict)
    _window: asyncio.Semaphore = field(init=False)
    _awaited: set[str] = field(default_factory=set)
    _moved: asyncio.Condition = field(default_factory=asyncio.Condition)
    _first: dict[int, asyncio.Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Limits the uploads that are confirmed but not reported, so that faults keep pace.
        self._window = asyncio.Semaphore(max(_SENDERS, min(self.plan.count // 15, _LARGEST_WINDOW)))

    def heard(self, upload_id: str) -> None:
        """An event arrived: one more upload may be published."""
        self.heard_s.setdefault(upload_id, time.monotonic())
        if upload_id in self._awaited:
            self._awaited.discard(upload_id)
            self._window.release()

    async def reached(self, confirmed: int) -> None:
        """Wait until this many publishes are confirmed."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.confirmed >= confirmed)

    async def send_all(self) -> None:
        """Publish the complete load, a few uploads at a time."""
        waiting = iter(self.plan.load.order)

        async def sender() -> None:
            for upload in waiting:
                await self._send(upload)

        async with asyncio.TaskGroup() as group:
            for _ in range(_SENDERS):
                group.create_task(sender())

    async def until_confirmed(self, send: Callable[[], Awaitable[_T]]) -> _T:
        """Send, and repeat with the same id if the outcome is unknown or staging failed."""
        while True:
            try:
                return await send()
            except (PublisherError, StorageUnavailableError) as exc:
                self.repeated[type(exc).__name__] += 1
                await asyncio.sleep(_PAUSE_S)

    async def send_early(self, project: str) -> None:
        """Publish an upload of a project before its turn; if none is left, an earlier one again.

        In its turn it is published again, as those that are published twice.
        """
        plain = [u for u in self.plan.load.uploads if u.project == project and u.is_plain]
        upload = next((u for u in plain if u.number not in self._first and not u.staged), None)
        if upload is not None:
            first = self._first[upload.number] = asyncio.Event()
            await self.until_confirmed(lambda: self._once(upload))
            first.set()
            return
        sent = next((u for u in reversed(plain) if u.upload_id in self.confirmed_ids), None)
        if sent is not None:
            await self.until_confirmed(lambda: self._again(sent))

    async def _send(self, upload: Upload) -> None:
        await self._window.acquire()
        again = self._first.get(upload.number)
        if again is None:
            first = self._first[upload.number] = asyncio.Event()
            if self._is_awaited(upload):
                self._awaited.add(upload.upload_id)
            await self.until_confirmed(lambda: self._once(upload))
            first.set()
        else:
            await again.wait()
            await self.until_confirmed(lambda: self._again(upload))
        if again is not None or not self._is_awaited(upload):
            self._window.release()
        async with self._moved:
            self.confirmed += 1
            self.confirmed_ids.add(upload.upload_id)
            self._moved.notify_all()

    def _is_awaited(self, upload: Upload) -> bool:
        """Whether its event makes place for another: those that wait for a store stop no others."""
        return upload.flaw not in FLAWS_WITHOUT_EVENT and upload.project not in CUSTOMER_KEYS

    async def _once(self, upload: Upload) -> None:
        if upload.project in self.enrolled:
            # What refuses events holds an enrollment up, too, for longer than uploads wait for it.
            await self.enrolled[upload.project].wait()
        if upload.flaw is not None:
            await self.publisher._publish(invalid_request(self.deployment, self.plan.seed, upload))
            return
        if upload.rewrites is not None:
            # The earlier one may be delivered again after its worker was killed, behind this one.
            await self.event_log.event(upload.rewrites, "upload.stored")
        await self.publisher.upload(
            upload.project,
            upload.key,
            plaintext(self.plan.seed, upload),
            content_type=upload.content_type,
            metadata=dict(upload.metadata) or None,
            upload_id=upload.upload_id,
        )
        self.sent_s.setdefault(upload.upload_id, time.monotonic())

    async def _again(self, upload: Upload) -> None:
        """A second publish; a staged request unchanged, since its body is sealed only for it."""
        if upload.staged:
            await self.publisher._publish(self.publisher.sent[upload.upload_id][-1])
        else:
            await self._once(upload)


def invalid_request(deployment: Deployment, seed: int, upload: Upload) -> SignedRequest:
    """The signed request of an upload with a flaw."""
    body = _body(deployment, seed, upload)
    headers = rq.headers(body, deployment.publisher_key)
    if upload.flaw == "forged":
        headers = rq.headers(body, deployment.event_key)
    if upload.flaw == "not permitted":
        headers = rq.headers(body, deployment.narrow_key, publisher="narrow")
    return SignedRequest(upload.upload_id, _TYPE, body, headers)


def _body(deployment: Deployment, seed: int, upload: Upload) -> bytes:
    if upload.flaw == "unreadable":
        return b'{"type": "upload.requested", '
    sealed_for = "another/key" if upload.flaw == "sealed for another key" else upload.key
    made = rq.upload(
        deployment,
        upload.project,
        sealed_for,
        plaintext(seed, upload),
        staged=upload.flaw == "nothing staged",
        upload_id=upload.upload_id,
    )
    return rq.encode({**made.document, **_changed(made.document, upload)})


def _changed(document: dict[str, Any], upload: Upload) -> dict[str, Any]:
    match upload.flaw:
        case "unknown field":
            return {"color": "blue"}
        case "expired":
            return {"requested_at": format_time(datetime.now(UTC) - _TOO_OLD)}
        case "other intake key":
            return {"sealed_key": {**document["sealed_key"], "intake_key": "gone"}}
        case "sealed for another key":
            return {"key": upload.key}
        case "too large":
            return {"body": {"staged": {"size": _TOO_LARGE_BYTES}}}
        case _:
            return {}
