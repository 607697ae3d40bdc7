"""What is told, held against what became of the requests: nothing it says can be false.

The judge of answers. It knows every request as it was signed, sees by which message each
write was made, and hears what each waiter believes (SPEC 6.3, 6.7, 13).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keyturn.crypto import Secret, kek_id
from keyturn.identifiers import ALL_PROJECTS_FOLDER, object_s3_key
from keyturn.topology import CONTROL_QUEUE, CONTROL_REQUESTS, UPLOAD_QUEUE, UPLOAD_REQUESTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keyturn.messages import Event
    from keyturn_workers.worker.grants import Grant
    from tests.protocol.broker import Delivery, Letter
    from tests.protocol.waiters import Asked, Waiter

_SERVED: Final = {UPLOAD_QUEUE: UPLOAD_REQUESTS, CONTROL_QUEUE: CONTROL_REQUESTS}
_OPTIONS: Final = {
    "master_key": None,
    "encrypt_plaintext": False,
    "repair": False,
    "dry_run": False,
}
# What may be so by another request already: that it is so is judged in the bucket.
_JOINED: Final = frozenset({"sweep.requested", "delete.requested"})
_ENDS_OF: Final = {"project": "enroll", "object": "delete"}


@dataclass(frozen=True)
class Holder:
    """Whose upload brought the object of a key: nobody's, where a test put it there."""

    publisher: str = ""
    upload_id: str = ""
    plaintext: bytes | None = None
    # Whether the object names its publisher: plaintext is known by its id and its bytes alone.
    tagged: bool = True


