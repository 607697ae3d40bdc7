"""Checks what is published against the effect of the requests: no event may be false.

It knows every request as it was signed, the message that caused each write, and what each
waiter believes (SPEC 6.3, 6.7, 13).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keyturn.crypto import Secret, kek_id
from keyturn.identifiers import object_s3_key
from keyturn.topology import CONTROL_QUEUE, CONTROL_REQUESTS, UPLOAD_QUEUE, UPLOAD_REQUESTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from keyturn.messages import Event
    from keyturn_workers.core.grants import Grant
    from tests.protocol.broker import Delivery, QueuedMessage
    from tests.protocol.waiters import SentRequest, Waiter

_SERVED: Final = {UPLOAD_QUEUE: UPLOAD_REQUESTS, CONTROL_QUEUE: CONTROL_REQUESTS}
_OPTIONS: Final = {
    "master_key": None,
    "encrypt_plaintext": False,
    "repair": False,
}
# What may be so by another request already: that it is so is judged in the bucket.
_JOINED: Final = frozenset({"sweep.requested", "delete.requested"})
# What changes nothing in the bucket, whatever its answer: `report_laws` judges that.
_CHANGELESS: Final = frozenset({"status.requested", "dead_letters.requested"})
_ENDS_OF: Final = {
    "project.enrolled": "enroll",
    "project.recovered": "recover",
    "project.erased": "erase",
    "object.deleted": "delete",
}


@dataclass(frozen=True)
class Holder:
    """Whose upload stored an object; no publisher's if a test put it there."""

    publisher: str = ""
    upload_id: str = ""
    plaintext: bytes | None = None
    # Whether the object names its publisher: plaintext is known by its id and its bytes alone.
    tagged: bool = True


