"""Those who hold something that they should not: the broker, the bucket, or another's key.

None of them holds a key of the deployment or of another publisher. What they do is
repetition, relabeling, junk, and requests of their own (SPEC 13).
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from keyturn.identifiers import KEYRINGS_PREFIX, SWEEPS_PREFIX, keyring_s3_key, object_s3_key
from keyturn.messages import encode as encode_event
from keyturn.messages import encode_batch
from keyturn.topology import PLAN_QUEUE, REQUEST_ID_FIELDS, SWEEP_QUEUE
from keyturn_workers.keys.sweep_records import parse_record_path, record_path
from keyturn_workers.pipeline.sweep.messages import SweepPage, SweepStep, encode
from tests.protocol.broker import QueuedMessage
from tests.protocol.mark_laws import project_of
from tests.protocol.waiters import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyturn.messages import Event
    from tests.protocol.waiters import SentRequest
    from tests.protocol.world import World
    from tools.harness.memory_bucket import Stored

INVALID_SIGNATURE: Final = "A" * 86 + "=="


class BrokerWriter:
    """Publishes anything to any queue, and signs nothing."""

    def __init__(self, world: World) -> None:
        self._world = world

    def copy(
        self,
        queued: QueuedMessage,
        *,
        queue: str | None = None,
        routing_key: str | None = None,
        headers: Mapping[str, Any] | None = None,
        body: bytes | None = None,
    ) -> QueuedMessage:
        """A message that once was in any queue, in this or another one; None drops a header."""
        changed = {**queued.headers, **(headers or {})}
        made = QueuedMessage(
            queued.queue if queue is None else queue,
            queued.body if body is None else body,
            {name: value for name, value in changed.items() if value is not None},
            routing_key=queued.routing_key if routing_key is None else routing_key,
            ready_at=self._world.clock.seconds,
        )
        self._world.put(made)
        return made

    def junk(self, queue: str, body: bytes, **headers: Any) -> None:
        """A message without a valid signature."""
        self._world.put(
            QueuedMessage(
                queue, body, headers, routing_key=queue, ready_at=self._world.clock.seconds
            )
        )

    def unsigned(self, document: Mapping[str, Any], queue: str, publisher: str = "api") -> None:
        """A request in a publisher's name, with an invalid signature."""
        headers = {"keyturn-publisher": publisher, "keyturn-signature": INVALID_SIGNATURE}
        self._world.put(
            QueuedMessage(
                queue,
                json.dumps(document).encode(),
                headers,
                routing_key=str(document["type"]),
                ready_at=self._world.clock.seconds,
            )
        )

    def step(self, project: str, step: int, **headers: Any) -> None:
        """A forged hint: make a step of a record."""
        self.junk(PLAN_QUEUE, encode(SweepStep(project=project, step=step)), **headers)

    def page(self, project: str, round_id: str, page: int, attempt: int, **headers: Any) -> None:
        """A forged hint: do a page of a round."""
        hint = SweepPage(project=project, round=round_id, page=page, attempt=attempt)
        self.junk(SWEEP_QUEUE, encode(hint), **headers)

    def publish_again(self, record: Record) -> None:
        """An event that the stream has held before, once more."""
        self._world.streamed(record)

    def forge(self, event: Event) -> None:
        """An event that no worker signed."""
        self._world.streamed(Record(encode_event(event), INVALID_SIGNATURE))

    def repack(self, record: Record, place: int = 0) -> None:
        """What a worker signed, in other forms under the same signature.

        Of a batch each event by itself, and the rest without it; of an event a batch of one.
        """
        document = json.loads(record.body)
        kind, events = document["type"], document.get("events")
        if events is None:
            bodies = [encode_batch(kind, [record.body])]
        else:
            members = [json.dumps(event, separators=(",", ":")).encode() for event in events]
            bodies = [*members, encode_batch(kind, [*members[:place], *members[place + 1 :]])]
        for body in bodies:
            self._world.streamed(Record(body, record.signature))


class HostilePublisher:
    """A publisher that signs requests which its grants do not cover."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self.name = name

    def reuse(self, request_id: str, kind: str, project: str, **more: Any) -> str:
        """A request of its own under another's id: `key`, `plaintext`, `kek` as it wants."""
        ask = getattr(self._world, kind)
        made: str = ask(project, publisher=self.name, request_id=request_id, honest=False, **more)
        return made

    def sign_as_own(self, request: SentRequest) -> None:
        """The very bytes that another publisher signed, signed once more."""
        mine = replace(request, publisher=self.name, honest=False)
        self._world.sent_requests.setdefault((self.name, mine.digest), mine)
        if mine.kind == "upload.requested":
            self._world.may_store(mine.project, mine.document["key"], mine.secret, self.name)
        self._world.send(mine.body, self.name, mine.kind)

    def malformed(self, request_id: str, message_type: str, project: object, **more: Any) -> None:
        """A body that is no request, under another's id and project."""
        document = {
            "type": message_type,
            REQUEST_ID_FIELDS[message_type]: request_id,
            "project": project,
            "no such field": 1,
            **more,
        }
        self._world.send(json.dumps(document).encode(), self.name, message_type)