class Laws:
    """Judges what was told. `violated` takes what is wrong.

    Args:
        violated: Takes what is wrong.
        grants: What each publisher may do.
    """

    def __init__(self, violated: Callable[[str], None], grants: Mapping[str, Grant]) -> None:
        self._violated = violated
        self._grants = grants
        # Every request by its publisher and the digest of its bytes.
        self.asked: dict[tuple[str, str], Asked] = {}
        # Sweeps whose plan a bucket writer removed, by id and folder. A part of a sweep of all
        # has a folder of its own: that sweep begins it again.
        self.cancelled: set[tuple[str, str]] = set()
        # Whatever a publisher signed, requests or not.
        self.signed: set[tuple[str, bytes]] = set()
        self._holders: dict[str, Holder] = {}
        # Keys whose object was changed behind the workers: its own upload may find it or not.
        self._tampered: set[str] = set()
        # By publisher, project, id and KEK id: the generation that a request brought.
        self._turned: dict[tuple[str, str, str, str], int] = {}
        self._latest: dict[str, int] = {}
        self._tombstoned: set[tuple[str, str]] = set()
        self._planned: set[tuple[str, str]] = set()

    # What happens.

    def asked_by(self, delivery: Delivery | None) -> Asked | None:
        """The request that a delivery brought, where a publisher signed it."""
        if delivery is None:
            return None
        letter = delivery.letter
        if not self._is_signed(letter):
            return None
        digest = hashlib.sha256(letter.body).hexdigest()
        return self.asked.get((letter.headers["keyturn-publisher"], digest))

    def _is_signed(self, letter: Letter) -> bool:
        return (letter.headers.get("keyturn-publisher"), letter.body) in self.signed

    def wrote(self, s3_key: str, delivery: Delivery | None) -> None:
        """Anything was written by a worker: for a message that somebody signed, in its place."""
        if delivery is None or delivery.letter.queue not in _SERVED:
            return
        if not self._is_signed(delivery.letter):
            self._violated(f"{s3_key} was written for a message that nobody signed")
        elif not _is_in_its_place(delivery.letter):
            self._violated(f"{s3_key} was written for a message on another queue than its own")

    def planted(self, s3_key: str) -> None:
        if s3_key in self._holders:
            self._tampered.add(s3_key)
        self._holders.setdefault(s3_key, Holder())

    def stored(
        self, s3_key: str, delivery: Delivery | None, plaintext: bytes | None, *, tagged: bool
    ) -> None:
        """An object was put: the first one holds its key for ever."""
        asked = self.asked_by(delivery)
        if asked is None or asked.kind != "upload.requested":
            self._holders.setdefault(s3_key, Holder())
        else:
            holder = Holder(asked.publisher, asked.id, plaintext, tagged)
            self._holders.setdefault(s3_key, holder)

    def tombstoned(self, s3_key: str, delivery: Delivery | None) -> None:
        asked = self.asked_by(delivery)
        if asked is not None:
            self._tombstoned.add((asked.publisher, asked.digest))
        self._holders.setdefault(s3_key, Holder())

    def turned(self, project: str, entry: dict[str, Any], delivery: Delivery | None) -> None:
        """A keyring has a generation that it had not before."""
        asked = self.asked_by(delivery)
        if asked is None or asked.kind not in ("enroll.requested", "rotation.requested"):
            self._violated(f"the keyring of {project} was turned by no request")
            return
        if not self._grants[asked.publisher].allows(asked.kind, project):
            self._violated(f"{asked.publisher} turned the keyring of {project}")
        at = (asked.publisher, project, entry["rotation_id"], entry["kek_id"])
        self._turned[at] = self._latest[project] = entry["generation"]

    def planned(self, delivery: Delivery | None) -> None:
        """A sweep has a record that it had not before."""
        asked = self.asked_by(delivery)
        if asked is not None:
            self._planned.add((asked.publisher, asked.digest))

    # What is told.

    def told(self, event: Event, delivery: Delivery | None) -> None:
        """A worker published an event."""
        kind = kind_of(event)
        if event.publisher is not None and event.project is not None:
            allowed = self._grants[event.publisher].allows(kind, event.project)
            if not allowed:
                self._violated(f"{event.type} of {event.publisher} in {event.project}")
        if delivery is None or delivery.letter.queue not in _SERVED:
            return
        letter = delivery.letter
        if not self._is_signed(letter):
            self._violated(f"{event.type} was told for a message that nobody signed")
            return
        if not _is_in_its_place(letter):
            self._violated(f"{event.type} was told for a message on another queue than its own")
        if event.type.endswith(("progressed", "completed", "failed")):
            return  # of a sweep, to each of those who asked for it
        publisher = letter.headers["keyturn-publisher"]
        if event.publisher != publisher:
            self._violated(f"{event.type} does not name {publisher}, whose request it answers")
        if event.request != hashlib.sha256(letter.body).hexdigest():
            self._violated(f"{event.type} does not name the request that it answers")
        if event.project is not None and not self._grants[publisher].allows(kind, event.project):
            self._violated(f"{event.type} was told in {event.project}, by {publisher}'s request")
        self._judge_unwaited(event, self.asked_by(delivery))

    def _judge_unwaited(self, event: Any, asked: Asked | None) -> None:
        """The answer to a request whose publisher means ill is true as well."""
        if asked is None or asked.honest or self._is_over(event) or self._is_open(asked):
            return
        if asked.kind in _JOINED and not event.type.endswith(".rejected"):
            return
        refused = event.type.endswith(".rejected")
        if self._had_effect(asked) if refused else not self._may_be_so(asked):
            self._violated(f"{event.type} was told of {asked.publisher}'s {asked.kind}: not so")

    # What is believed.

    def generation(self, waiter: Waiter) -> int | None:
        """The generation that the request of a waiter brought."""
        return next((g for a in self._tries(waiter) if (g := self._brought(a))), None)

    def believed(self, waiter: Waiter, event: Any) -> None:
        """A waiter took an event for an answer: then that must be what happened."""
        about = f"{event.type} believed by {waiter}"
        tries = self._tries(waiter)
        if any(map(self._is_open, tries)):
            return
        if event.type.endswith(".rejected"):
            earlier = self.asked.get((event.publisher, event.request))
            if waiter.restarted and earlier is not None:
                # The answer to an earlier try is one that somebody without the bytes may take.
                if _identity(earlier) != _identity(waiter.asked):
                    self._violated(f"{about} answers another request")
            elif all(self._had_effect(asked) for asked in tries) and not self._is_over(event):
                self._violated(f"{about}, and it had its effect")
        elif waiter.asked.kind not in _JOINED and not any(map(self._may_be_so, tries)):
            self._violated(f"{about}, and it had no effect")
        if event.type == "rotation.accepted" and event.generation != self.generation(waiter):
            self._violated(f"{about} names generation {event.generation}")
        if event.type == "upload.stored" and not any(
            (event.key, event.size) == (asked.document["key"], len(asked.secret or b""))
            for asked in tries
        ):
            self._violated(f"{about} is about another object")

    def ended(self, waiter: Waiter, ask: Mapping[str, Any] | None) -> None:
        """A waiter believes the end of a sweep: it was the sweep that was asked for."""
        asked = waiter.asked
        if asked.kind != "sweep.requested" or ask is None:
            return
        wanted = {name: asked.document.get(name, value) for name, value in _OPTIONS.items()}
        if {name: ask[name] for name in _OPTIONS} != wanted:
            self._violated(f"the end of another sweep was believed by {waiter}")

    def settled(self, waiter: Waiter) -> None:
        """Everything came to its end: none waits for ever."""
        asked = waiter.asked
        # The last rotation is begun anew from its keyring, whatever that still holds; of a sweep,
        # and of a rotation that a later one overtook, the record was all there was.
        last = self._brought(asked) == self._latest.get(asked.project)
        folder = ALL_PROJECTS_FOLDER if asked.project == "*" else asked.project
        gone = (asked.id, folder) in self.cancelled and (
            asked.kind == "sweep.requested" or not last
        )
        if not waiter.ended and not gone:
            self._violated(f"{waiter} waits for ever")

    def _tries(self, waiter: Waiter) -> list[Asked]:
        """The requests that the waiter may mean: its own, or without its bytes every try."""
        mine = waiter.asked
        if not waiter.restarted:
            return [mine]
        every = self.asked.values()
        same = [
            a for a in every if (a.publisher, a.kind, a.id) == (mine.publisher, mine.kind, mine.id)
        ]
        return [asked for asked in same if asked.project == mine.project]

    def _generation(self, asked: Asked) -> int | None:
        if asked.kind not in ("enroll.requested", "rotation.requested"):
            return None
        name = kek_id(Secret(asked.secret or b""))
        return self._turned.get((asked.publisher, asked.project, asked.id, name))

    def _brought(self, asked: Asked) -> int | None:
        """The same, where another publisher may have sent the same id with the same KEK.

        A keyring remembers no publisher of a generation that another one followed (SPEC 5.2).
        """
        for (publisher, *rest), generation in self._turned.items():
            may_be_mine = publisher == asked.publisher or generation < self._latest.get(
                asked.project, 0
            )
            same = rest == [asked.project, asked.id, kek_id(Secret(asked.secret or b""))]
            if may_be_mine and same:
                return generation
        return None

    def _may_be_so(self, asked: Asked) -> bool:
        """Whether it is true that the request was served."""
        match asked.kind:
            case "enroll.requested" | "rotation.requested":
                return self._brought(asked) is not None
            case "upload.requested":
                s3_key = object_s3_key(asked.project, asked.document["key"])
                held = self._holders.get(s3_key, Holder())
                if not held.tagged:
                    return (held.upload_id, held.plaintext) == (asked.id, asked.secret)
        return self._had_effect(asked)

    def _had_effect(self, asked: Asked) -> bool:
        match asked.kind:
            case "upload.requested":
                held = self._holders.get(object_s3_key(asked.project, asked.document["key"]))
                mine = (asked.publisher, asked.id, asked.secret)
                return held is not None and mine == (
                    held.publisher,
                    held.upload_id,
                    held.plaintext,
                )
            case "enroll.requested" | "rotation.requested":
                return self._generation(asked) is not None
            case "delete.requested":
                return (asked.publisher, asked.digest) in self._tombstoned
        return (asked.publisher, asked.digest) in self._planned  # of a sweep

    def _is_open(self, asked: Asked) -> bool:
        """Whether either answer is right: a bucket writer changed what this upload had put."""
        if asked.kind != "upload.requested":
            return False
        s3_key = object_s3_key(asked.project, asked.document["key"])
        held = self._holders.get(s3_key, Holder())
        mine = (held.publisher, held.upload_id) == (asked.publisher, asked.id)
        return s3_key in self._tampered and mine

    def _is_over(self, event: Any) -> bool:
        """Whether it refuses what was done, and is no more, or no more as it was."""
        return getattr(event, "code", "") in ("deleted_key", "corrupt_object")


def _identity(asked: Asked) -> tuple[str, str, str, str]:
    """What tells one publisher's request and its later tries from all others."""
    return asked.publisher, asked.kind, asked.id, asked.project


def kind_of(event: Event) -> str:
    """The type of the requests that an event answers."""
    first = event.type.partition(".")[0]
    return f"{_ENDS_OF.get(first, first)}.requested"


def _is_in_its_place(letter: Letter) -> bool:
    """Whether a request came by the queue and the routing key that its type calls for."""
    try:
        kind = json.loads(letter.body)["type"]
    except (ValueError, KeyError, TypeError):
        return True  # no type to hold it against
    served = _SERVED[letter.queue]
    return kind not in (*UPLOAD_REQUESTS, *CONTROL_REQUESTS) or (
        kind in served and letter.routing_key in (kind, letter.queue)
    )