class Laws:
    """Checks what was published. `violated` is called with each violation.

    Args:
        violated: Takes what is wrong.
        grants: What each publisher may do.
    """

    def __init__(self, violated: Callable[[str], None], grants: Mapping[str, Grant]) -> None:
        self._violated = violated
        self._grants = grants
        # Every request by its publisher and the digest of its bytes.
        self.sent_requests: dict[tuple[str, str], SentRequest] = {}
        # Sweeps whose record a bucket writer removed, by id and project. A part of a sweep of all
        # is in the record of its project: that sweep adds it again.
        self.canceled: set[tuple[str, str]] = set()
        # Whatever a publisher signed, requests or not.
        self.signed: set[tuple[str, bytes]] = set()
        self._holders: dict[str, Holder] = {}
        # Keys whose object was changed behind the workers: its own upload may find it or not.
        self._tampered: set[str] = set()
        # Those that a bucket writer removed or put back: any upload may have found them free.
        self._hidden: set[str] = set()
        # By publisher, project, id, KEK id and customer key, as far as they were asked for: the
        # generation that a request brought.
        self._rotated: dict[tuple[str | None, ...], int] = {}
        self._latest: dict[str, int] = {}
        # Those of them that enrollments brought: a rotation may have the id and KEK of one.
        self._enrolled: set[tuple[str | None, ...]] = set()
        # By publisher, digest and S3 key.
        self._tombstoned: set[tuple[str, str, str]] = set()
        self._recovered: set[tuple[str, str]] = set()
        self._planned: set[tuple[str, str]] = set()
        # By project: publisher and digest of the request that erased it.
        self._erased: dict[str, tuple[str, str]] = {}

    # What happens.

    def request_of(self, delivery: Delivery | None) -> SentRequest | None:
        """The request that a delivery brought, where a publisher signed it."""
        if delivery is None:
            return None
        queued = delivery.queued
        if not self._is_signed(queued):
            return None
        digest = hashlib.sha256(queued.body).hexdigest()
        return self.sent_requests.get((queued.headers["keyturn-publisher"], digest))

    def _is_signed(self, queued: QueuedMessage) -> bool:
        return (queued.headers.get("keyturn-publisher"), queued.body) in self.signed

    def wrote(self, s3_key: str, delivery: Delivery | None) -> None:
        """Anything was written by a worker: for a signed message, on its own queue."""
        if delivery is None or delivery.queued.queue not in _SERVED:
            return
        if not self._is_signed(delivery.queued):
            self._violated(f"{s3_key} was written for a message without a valid signature")
        elif not _is_in_its_place(delivery.queued):
            self._violated(f"{s3_key} was written for a message on another queue than its own")
        elif _type_of(delivery.queued) in _CHANGELESS:
            self._violated(f"{s3_key} was written for a request that changes nothing")

    def planted(self, s3_key: str) -> None:
        if s3_key in self._holders:
            self._tampered.add(s3_key)
        self._holders.setdefault(s3_key, Holder())

    def hid(self, s3_key: str) -> None:
        self._hidden.add(s3_key)

    def stored(
        self, s3_key: str, delivery: Delivery | None, plaintext: bytes | None, *, tagged: bool
    ) -> None:
        """An object was put: the first one holds its key forever."""
        request = self.request_of(delivery)
        if request is None or request.kind != "upload.requested":
            self._holders.setdefault(s3_key, Holder())
        else:
            holder = Holder(request.publisher, request.id, plaintext, tagged)
            self._holders.setdefault(s3_key, holder)

    def tombstoned(self, s3_key: str, delivery: Delivery | None) -> None:
        request = self.request_of(delivery)
        if request is not None:
            self._tombstoned.add((request.publisher, request.digest, s3_key))
        self._holders.setdefault(s3_key, Holder())

    def rotated(self, project: str, entry: dict[str, Any], delivery: Delivery | None) -> None:
        """A keyring has a generation that it had not before."""
        request = self.request_of(delivery)
        if request is None or request.kind not in (
            "enroll.requested",
            "rotation.requested",
        ):
            self._violated(f"the keyring of {project} was rotated by no request")
            return
        if not self._grants[request.publisher].allows(request.kind, project):
            self._violated(f"{request.publisher} rotated the keyring of {project}")
        at = (request.publisher, project, entry["rotation_id"], *_brought_by(entry))
        if request.kind == "enroll.requested":
            self._enrolled.add(at)
        self._rotated[at] = self._latest[project] = entry["generation"]

    def recovered(self, project: str, newest: tuple[int, str] | None, delivery: Any) -> None:
        """A keyring was accepted as it was found, above its newest mark."""
        request = self.request_of(delivery)
        if request is None or request.kind != "recover.requested":
            self._violated(f"the keyring of {project} was recovered by no request")
            return
        self._recovered.add((request.publisher, request.digest))
        named = (request.document.get("serial"), request.document.get("mark"))
        if named not in ((None, None), newest):
            self._violated(f"the keyring of {project} was recovered against a mark")

    def erased(self, project: str, erased: dict[str, Any]) -> None:
        """A keyring says by which request its project was erased."""
        request = self.sent_requests.get((erased["publisher"], erased["request"]))
        named = (erased["request_id"], erased["requested_at"], erased["reason"], project)
        if request is None or request.kind != "erase.requested":
            self._violated(f"{project} was erased by no request")
        elif named != (
            request.id,
            request.document["requested_at"],
            request.document["reason"],
            request.project,
        ):
            self._violated(f"{project} was erased by another request than its keyring says")
        elif not self._grants[request.publisher].allows(request.kind, project):
            self._violated(f"{request.publisher} erased {project}")
        self._erased.setdefault(project, (erased["publisher"], erased["request"]))

    def planned(self, publisher: str | None, digests: Iterable[str]) -> None:
        """A record has these requests of a publisher."""
        self._planned |= {(str(publisher), digest) for digest in digests}

    # What is published.

    def published(self, event: Event, delivery: Delivery | None) -> None:
        """A worker published an event."""
        kind = kind_of(event)
        if event.publisher is not None and event.project is not None:
            allowed = self._grants[event.publisher].allows(kind, event.project)
            if not allowed:
                self._violated(f"{event.type} of {event.publisher} in {event.project}")
        if delivery is None or delivery.queued.queue not in _SERVED:
            return
        queued = delivery.queued
        if not self._is_signed(queued):
            self._violated(f"{event.type} was published for a message without a valid signature")
            return
        if not _is_in_its_place(queued):
            self._violated(f"{event.type} was published for a message on the wrong queue")
        if event.type.endswith(("progressed", "completed", "failed")):
            return  # of a sweep, to each publisher that requested it
        publisher = queued.headers["keyturn-publisher"]
        if event.publisher != publisher:
            self._violated(f"{event.type} does not name {publisher}, whose request it answers")
        if event.request != hashlib.sha256(queued.body).hexdigest():
            self._violated(f"{event.type} does not name the request that it answers")
        if event.project is not None and not self._grants[publisher].allows(kind, event.project):
            self._violated(
                f"{event.type} was published in {event.project}, by {publisher}'s request"
            )
        self._check_unwaited(event, self.request_of(delivery))

    def _check_unwaited(self, event: Any, request: SentRequest | None) -> None:
        """The response to a hostile publisher's request must be true as well."""
        if request is None or request.honest or self._is_over(event) or self._is_open(request):
            return
        if request.kind in _CHANGELESS:
            return
        if request.kind in _JOINED and not event.type.endswith(".rejected"):
            return
        refused = event.type.endswith(".rejected")
        if self._had_effect(request, event) if refused else not self._may_be_so(request):
            self._violated(
                f"{event.type} was published of {request.publisher}'s {request.kind}: not so"
            )

    # What is believed.

    def generation(self, waiter: Waiter) -> int | None:
        """The generation that the request of a waiter brought."""
        return next((g for a in self.tries(waiter) if (g := self._brought(a))), None)

    def believed(self, waiter: Waiter, event: Any) -> None:
        """A waiter believed an event: then it must be what happened."""
        about = f"{event.type} believed by {waiter}"
        tries = self.tries(waiter)
        if any(map(self._is_open, tries)):
            return
        if waiter.request.kind in _CHANGELESS and not event.type.endswith(".rejected"):
            return
        if event.type.endswith(".rejected"):
            earlier = self.sent_requests.get((event.publisher, event.request))
            if waiter.restarted and earlier is not None:
                # A waiter without the bytes may believe the response to an earlier attempt.
                if _identity(earlier) != _identity(waiter.request):
                    self._violated(f"{about} answers another request")
            elif all(self._had_effect(request, event) for request in tries) and not self._is_over(
                event
            ):
                self._violated(f"{about}, and it had its effect")
        elif waiter.request.kind not in _JOINED and not any(map(self._may_be_so, tries)):
            self._violated(f"{about}, and it had no effect")
        if event.type == "rotation.accepted" and event.generation != self.generation(waiter):
            self._violated(f"{about} names generation {event.generation}")
        self._check_object(about, event, tries)

    def _check_object(self, about: str, event: Any, tries: list[SentRequest]) -> None:
        if event.type == "object.deleted" and not any(event.key in each.keys for each in tries):
            self._violated(f"{about} is about another object")
        if event.type == "upload.stored" and not any(
            (event.key, event.size) == (request.document["key"], len(request.secret or b""))
            for request in tries
        ):
            self._violated(f"{about} is about another object")

    def ended(self, waiter: Waiter, ask: Mapping[str, Any] | None) -> None:
        """A waiter believes the end of a sweep: it must be the sweep that it requested."""
        request = waiter.request
        if request.kind != "sweep.requested" or ask is None:
            return
        requested = {name: request.document.get(name, value) for name, value in _OPTIONS.items()}
        if {name: ask[name] for name in _OPTIONS} != requested:
            self._violated(f"the end of another sweep was believed by {waiter}")

    def settled(self, waiter: Waiter) -> None:
        """Everything has ended: no waiter may wait forever."""
        request = waiter.request
        # The last rotation is restarted from its keyring, whatever that still holds; of a sweep,
        # and of a rotation that a later one overtook, the record was all there was.
        last = self._brought(request) == self._latest.get(request.project)
        gone = (request.id, request.project) in self.canceled and (
            request.kind in ("sweep.requested", "erase.requested") or not last
        )
        if not waiter.ended and not gone:
            self._violated(f"{waiter} waits forever")

    def tries(self, waiter: Waiter) -> list[SentRequest]:
        """The requests that the waiter may mean: its own, or without its bytes every attempt."""
        mine = waiter.request
        if not waiter.restarted:
            return [mine]
        every = self.sent_requests.values()
        same = [
            a for a in every if (a.publisher, a.kind, a.id) == (mine.publisher, mine.kind, mine.id)
        ]
        return [request for request in same if request.project == mine.project]

    def has_rotated(self, request: SentRequest) -> bool:
        """Whether this very request brought a generation of its keyring."""
        return self._generation(request) is not None

    def _generation(self, request: SentRequest) -> int | None:
        if request.kind not in ("enroll.requested", "rotation.requested"):
            return None
        at = (request.publisher, request.project, request.id, *_asked_for(request))
        if request.kind == "enroll.requested" and at not in self._enrolled:
            return None
        return self._rotated.get(at)

    def _brought(self, request: SentRequest) -> int | None:
        """The same, where another publisher may have sent the same id with the same KEK.

        A keyring remembers no publisher of a generation that another one followed (SPEC 5.2).
        """
        for (publisher, *rest), generation in self._rotated.items():
            may_be_mine = publisher == request.publisher or generation < self._latest.get(
                request.project, 0
            )
            same = rest == [request.project, request.id, *_asked_for(request)]
            if may_be_mine and same:
                return generation
        return None

    def _may_be_so(self, request: SentRequest) -> bool:
        """Whether it is true that the request was served."""
        match request.kind:
            case "enroll.requested" | "rotation.requested":
                return self._brought(request) is not None
            case "upload.requested":
                s3_key = object_s3_key(request.project, request.document["key"])
                held = self._holders.get(s3_key, Holder())
                if not held.tagged:
                    return (held.upload_id, held.plaintext) == (
                        request.id,
                        request.secret,
                    )
            case "erase.requested":
                return request.project in self._erased
        return self._had_effect(request)

    def _had_effect(self, request: SentRequest, event: Any = None) -> bool:
        """Whether a request was served; of a delete, whether the key of the event was deleted."""
        match request.kind:
            case "upload.requested":
                held = self._holders.get(object_s3_key(request.project, request.document["key"]))
                mine = (request.id, request.secret)
                return (
                    held is not None
                    and mine == (held.upload_id, held.plaintext)
                    and self._is_upload_of(request, held)
                )
            case "enroll.requested" | "rotation.requested":
                return self._generation(request) is not None
            case "delete.requested":
                keys = request.keys & {getattr(event, "key", None)} or request.keys
                s3_keys = [object_s3_key(request.project, key) for key in keys]
                at = (request.publisher, request.digest)
                return any((*at, s3_key) in self._tombstoned for s3_key in s3_keys)
            case "recover.requested":
                return (request.publisher, request.digest) in self._recovered
            case "status.requested" | "dead_letters.requested":
                return False
        # Of a sweep, and of an erasure: that one is in the record before it is refused.
        at = (request.publisher, request.digest)
        return at in (self._erased.values() if request.kind == "erase.requested" else self._planned)

    def _is_open(self, request: SentRequest) -> bool:
        """Whether either response is right: a bucket writer changed what this request had put."""
        if request.kind == "delete.requested":
            keys = [object_s3_key(request.project, key) for key in request.keys]
            return not self._hidden.isdisjoint(keys)
        if request.kind == "erase.requested":
            # It asks the stores of an erased project again.
            return (request.id, request.project) in self.canceled
        if request.kind != "upload.requested":
            return False
        s3_key = object_s3_key(request.project, request.document["key"])
        held = self._holders.get(s3_key, Holder())
        mine = held.upload_id == request.id and self._is_upload_of(request, held)
        return (s3_key in self._tampered and mine) or s3_key in self._hidden

    def _is_upload_of(self, request: SentRequest, held: Holder) -> bool:
        """Whether the object's upload is this publisher's: that of a source's object is anyone's.

        Anyone's who may name that object: any other is refused, whatever is stored.
        """
        if "source" not in request.document.get("body", {}):
            return request.publisher == held.publisher
        grant = self._grants[request.publisher]
        named = request.document["body"]["source"]["name"]
        return named in grant.sources and grant.allows(request.kind, request.project)

    def _is_over(self, event: Any) -> bool:
        """Whether it refuses what was done, and is no more, or no more as it was."""
        code = getattr(event, "code", "")
        if event.type == "delete.rejected" and event.key is not None:
            # No worker knows what was done of a key that the storage did not show, five times.
            return code == "storage_unavailable"
        return code in (
            "deleted_key",
            "corrupt_object",
            # Of a keyring that a bucket writer touched, no worker knows what was done.
            "keyring_rolled_back",
            # Whatever was done of a project, nothing of it is left.
            "project_erased",
        )