class BucketWriter:
    """Changes what is in the bucket, and holds no key."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen: dict[str, list[Stored]] = defaultdict(list)

    def remove(self, prefix: str) -> None:
        """Remove everything under a prefix, with all versions."""
        removed = [key for key in self._world.server.current_objects() if key.startswith(prefix)]
        canceled = {
            path.project: self._origins(path.project)
            for path in map(parse_record_path, removed)
            if path is not None and path.is_main
        }
        self._world.server._bucket.purge(prefix)
        self._world.needs_scan |= any(
            key.startswith((KEYRINGS_PREFIX, SWEEPS_PREFIX)) for key in removed
        )
        for key in removed:
            if key.startswith(KEYRINGS_PREFIX):
                self._world.oracle.marks.touched.add(project_of(key))
                continue
            path = parse_record_path(key)
            if path is not None and path.is_main:
                self._world.oracle.laws.canceled |= canceled[path.project]
                self._world.oracle.evidence.removed(key)

    def _origins(self, project: str) -> set[tuple[str, str]]:
        record = self._world.oracle.record(project) or {"origins": []}
        return {(origin["id"], project) for origin in record["origins"]}

    def set_back(self, project: str, place: int, *, with_results: bool = False) -> None:
        """Put an earlier state of a project's record back, perhaps with all pages' records."""
        s3_key = record_path(project)
        if not self._seen[s3_key]:
            return
        self._world.needs_scan = True
        before = self._origins(project)
        self._plant(s3_key, place)
        self._world.oracle.laws.canceled |= before - self._origins(project)
        folder = s3_key.removesuffix(".json") + "/"
        for each in [key for key in self._seen if with_results and key.startswith(folder)]:
            self._plant(each, -1)

    def relabel(self, s3_key: str, **metadata: str) -> None:
        """Change an object's metadata: `enc_upload="…"`."""
        stored = self._world.server.current_objects()[s3_key]
        named = {name.replace("_", "-"): value for name, value in metadata.items()}
        changed = {**stored.headers.metadata, **named}
        self._world.server.plant(s3_key, stored.body, replace(stored.headers, metadata=changed))

    def saw(self, s3_key: str, stored: Stored) -> None:
        """Remember whatever was in the bucket at any time."""
        if stored not in self._seen[s3_key]:
            self._seen[s3_key].append(stored)

    def states(self, project: str, key: str | None = None) -> int:
        """How many states of a project's keyring, or of an object, were in the bucket."""
        s3_key = keyring_s3_key(project) if key is None else object_s3_key(project, key)
        return len(self._seen[s3_key])

    def roll_back(self, project: str, place: int = 0) -> None:
        """Put an earlier state of a project's keyring back; by default the first one."""
        self._world.needs_scan = True
        self._plant(keyring_s3_key(project), place)

    def remove_keyring(self, project: str) -> None:
        """Remove a project's keyring, with all versions."""
        self.remove(keyring_s3_key(project))

    def put_right(self, project: str) -> None:
        """Put the keyring that the project's highest mark names back, if it is not there.

        A newer one stays: a worker has put it, and is about to mark it.
        """
        s3_key = keyring_s3_key(project)
        oracle = self._world.oracle
        states = oracle.marks.states[project]
        for place, stored in enumerate(self._seen[s3_key]):
            if states and hashlib.sha256(stored.body).hexdigest() == states[-1][1]:
                current = self._world.server.current_objects().get(s3_key)
                if current is None or (
                    current.body != stored.body
                    and oracle.keyring_serial(project, current) <= states[-1][0]
                ):
                    self._plant(s3_key, place)

    def hide(self, s3_key: str) -> None:
        """Remove an object, to put it back later."""
        self._world.server._bucket.purge(s3_key)
        self._world.oracle.hid(s3_key)

    def show(self, s3_key: str, place: int) -> None:
        """Put an earlier state of an object back."""
        self._plant(s3_key, place)
        self._world.oracle.hid(s3_key)

    def _plant(self, s3_key: str, place: int) -> None:
        seen = self._seen[s3_key]
        stored = seen[place % len(seen)]
        self._world.server.plant(s3_key, stored.body, stored.headers)
