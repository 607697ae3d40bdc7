"""Several workers, one bucket, one broker, and a scheduler that decides which of them proceeds.

The classes are the workers' own, wired as `worker.wiring` wires them. Everything that they
do to the world is a request on the network or a message in a queue; a test lets each one on,
holds it, loses it, or kills its sender. Nothing waits for real, nothing is random but
the keys, so that one list of choices always gives one story.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Self

import pytest
import structlog

from keyturn.crypto import Secret, kek_info, seal, to_base64, transport_context, upload_info
from keyturn.identifiers import format_time, keyring_s3_key, object_s3_key, staging_s3_key
from keyturn.messages import SourceObject, parse_audit
from keyturn.publisher.sessions import SealingSession
from keyturn.topology import CONTROL_QUEUE, UPLOAD_QUEUE, dead_letter_name
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_proof import RESEND_AFTER_S
from keyturn_workers.storage.clock import INTERVAL_S
from tests.protocol.broker import Delivery, QueuedMessage
from tests.protocol.clock import Clock, Loop
from tests.protocol.customer_keys import Stores
from tests.protocol.hostile import BrokerWriter, BucketWriter
from tests.protocol.letter_mover import ACTOR
from tests.protocol.marks import Marks
from tests.protocol.oracle import Oracle
from tests.protocol.process import (
    GRANTS,
    LEASE_S,
    MASTER_KEYS,
    PUBLISHERS,
    Options,
    Parts,
    Process,
    intake,
    publisher_settings,
)
from tests.protocol.source import PREFIX, SOURCE, Drop, id_of
from tests.protocol.waiters import ENDS, Record, SentRequest, Waiter, verified
from tests.protocol.wire import CURRENT, MID, SENT, Call, Network, Server
from tests.support.routes import deliver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from keyturn.errors import CodedError
    from keyturn.messages import Event
    from keyturn.publisher.event_stream import StreamRecord
    from tools.harness.memory_bucket import Stored

TICK_S: Final = 0.01
_STEPS: Final = 20_000
# A sweep that is stalled for longer than a quarter of an hour is recovered.
_STALLED_S: Final = 1000
_ROUNDS: Final = 3
_QUEUES: Final = {"upload.requested": UPLOAD_QUEUE}


class World:
    """All of it. Close it at the end: it patches clocks, and holds an event loop."""

    def __init__(self, parts: Parts | None = None, options: Options | None = None) -> None:
        self.parts = parts or Parts()
        self.options = options or Options()
        self.clock = Clock()
        self._patch = pytest.MonkeyPatch()
        self.clock.rule(self._patch)
        self._logging = structlog.get_config()
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
        self.loop = Loop(self.clock)
        self.network = Network(self.loop, self.clock)
        self.oracle = Oracle(MASTER_KEYS, GRANTS)
        self.bucket_writer = BucketWriter(self)
        self.server = Server(
            self.network,
            self._wrote,
            parts_lost=self.oracle.parts_lost,
            capabilities=self.options.capabilities,
            versioned=self.options.versioned,
        )
        self.oracle.server = self.server
        self.stores = Stores(self.network, self.oracle.customer_keys, self.oracle.erasures)
        self.source = Drop(
            self.network,
            self._emptied,
            versioned=self.options.source_versioned,
            honors_conditions=self.options.source_honors_conditions,
        )
        # Every object of the source that was ever named, with its body.
        self.dropped: list[tuple[dict[str, Any], bytes]] = []
        self.processes: list[Process] = []
        self.marks = Marks(self._patch, self._marked)
        self.queue: list[QueuedMessage] = []
        self.nothing_confirmed_until = 0.0
        # Whether sweeps may need the periodic scan: a message was dropped, or a keyring or a
        # sweep's record was removed or set back. Otherwise every sweep ends without it.
        self.needs_scan = False
        # Every message that was ever in a queue, and every record of the stream of events.
        self.all_messages: list[QueuedMessage] = []
        self.stream: list[Record] = []
        self._signed: set[Record] = set()
        self.dead: list[tuple[QueuedMessage, CodedError]] = []
        self.retries: Counter[str] = Counter()
        self.requests: dict[str, dict[str, Any]] = {}
        # Every request by the digest of its bytes, and those who wait for the honest ones.
        self.sent_requests: dict[tuple[str, str], SentRequest] = self.oracle.laws.sent_requests
        self.waiters: list[Waiter] = []
        self.broker_writer = BrokerWriter(self)
        # Which of the dead letters a request names: not one that dies later with the same body.
        self.chosen_letters: dict[str, tuple[QueuedMessage, ...]] = {}
        # By number: the leases of processes that have another one than the rest.
        self.leases = dict(self.options.leases)
        self.processes = [Process(self, n) for n in range(self.options.processes)]
        self._next_process = 0
        self._made = 0
        # Of each publisher's processes, by its name and their number.
        self._sessions: dict[tuple[str, int], SealingSession] = {}
        self._timed_at = 0.0
        self.loop.run_until_idle()
        self.keep_current()
        self.loop.run_until_idle()

    def close(self) -> None:
        """End every task, and put the clocks back."""
        for process in self.processes:
            process.end()
        for call in self.network.calls:
            call.client.cancel()
            if call.resume is not None:
                call.resume.cancel()
        for process in self.processes:
            for delivery in process.deliveries:
                if delivery.task is not None:
                    delivery.task.cancel()
        self.clock.seconds += 3600
        self.loop.run_until_idle()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        self._patch.undo()
        structlog.configure(**self._logging)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def events(self) -> list[Event]:
        return self.oracle.events

    def events_published(
        self, made: Iterable[tuple[Event, Delivery | None]], record: Record
    ) -> None:
        """A worker's events are durable: one alone, or a batch."""
        for event, delivery in made:
            self.oracle.published(event, delivery)
        self._signed.add(record)
        self.streamed(record)

    def streamed(self, record: Record) -> None:
        """The stream has one more record, of any origin: each waiter reads it."""
        self.stream.append(record)
        for event in verified(record):
            if record not in self._signed:
                self.oracle.violated(f"{event.type} is read from what no worker signed")
            for waiter in self.waiters:
                if waiter.receive(event):
                    self.oracle.believed(waiter, event)

    def _wrote(self, s3_key: str, stored: Stored, call: Call | None) -> None:
        self.bucket_writer.saw(s3_key, stored)
        self.oracle.wrote(s3_key, stored, call)

    def _emptied(self, s3_key: str, stored: Stored) -> None:
        """A worker deletes an object of the source: by then it must be published as stored."""
        upload_id = id_of(s3_key, stored)
        if not any(event.upload_id == upload_id for event in self.events_of_type("upload.stored")):
            self.oracle.violated(f"{s3_key} was deleted before it was published as stored")

    def _marked(self, record: StreamRecord) -> None:
        self.oracle.marks.appended(record, self.clock.seconds)
        for process in self.processes:
            process.link.wake()

    def recorded(self, body: bytes) -> None:
        """A worker's record of the audit trail is durable."""
        self.oracle.reports.recorded(parse_audit(body))

    def acknowledged(self, delivery: Delivery) -> None:
        self.oracle.acknowledged(delivery)

    def channel_closed(self, reason: str) -> None:
        self.oracle.violated(f"the broker closed a channel: {reason}")

    # Requests.

    def _id(self) -> str:
        self._made += 1
        return str(uuid.UUID(int=self._made, version=4))

    def put(self, queued: QueuedMessage) -> None:
        """A message enters its queue."""
        self.all_messages.append(queued)
        self.queue.append(queued)

    def send(
        self, body: bytes, publisher: str, routing_key: str, *, queue: str | None = None
    ) -> None:
        """Whatever bytes, signed by a publisher."""
        self.oracle.laws.signed.add((publisher, body))
        signature = PUBLISHERS[publisher].sign_request("test", publisher, body)
        headers = {"keyturn-publisher": publisher, "keyturn-signature": signature}
        queue = queue or _QUEUES.get(routing_key, CONTROL_QUEUE)
        self.put(QueuedMessage(queue, body, headers, routing_key=routing_key))

    def _publish(
        self,
        document: dict[str, Any],
        publisher: str = "api",
        *,
        honest: bool = True,
        secret: bytes | None = None,
    ) -> str:
        """Sign a request and send it; a waiter waits for the response to an honest one."""
        document = {"requested_at": format_time(self.clock.now), **document}
        request = SentRequest(publisher, document, json.dumps(document).encode(), honest, secret)
        if (publisher, request.digest) not in self.sent_requests:
            self.sent_requests[publisher, request.digest] = request
            self.oracle.reports.sent(request)
            if honest:
                self.waiters += [Waiter(request), Waiter(request, restarted=True)]
        if honest:
            self.requests[request.id] = document
        self.send(request.body, publisher, request.kind)
        return request.id

    def _kek(self, purpose: Any, request_id: str, project: str, kek: bytes) -> dict[str, str]:
        ciphertext = intake().public_key.seal(kek, kek_info(purpose, request_id, project))
        return {"intake_key": "main", "ciphertext": to_base64(ciphertext)}

    def enroll(
        self,
        project: str,
        *,
        publisher: str = "api",
        request_id: str | None = None,
        honest: bool = True,
        kek: bytes | None = None,
        **more: Any,
    ) -> str:
        """Ask for an enrollment; the KEK is that of the id, unless one is given."""
        request_id = request_id or self._id()
        kek = kek or hashlib.sha256(request_id.encode()).digest()
        sealed = self._kek("enroll", request_id, project, kek)
        document = {"type": "enroll.requested", "request_id": request_id, "project": project}
        request = {**document, "sealed_kek": sealed, **more}
        return self._publish(request, publisher, honest=honest, secret=kek)

    def rotate(
        self,
        project: str,
        *,
        publisher: str = "api",
        request_id: str | None = None,
        honest: bool = True,
        kek: bytes | None = None,
        new_kek: bool = True,
        **more: Any,
    ) -> str:
        """Ask for a rotation; the KEK is that of the id, unless one is given, or none is wanted."""
        rotation_id = request_id or self._id()
        request: dict[str, Any] = {
            "type": "rotation.requested",
            "rotation_id": rotation_id,
            "project": project,
            **more,
        }
        if not new_kek:
            return self._publish(request, publisher, honest=honest)
        kek = kek or hashlib.sha256(rotation_id.encode()).digest()
        request["sealed_kek"] = self._kek("rotation", rotation_id, project, kek)
        return self._publish(request, publisher, honest=honest, secret=kek)

    def sweep(
        self,
        project: str,
        *,
        publisher: str = "api",
        request_id: str | None = None,
        honest: bool = True,
        **more: Any,
    ) -> str:
        sweep_id = request_id or self._id()
        document = {"type": "sweep.requested", "sweep_id": sweep_id, "project": project, **more}
        return self._publish(document, publisher, honest=honest)

    def delete(
        self,
        project: str,
        key: str,
        *others: str,
        publisher: str = "api",
        request_id: str | None = None,
        honest: bool = True,
    ) -> str:
        """Ask for a delete of one key, or of several at once."""
        keys = [key, *others]
        if GRANTS[publisher].allows("delete.requested", project):
            self.oracle.delete_requested |= {object_s3_key(project, key) for key in keys}
        request_id = request_id or self._id()
        document = {"type": "delete.requested", "request_id": request_id, "project": project}
        named = {"keys": keys} if others else {"key": key}
        return self._publish({**document, **named}, publisher, honest=honest)

    def recover(
        self,
        project: str,
        *,
        publisher: str = "api",
        request_id: str | None = None,
        honest: bool = True,
    ) -> str:
        """Ask that the keyring in the bucket is accepted, as an operator sees it and its mark."""
        marks = [json.loads(record.body) for record in self.marks.of(project)]
        newest = max(marks, key=lambda mark: int(mark["serial"]), default=None)
        named = {} if newest is None else {"serial": newest["serial"], "mark": newest["digest"]}
        body = self.server.current_objects()[keyring_s3_key(project)].body
        request_id = request_id or self._id()
        document = {
            "type": "recover.requested",
            "request_id": request_id,
            "project": project,
            "reason": "restored from a backup",
            "digest": hashlib.sha256(body).hexdigest(),
            **named,
        }
        return self._publish(document, publisher, honest=honest)

    def erase(
        self,
        project: str,
        *,
        publisher: str = "api",
        request_id: str | None = None,
        honest: bool = True,
        reason: str = "the contract ended",
    ) -> str:
        """Ask that a project be erased."""
        request_id = request_id or self._id()
        document = {"type": "erase.requested", "request_id": request_id, "project": project}
        return self._publish({**document, "reason": reason}, publisher, honest=honest)

    def lose_broker(self) -> None:
        """All marks are lost, and the memory of all processes."""
        self.marks.lose()
        self.oracle.marks.touched.update(self.oracle.projects)
        for process in list(self.processes):
            self.crash(process)

    def status(
        self,
        project: str,
        *,
        view: str = "projects",
        publisher: str = "api",
        request_id: str | None = None,
        honest: bool = True,
        **more: Any,
    ) -> str:
        """Ask for a report."""
        request_id = request_id or self._id()
        document = {"type": "status.requested", "request_id": request_id, "project": project}
        return self._publish({**document, "view": view, **more}, publisher, honest=honest)

    def move_letters(
        self,
        *letters: QueuedMessage,
        digests: Sequence[str] = (),
        action: str = "replay",
        publisher: str = "api",
        request_id: str | None = None,
        honest: bool = True,
    ) -> str:
        """Ask that dead letters be moved; `digests` are of letters that are not there."""
        request_id = request_id or self._id()
        self.chosen_letters[request_id] = letters
        named = [hashlib.sha256(letter.body).hexdigest() for letter in letters]
        document = {
            "type": "dead_letters.requested",
            "request_id": request_id,
            "project": "*",
            "actor": ACTOR,
            "action": action,
            "queue": dead_letter_name(letters[0].queue if letters else UPLOAD_QUEUE),
            "letters": [*named, *digests],
        }
        return self._publish(document, publisher, honest=honest)

    def upload(
        self,
        project: str,
        key: str,
        plaintext: bytes,
        *,
        staged: bool = False,
        publisher: str = "api",
        request_id: str | None = None,
        honest: bool = True,
    ) -> str:
        """Ask for an upload, with its body inside or staged beforehand."""
        upload_id = request_id or self._id()
        transport_key = hashlib.sha256(upload_id.encode()).digest()
        sealed = seal(transport_key, transport_context(upload_id), plaintext)
        info = upload_info(upload_id, project, key)
        if staged:
            self.server.plant(staging_s3_key(publisher, upload_id), sealed, Headers({}))
        body = {"staged": {"size": len(sealed)}} if staged else {"inline": to_base64(sealed)}
        self.may_store(project, key, plaintext, publisher)
        document = {
            "type": "upload.requested",
            "upload_id": upload_id,
            "project": project,
            "key": key,
            "sealed_key": self._sealed_key(publisher, transport_key, info),
            "body": body,
        }
        return self._publish(document, publisher, honest=honest, secret=plaintext)

    def drop(self, project: str, key: str, body: bytes) -> dict[str, Any]:
        """Its owner writes an object into the source; returns it as requests name it."""
        named = self.source.written(f"{PREFIX}{project}/{key}", body)
        self.dropped.append((named, body))
        return named

    def source_id(self, named: dict[str, Any]) -> str:
        """The id of the upload of an object of the source."""
        return SourceObject.model_validate(named).upload_id("test")

    def upload_from_source(
        self,
        named: dict[str, Any],
        body: bytes,
        *,
        publisher: str = "api",
        request_id: str | None = None,
        honest: bool = True,
    ) -> str:
        """Ask for an upload of an object of the source, which had this body when it was named."""
        target = SOURCE.target(named["key"])
        assert target is not None
        document = {
            "type": "upload.requested",
            "upload_id": request_id or self.source_id(named),
            "project": target.project,
            "key": target.object_key,
            "body": {"source": named},
        }
        if named["name"] in GRANTS[publisher].sources:
            self.may_store(target.project, target.object_key, body, publisher)
        return self._publish(document, publisher, honest=honest, secret=body)

    def _sealed_key(self, publisher: str, transport_key: bytes, info: bytes) -> dict[str, Any]:
        """Without a session, or under that of one of the publisher's two processes, in turns."""
        turn = self._made % 3
        if turn == 0:
            ciphertext = intake().public_key.seal(transport_key, info)
            return {"intake_key": "main", "ciphertext": to_base64(ciphertext)}
        session = self._sessions.get((publisher, turn))
        if session is None:
            settings = publisher_settings(publisher)
            session = SealingSession(settings, max_messages=3, now_s=lambda: self.clock.seconds)
            self._sessions[publisher, turn] = session
        return session.seal(Secret(transport_key), info).model_dump()

    def may_store(self, project: str, key: str, plaintext: bytes | None, publisher: str) -> None:
        """A publisher signed this upload: the object may hold its plaintext if it is permitted."""
        if plaintext is not None and GRANTS[publisher].allows("upload.requested", project):
            self.oracle.plaintexts.setdefault(object_s3_key(project, key), set()).add(plaintext)

    def replay(self, request_id: str, **more: Any) -> None:
        """The publisher sends the same request once more, in the same bytes or with changes."""
        request = next(
            a for a in reversed(self.sent_requests.values()) if a.id == request_id and a.honest
        )
        self._publish({**request.document, **more}, request.publisher, secret=request.secret)

    def send_again(self, request_id: str) -> None:
        """A new attempt under the same id, signed again; a staged body is staged again."""
        request = next(
            a for a in reversed(self.sent_requests.values()) if a.id == request_id and a.honest
        )
        if "staged" in request.document.get("body", {}):
            assert request.secret is not None
            transport_key = hashlib.sha256(request_id.encode()).digest()
            sealed = seal(transport_key, transport_context(request_id), request.secret)
            self.server.plant(staging_s3_key(request.publisher, request_id), sealed, Headers({}))
        self.replay(request_id, requested_at=format_time(self.clock.now))

    # The scheduler.

    @property
    def calls(self) -> list[Call]:
        return self.network.calls

    def moving(self) -> list[Call]:
        """The requests that can proceed; those of a stalled worker cannot."""
        stalled = [process for process in self.processes if process.stalled]
        return [call for call in self.calls if call.can_proceed and call.sender not in stalled]

    def ready(self) -> list[QueuedMessage]:
        """The messages that can be delivered now."""
        return [queued for queued in self.queue if queued.ready_at <= self.clock.seconds]

    def deliver(self, queued: QueuedMessage, process: Process | None = None) -> Delivery:
        """Give a message to a process: the next one that is awake."""
        if process is None:
            awake = [each for each in self.processes if not each.stalled] or self.processes
            self._next_process += 1
            process = awake[self._next_process % len(awake)]
        self.queue.remove(queued)
        self.keep_current()
        self.loop.run_until_idle()
        delivery = Delivery(queued, process, process.channel(queued.queue))
        route, acks = process.routes[queued.queue], process.acks[queued.queue]

        async def consumed() -> None:
            CURRENT.set(delivery)
            message: Any = delivery
            if await deliver(route, message):
                acks.done(message)
            else:
                acks.give_back(message)

        delivery.task = self.loop.create_task(consumed())
        self.loop.run_until_idle()
        return delivery

    def step(self, call: Call, *, respond: bool = True) -> None:
        self.clock.seconds += TICK_S
        self._end_copies(self.clock.seconds)
        self.keep_current()
        if call in self.calls and call.can_proceed:
            self.network.step(call, respond=respond)
        self.loop.run_until_idle()

    def advance(self, seconds: float) -> None:
        """Let time pass. A copy that the server began ends within its lease (SPEC 8.4)."""
        until = self.clock.seconds + seconds
        self._end_copies(until)
        while (at := self._timed_at + INTERVAL_S) <= until:
            self._timed_at = at
            if at >= self.clock.seconds:
                self.clock.seconds = at
                self._learn_time()
        self.clock.seconds = max(self.clock.seconds, until)
        self.keep_current()
        self.loop.run_until_idle()

    def keep_current(self) -> None:
        """Let each process read the marks that it has not read yet."""
        for process in self.processes:
            process.keep_current()

    def _learn_time(self) -> None:
        """What each worker requests from the storage now and then, besides all else (SPEC 8.4)."""
        for process in self.processes:
            if not process.stalled:
                now_s = self.clock.seconds
                process.keyrings.clock.observe(self.server.now, now_s, now_s)

    def _end_copies(self, until: float) -> None:
        due = [call for call in self.calls if call.state == MID and call.op != "put_stream"]
        for call in sorted(due, key=lambda call: call.began + call.lease_s):
            end = call.began + call.lease_s
            if end <= until:
                self.clock.seconds = max(self.clock.seconds, end)
                self.network.step(call)

    def crash(self, process: Process, *, arriving: Callable[[Call], bool] = lambda _: True) -> None:
        """Kill a process; `arriving` says which of its requests that were sent still arrive."""
        process.end()
        for delivery in process.disconnect():
            assert delivery.task is not None
            delivery.task.cancel()
        for call in [call for call in self.calls if call.sender is process]:
            if call.state == SENT and not arriving(call):
                self.calls.remove(call)
            call.client.cancel()
        self.processes[process.number] = Process(self, process.number)
        self.loop.run_until_idle()

    def stop(
        self,
        process: Process,
        *,
        hold: Callable[[Call], object] = lambda _: False,
        seconds: float = 30,
    ) -> None:
        """End a process in order: it gets no more, its handlers have some time, and then it dies.

        Nobody gets a message meanwhile.
        """
        self.run(
            until=lambda: all(each.is_served for each in process.deliveries),
            hold=hold,
            keep=lambda _: True,
            seconds=seconds,
        )
        for acks in process.acks.values():
            self.loop.create_task(acks.flush())
        self.loop.run_until_idle()
        if any(each.is_served for each in process.deliveries):
            self.oracle.violated("a process stopped, and had not acknowledged what it had served")
        self.crash(process)

    def restart(self, process: Process, *, clock_s: float = 0.0) -> Process:
        """Kill a process; a fresh one takes its place, and asks the storage for its time.

        For a lease, the fresh process reaches only a front end whose clock is off by `clock_s`.
        (One that reaches no other for longer than two leases cannot notice it.)
        """
        self.crash(process)
        fresh = self.processes[process.number]
        until_s = self.clock.seconds + LEASE_S
        self.server.front_end(
            clock_s, lambda call: call.sender is fresh and self.clock.seconds < until_s
        )
        task = self.loop.create_task(fresh.learn_time())
        # If that fails, the process asks again later: every read of a keyring is an answer too.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.loop.run_until_idle()
        return fresh

    def unify_leases(self) -> None:
        """As an operator does who finds different ones: all processes restart with the longest."""
        longest = max(process.lease_s for process in self.processes)
        for process in self.processes:
            if process.lease_s < longest:
                self.leases[process.number] = longest
                self.crash(process)

    def disconnect(self, process: Process, *, noticed: bool = True) -> None:
        """The broker considers a process lost; if that is unnoticed, its work continues."""
        for delivery in process.disconnect(noticed=noticed):
            if noticed:
                assert delivery.task is not None
                delivery.task.cancel()
        self.loop.run_until_idle()

    def drop_messages(self, which: Callable[[QueuedMessage], object]) -> None:
        """Remove these messages from their queues, as an operator or an attacker can."""
        self.queue[:] = [queued for queued in self.queue if not which(queued)]
        self.needs_scan = True

    def duplicate(self, queued: QueuedMessage) -> None:
        """The same message once more, as a publisher sends it that missed its confirmation."""
        copy = QueuedMessage(
            queued.queue, queued.body, dict(queued.headers), routing_key=queued.routing_key
        )
        copy.ready_at = queued.ready_at
        self.put(copy)

    def run(
        self,
        *,
        until: Callable[[], object] | None = None,
        hold: Callable[[Call], object] = lambda _: False,
        keep: Callable[[QueuedMessage], object] = lambda _: False,
        seconds: float = float("inf"),
    ) -> bool:
        """Let everything proceed in order of arrival; returns whether `until` became true.

        Args:
            until: When to stop. By default when nothing is left that can proceed.
            hold: Requests that are held.
            keep: Messages that stay in their queue.
            seconds: How much time may pass at most.
        """
        end = self.clock.seconds + seconds
        for _ in range(_STEPS):
            if until is not None and until():
                return True
            call = next((c for c in self.moving() if not hold(c)), None)
            if call is not None:
                self.step(call)
                continue
            queued = next((each for each in self.ready() if not keep(each)), None)
            if queued is not None:
                self.deliver(queued)
                continue
            if not self._pass_time(end, keep):
                return until is None
        raise AssertionError(f"it never ends: {self.calls} {self.queue}")

    def scan_sweeps(self, process: Process) -> None:
        """A worker's periodic look at keyrings and records, to its end (SPEC 8.5)."""
        task = self.loop.create_task(process.scan_sweeps())
        self.loop.run_until_idle()
        self.run(until=task.done)
        task.exception()  # what it met, the next look meets or not

    def _pass_time(self, end: float, keep: Callable[[QueuedMessage], object]) -> bool:
        moments = [queued.ready_at for queued in self.queue if not keep(queued)]
        timer = self.loop.next_timer()
        if timer is not None:
            moments.append(timer)
        later = [moment for moment in moments if moment > self.clock.seconds]
        if not later or min(later) > end:
            return False
        self.advance(min(later) - self.clock.seconds + 0.001)
        return True

    # Results.

    def ended(self, request_id: str) -> list[Event]:
        """The events that end a request."""
        ends = ENDS[self.requests[request_id]["type"]]
        return [e for e in self.events if e.type in ends and _id_of(e) == request_id]

    def events_of_type(self, event_type: str) -> list[Any]:
        return [event for event in self.events if event.type == event_type]

    def holds(self) -> bool:
        """Whether nothing was violated so far."""
        return not self.oracle.violations

    def settle(self) -> None:
        """Let everything end, sweep all projects, and check the result."""
        for process in self.processes:
            process.stalled = False
        self.server.mend()
        self.marks.mend()
        self.stores.mend()
        for name in self.oracle.marks.touched:
            self.bucket_writer.put_right(name)
        self._let_requests_end()
        for waiter in self.waiters:
            self.oracle.laws.settled(waiter)
        last = {name: self.sweep(name) for name in sorted(self.oracle.projects)}
        self.run()
        for name, sweep_id in last.items():
            ends: list[Any] = self.ended(sweep_id)
            if name in self.oracle.erasures.erased:
                if {getattr(end, "code", None) for end in ends} != {"project_erased"}:
                    self.oracle.violated(f"the last sweep of an erased project ended: {ends}")
            elif not ends or not getattr(ends[-1], "clean", False):
                self.oracle.violated(f"the last sweep was not clean: {ends}")
        for name in self.oracle.projects:
            if name not in self.oracle.erasures.erased:
                self.oracle.check_desired(name)
            self.oracle.evidence.settled(name)

    def _let_requests_end(self) -> None:
        """Let all requests end; sweeps without the periodic scan, unless they may need it."""
        # Retries that are already waiting come first: the longest delay is as long as what follows.
        # A sweep of all projects asks again and again for the end of one that is stalled.
        delays = [queued.ready_at - self.clock.seconds for queued in self.queue]
        self.run(seconds=max([0.0, *delays]) + RESEND_AFTER_S * 2 / 3)
        for request_id, request in self.requests.items():
            origin = self.oracle.origin(request_id, request["project"])
            if origin is not None and origin["end"] is None and not self.needs_scan:
                self.oracle.violated(f"sweep {request_id} stands still, and nothing was removed")
        for _ in range(_ROUNDS):
            if all(waiter.ended for waiter in self.waiters):
                break
            self.advance(_STALLED_S)
            self.scan_sweeps(self.processes[0])
            self.run(seconds=_STALLED_S)


def _id_of(event: Any) -> str | None:
    for name in ("upload_id", "rotation_id", "sweep_id", "request_id"):
        found: str | None = getattr(event, name, None)
        if found is not None:
            return found
    return None