def _asked_for(request: SentRequest) -> tuple[str | None, str | None]:
    """The KEK id and the customer key of a request for a generation."""
    key = request.document.get("customer_key")
    kek = None if request.secret is None else kek_id(Secret(request.secret))
    return kek, None if key is None else f"{key['store']}/{key['key']}"


def _brought_by(rest: dict[str, Any]) -> tuple[str | None, str | None]:
    """The same of a keyring: what its generation has, and the one before had not."""
    before = rest["history"][-1] if rest["history"] else {}
    kek = None if rest["kek_id"] == before.get("kek_id") else rest["kek_id"]
    key, former = (each.get("customer_key") for each in (rest, before))
    if key is None or (former is not None and former["secret_id"] == key["secret_id"]):
        return kek, None
    return kek, f"{key['store']}/{key['key']}"


def _identity(request: SentRequest) -> tuple[str, str, str, str]:
    """What distinguishes one publisher's request and its later attempts from all others."""
    return request.publisher, request.kind, request.id, request.project


def kind_of(event: Event) -> str:
    """The type of the requests that an event responds to."""
    first = event.type.partition(".")[0]
    return f"{_ENDS_OF.get(event.type, first)}.requested"


def _type_of(queued: QueuedMessage) -> str | None:
    """The type that the body of a message names."""
    try:
        kind = json.loads(queued.body)["type"]
    except (ValueError, KeyError, TypeError):
        return None
    return kind if isinstance(kind, str) else None


def _is_in_its_place(queued: QueuedMessage) -> bool:
    """Whether a request came by the queue and the routing key that its type calls for."""
    kind = _type_of(queued)  # without one there is nothing to hold it against
    served = _SERVED[queued.queue]
    return kind not in (*UPLOAD_REQUESTS, *CONTROL_REQUESTS) or (
        kind in served and queued.routing_key in (kind, queued.queue)
    )
