"""Checks what must hold in the bucket. Shares no code with the workers except `keyturn.crypto`.

The oracle knows all keys, sees every write to the bucket and every event, opens wraps and
records, and records violations. It never changes anything.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from keyturn.crypto import (
    BODY_CONTEXT,
    HEADER_BYTES,
    SealError,
    Secret,
    admin_kek,
    commits_to,
    kek_id,
    open_record,
    open_sealed,
    open_tombstone,
    record_kek,
    unwrap_dek,
)
from keyturn.identifiers import EVIDENCE_PREFIX, KEYRINGS_PREFIX, SWEEPS_PREFIX, keyring_s3_key
from tests.protocol.customer_keys import UNKNOWN_KEK_ID, CustomerKeyLaws
from tests.protocol.erasure_laws import ErasureLaws
from tests.protocol.evidence_laws import EvidenceLaws
from tests.protocol.laws import Laws
from tests.protocol.mark_laws import MarkLaws, project_of
from tests.protocol.report_laws import ReportLaws
from tools.harness.memory_bucket import etag_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from keyturn.messages import Event
    from keyturn_workers.core.grants import Grant
    from tests.protocol.broker import Delivery, QueuedMessage
    from tests.protocol.waiters import Waiter
    from tests.protocol.wire import Call, Server
    from tools.harness.memory_bucket import Stored

_ALGORITHM: Final = "Cobblestone-256"
_WRAP_CHARACTERS: Final = 140  # of 104 bytes in base64


@dataclass(frozen=True)
class State:
    """A past state of a keyring: what objects were to be wrapped under then."""

    generation: int
    kek_id: str
    master_key: str
    plaintext: bool
    serial: int
    # Of the customer secret that the wraps need.
    secret_id: str | None = None
    erased: bool = False

    @property
    def label(self) -> str:
        """The label of the user wrap."""
        parts = (str(self.generation), self.kek_id, self.secret_id)
        return ":".join(part for part in parts if part is not None)

    @property
    def wraps(self) -> tuple[int, str, str]:
        return self.generation, self.kek_id, self.master_key


@dataclass(frozen=True)
class Seen:
    """An object as the oracle opened it: `wraps` is None of plaintext."""

    kind: str
    wraps: tuple[int, str, str] | None = None
    labels: tuple[str, str] | None = None


@dataclass
class Project:
    """What is known of one project."""

    states: list[State] = field(default_factory=list)
    keks: dict[int, Secret] = field(default_factory=dict)
    rotation_ids: set[str] = field(default_factory=set)
    # The publisher of each request that brought a generation, by its id.
    brought_by: dict[str, str | None] = field(default_factory=dict)
    # The state that a clean sweep proved last: nothing may fall below it again.
    floor: int = 0
    # The states that clean sweeps proved, in their order.
    proofs: list[State] = field(default_factory=list)


def _state(rest: dict[str, Any], master_key: str) -> State:
    is_plaintext_allowed = rest["plaintext"] == "allowed"
    return State(
        rest["generation"],
        rest["kek_id"],
        master_key,
        is_plaintext_allowed,
        rest["serial"],
        rest.get("customer_key", {}).get("secret_id"),
        "erased" in rest,
    )


class Oracle:
    """Checks one bucket."""

    def __init__(self, master_keys: dict[str, Secret], grants: Mapping[str, Grant]) -> None:
        self._master_keys = master_keys
        self.server: Server | None = None
        self.violations: list[str] = []
        self.projects: dict[str, Project] = {}
        self.claims: set[tuple[str, str]] = set()
        self.ended_sweeps: set[tuple[str, str]] = set()
        self.bodies: dict[str, bytes] = {}
        # The plaintexts that requests contained, by S3 key.
        self.plaintexts: dict[str, set[bytes]] = {}
        self.deleted: set[str] = set()
        self.delete_requested: set[str] = set()
        self.foreign: set[str] = set()
        self._streamed: dict[str, Delivery] = {}
        self._opened: dict[tuple[str, bytes, bytes], Seen] = {}
        self.events: list[Event] = []
        # What sealed bodies opened to, and the options of each sweep that ended.
        self._plaintexts_of: dict[bytes, bytes] = {}
        self._ended_options: dict[tuple[str, str], dict[str, Any]] = {}
        # Each round of a project, with how many there were before it.
        self._rounds: dict[str, int] = {}
        # The origins that any record had.
        self._origins: set[tuple[str, str]] = set()
        # Objects that a bucket writer removed or put back, with how many rounds there were by then:
        # only those that began later can have dealt with them.
        self._hidden: dict[str, int] = {}
        self._judged = -1
        # How often each project was proven when a sweep began.
        self._proofs_at_start: dict[str, dict[str, int]] = {}
        self.laws = Laws(self.violated, grants)
        self.evidence = EvidenceLaws(self.violated, self._current_objects)
        self.customer_keys = CustomerKeyLaws(self.violated)
        self.marks = MarkLaws(self.violated, self._keyring_counts)
        self.erasures = ErasureLaws(self.violated, self.marks.touched)
        self.reports = ReportLaws(
            self.violated, grants, self.projects, self.ended_sweeps, self.marks.touched
        )
        # By project and digest: keyrings that were put, and the delivery that had them put.
        self._keyrings: dict[tuple[str, str], tuple[Stored, Delivery | None]] = {}

    def _current_objects(self) -> Mapping[str, Stored]:
        assert self.server is not None
        return self.server.current_objects()

    def violated(self, what: str) -> None:
        self.violations.append(what)

    # Writes.

    def wrote(self, s3_key: str, stored: Stored, call: Call | None) -> None:
        """Called for every version that is put into the bucket, at that moment."""
        if call is None:
            self.laws.planted(s3_key)
            if s3_key.startswith(KEYRINGS_PREFIX):
                self.marks.touched.add(project_of(s3_key))
            return  # written by the test itself
        self.laws.wrote(s3_key, call.delivery)
        if s3_key.startswith(KEYRINGS_PREFIX):
            name, master_key, rest = self._record(s3_key, stored.body)
            self.reports.put(name, _state(rest, master_key))
            self.erasures.put(name, rest, call)
            at = (name, hashlib.sha256(stored.body).hexdigest())
            self._keyrings.setdefault(at, (stored, call.delivery))
        elif s3_key.startswith(SWEEPS_PREFIX):
            self._sweep_record(s3_key, stored)
        elif s3_key.startswith(EVIDENCE_PREFIX):
            self.evidence.put(s3_key, stored.body)
        elif not s3_key.startswith(".keyturn/") and s3_key not in self.foreign:
            if call.op == "put_stream" and call.delivery is not None:
                self._streamed[s3_key] = call.delivery
            else:
                self._streamed.pop(s3_key, None)
            self._object(s3_key, stored, call)

    def hid(self, s3_key: str) -> None:
        """A bucket writer removed an object, or put an earlier state of one back."""
        self._hidden[s3_key] = len(self._rounds)
        self.laws.hid(s3_key)

    def parts_lost(self, s3_key: str) -> None:
        """Parts were aborted that another delivery had uploaded, and their object does not exist.

        Deliveries that do that to each other may never store it (SPEC 7.2).
        """
        self.violated(f"parts of {s3_key} were aborted by another delivery before it was stored")

    def _record(self, s3_key: str, body: bytes) -> tuple[str, str, dict[str, Any]]:
        outer = json.loads(body)
        kek = record_kek(self._master_keys[outer["master_key"]].reveal(), outer["project"])
        rest = json.loads(open_record(kek, s3_key, b64decode(outer["sealed"])))
        return outer["project"], outer["master_key"], rest

    def keyring_serial(self, project: str, stored: Stored) -> int:
        """The serial of a state of a project's keyring."""
        _, _, rest = self._record(keyring_s3_key(project), stored.body)
        serial: int = rest["serial"]
        return serial

    def _keyring_counts(self, name: str, digest: str, mark: dict[str, Any]) -> None:
        """A state of a keyring is marked: from now on it is what the project's keys are."""
        now = self._current_objects().get(keyring_s3_key(name))
        if (name, digest) in self._keyrings:
            stored, delivery = self._keyrings[name, digest]
        elif now is not None and hashlib.sha256(now.body).hexdigest() == digest:
            stored, delivery = now, None  # a test put it, and no one could without the master key
        else:
            self.violated(f"a mark of {name} names a keyring that was never put")
            return
        _, master_key, rest = self._record(keyring_s3_key(name), stored.body)
        known = [each for each in rest["history"] if each["kek_id"] != UNKNOWN_KEK_ID]
        if name in self.marks.touched and not known and rest.get("evidence") is None:
            self.evidence.chains[name].clear()  # it was removed, and enrolled once more
        is_recovered = rest.get("recovery") is not None
        if is_recovered:
            chain = self.evidence.chains[name]
            named = rest.get("evidence")
            del chain[chain.index(named) + 1 if named in chain else 0 :]
            before = self.marks.states[name][:-1]
            self.laws.recovered(name, before[-1][:2] if before else None, delivery)
        self.evidence.rotated(name, rest, master_key)
        is_erased_now = "erased" in rest and name not in self.erasures.erased
        self.erasures.counts(name, rest, mark)
        keeps_secrets = self.evidence.accepts_late_writes(name)
        version = json.loads(stored.body)["v"]
        self.customer_keys.counts(name, version, rest, keeps_secrets=keeps_secrets)
        self.customer_keys.marked(name, mark, rest)
        project = self.projects.setdefault(name, Project())
        ids = [entry["rotation_id"] for entry in (*known, rest)]
        if len(set(ids)) != len(ids):
            self.violated(f"a rotation rotated the keyring of {name} twice")
        project.rotation_ids.update(ids)
        project.brought_by.setdefault(rest["rotation_id"], rest.get("publisher"))
        kept = [entry for entry in (*rest["history"], rest) if entry["kek"] is not None]
        project.keks.update({each["generation"]: Secret(b64decode(each["kek"])) for each in kept})
        state = _state(rest, master_key)
        if is_recovered:
            self.customer_keys.recovered(name, rest)
        elif not project.states or state.generation > project.states[-1].generation:
            self.laws.rotated(name, rest, delivery)
            self.customer_keys.rotated(name, rest, self.laws.request_of(delivery))
        elif state.generation < project.states[-1].generation:
            self.violated(f"the generation of {name} went back to {state.generation}")
        project.states.append(state)
        if is_erased_now:
            self._erased(name, rest["erased"])

    def _erased(self, name: str, erased: dict[str, Any]) -> None:
        """A project is erased: each wrap needs a secret about which its store was asked."""
        self.laws.erased(name, erased)
        for s3_key, stored in self._versions_under(name):
            seen = self.inspect(s3_key, stored)
            if seen.wraps is None:
                continue
            if self.customer_keys.ids[name].get(seen.wraps[0]) not in erased["answers"]:
                self.violated(f"{name} was erased, and {s3_key} opens without what was asked for")

    def _sweep_record(self, s3_key: str, stored: Stored) -> None:
        if "/" in s3_key.removeprefix(SWEEPS_PREFIX):
            return  # of a page, or of a part
        name, _, rest = self._record(s3_key, stored.body)
        self.evidence.kept(s3_key, name, rest)
        for origin in rest["origins"]:
            self.laws.planned(origin["publisher"], origin["digests"])
            if (origin["id"], name) not in self._origins:
                self._origins.add((origin["id"], name))
                before = {n: len(p.proofs) for n, p in self.projects.items()}
                self._proofs_at_start.setdefault(origin["id"], before)
        if rest["round"] is not None:
            self._rounds.setdefault(rest["round"]["id"], len(self._rounds))
        for origin in rest["origins"]:
            at, end = (origin["id"], name), origin["end"]
            if end is None or at in self.ended_sweeps:
                continue
            self.ended_sweeps.add(at)
            self.erasures.ended(name, origin)
            self._ended_options[at] = origin["options"]
            if not end["clean"]:
                continue
            if name in self.erasures.erased and origin["kind"] in ("erase", "part"):
                continue  # nothing of it is proven
            self.claims.add(at)
            self._claimed(name, origin, end)

    def _claimed(self, name: str, origin: dict[str, Any], end: dict[str, Any]) -> None:
        """A sweep says that it is clean: then it must be, at this moment."""
        if name == "*":
            self._claimed_of_all(origin)
            return
        self._judged = self._rounds[end["round_id"]]
        project, options = self.projects[name], origin["options"]
        at = self._index(project, self.evidence.state_of(end["evidence"]))
        if at is None:
            self.violated(f"a sweep of {name} proved a state that never was")
        else:
            state = project.states[at]
            if options["master_key"] not in (None, state.master_key):
                self.violated(f"a sweep of {name} is clean under another master key than named")
            if options["encrypt_plaintext"] and state.plaintext:
                self.violated(f"a sweep of {name} ended, and plaintext is still allowed")
            project.floor = max(project.floor, at)
            project.proofs.append(state)
            self.check_all(name, f"at the end of a sweep of {name}", versions=True)
            for s3_key, stored in self._versions_under(name):
                if self._opens_under_an_earlier(name, state.generation, s3_key, stored):
                    self.violated(f"an earlier KEK opens {s3_key} at the end of a sweep of {name}")
        self._judged = -1

    def _claimed_of_all(self, origin: dict[str, Any]) -> None:
        """A sweep of all says that it is clean: then each project that existed was proven."""
        named = origin["options"]["master_key"]
        for name, earlier in self._proofs_at_start[origin["id"]].items():
            proven = self.projects[name].proofs[earlier:]
            if name in self.erasures.erased:
                proven = self.projects[name].states[-1:]  # of which nothing is to be proven
            if not any(named in (None, state.master_key) for state in proven):
                self.violated(f"a sweep of all is clean, and {name} was not proven")

    def _versions_under(self, name: str) -> list[tuple[str, Stored]]:
        """All versions of a project's objects, except those that a put under way excuses."""
        assert self.server is not None
        found = [row for row in self.server.every_version() if row[0].startswith(f"{name}/")]
        return [row for row in found if not self._excused(row[0])]

    def _index(self, project: Project, recorded: dict[str, Any] | None) -> int | None:
        """Which state a clean end proved: by its serial."""
        if recorded is None:
            return None
        wraps = (recorded["generation"], recorded["kek_id"], recorded["master_key"])
        found = [
            at
            for at, state in enumerate(project.states)
            if (state.serial, state.wraps) == (recorded["serial"], wraps)
        ]
        return found[-1] if found else None

    def record(self, name: str) -> dict[str, Any] | None:
        """The current record of a project's sweeps, or of those of all."""
        assert self.server is not None
        s3_key = f"{SWEEPS_PREFIX}{name}.json"
        stored = self.server.current_objects().get(s3_key)
        return None if stored is None else self._record(s3_key, stored.body)[2]

    def origin(self, origin_id: str, name: str) -> dict[str, Any] | None:
        """A request as the current record has it."""
        record = self.record(name) or {"origins": []}
        return next((each for each in record["origins"] if each["id"] == origin_id), None)

    def round(self, name: str) -> dict[str, Any]:
        """The running round of a project; empty if there is none."""
        return (self.record(name) or {}).get("round") or {}

    def _object(self, s3_key: str, stored: Stored, call: Call | None = None) -> None:
        seen = self.inspect(s3_key, stored)
        delivery = None if call is None else call.delivery
        if seen.kind == "tombstone":
            self.laws.tombstoned(s3_key, delivery)
        else:
            plaintext = stored.body if seen.kind == "plaintext" else None
            self.laws.stored(
                s3_key,
                delivery,
                self._plaintexts_of.get(stored.body, plaintext),
                tagged="enc-upload-tag" in stored.headers.metadata,
            )
        is_hidden = s3_key in self._hidden
        if s3_key in self.deleted and seen.kind != "tombstone" and not is_hidden:
            self.violated(f"{s3_key} came back after its delete was published")
        if seen.kind == "sealed" and not is_hidden:
            first = self.bodies.setdefault(s3_key, stored.body)
            if first != stored.body:
                self.violated(f"the sealed body of {s3_key} changed")
        if seen.kind == "plaintext" and stored.body not in self.plaintexts.get(s3_key, ()):
            self.violated(f"{s3_key} holds plaintext that no request contained")
        self._check(s3_key, seen, "by a write")
        if seen.wraps is not None and delivery is not None:
            self.customer_keys.wrapped_at(s3_key, seen.wraps[0], delivery)
        if delivery is not None:
            self._check_known(s3_key, seen, delivery)

    # Objects.

    def inspect(self, s3_key: str, stored: Stored) -> Seen:
        """What an object is; an inconsistent one is a violation."""
        own = {n: v for n, v in stored.headers.metadata.items() if n.startswith("enc-")}
        at = (s3_key, stored.body, repr(sorted(own.items())).encode())
        if at not in self._opened:
            self._opened[at] = self._open(s3_key, stored.body, own)
        return self._opened[at]

    def _open(self, s3_key: str, body: bytes, own: dict[str, str]) -> Seen:
        name, _, key = s3_key.partition("/")
        algorithm = own.get("enc-algo")
        if algorithm is None:
            return Seen("plaintext")
        if algorithm == "deleted":
            self._open_tombstone(name, key, b64decode(own["enc-dek-admin"]))
            return Seen("tombstone")
        for role, keks in (("user", self._user_keks), ("admin", self._admin_keks)):
            plain = keks(name, plain=True)
            if self._unwrap(plain, role, name, key, own) is not None:
                self.violated(f"the {role} wrap of {s3_key} opens without the customer key")
        user = self._unwrap(self._user_keks(name), "user", name, key, own)
        admin = self._unwrap(self._admin_keks(name), "admin", name, key, own)
        if user is None or admin is None:
            self.violated(f"a wrap of {s3_key} does not open under any key that ever was")
            return Seen("broken")
        if user[0] != admin[0]:
            self.violated(f"the wraps of {s3_key} hold two DEKs")
            return Seen("broken")
        if not commits_to(user[0], BODY_CONTEXT, body[:HEADER_BYTES]):
            self.violated(f"the body of {s3_key} does not commit to its DEK")
            return Seen("broken")
        plaintext = self._plaintexts_of[body] = open_sealed(user[0], BODY_CONTEXT, body)
        if plaintext not in self.plaintexts.get(s3_key, ()):
            self.violated(f"{s3_key} opens to what no request contained")
        if user[1] != admin[1]:
            self.violated(f"the wraps of {s3_key} have two generations")
        labels = (own["enc-kek-user"], own["enc-kek-admin"])
        return Seen("sealed", (user[1], user[2], admin[2]), labels)

    def _user_keks(self, name: str, *, plain: bool = False) -> Iterator[tuple[str, Secret, int]]:
        for generation, kek in self.projects[name].keks.items():
            yield from self._keks_at(name, generation, "user", kek_id(kek), kek, plain=plain)

    def _admin_keks(self, name: str, *, plain: bool = False) -> Iterator[tuple[str, Secret, int]]:
        for master_key, secret in self._master_keys.items():
            kek = admin_kek(secret.reveal(), name)
            for generation in self.projects[name].keks:
                yield from self._keks_at(name, generation, "admin", master_key, kek, plain=plain)

    def _keks_at(
        self, name: str, generation: int, role: Any, label: str, kek: Secret, *, plain: bool
    ) -> Iterator[tuple[str, Secret, int]]:
        """What opens wraps at a generation; with `plain`, what must not, for want of a secret."""
        needed = self.customer_keys.kek_at(name, generation, role, kek)
        if not plain:
            yield label, needed, generation
        elif needed != kek:
            yield label, kek, generation

    def _unwrap(
        self,
        keks: Iterator[tuple[str, Secret, int]],
        role: Any,
        name: str,
        key: str,
        own: dict[str, str],
    ) -> tuple[bytes, int, str] | None:
        wrap = b64decode(own[f"enc-dek-{role}"])
        for label, kek, generation in keks:
            try:
                dek = unwrap_dek(
                    kek,
                    role,
                    algorithm=_ALGORITHM,
                    project=name,
                    object_key=key,
                    generation=generation,
                    wrap=wrap,
                )
            except SealError:
                continue
            return dek, generation, label
        return None

    def _open_tombstone(self, name: str, key: str, sealed: bytes) -> None:
        for secret in self._master_keys.values():
            try:
                open_tombstone(admin_kek(secret.reveal(), name), name, key, sealed)
            except SealError:
                continue
            return
        self.violated(f"a tombstone of {name}/{key} opens under no master key")

    def check_all(self, name: str, when: str, *, versions: bool = False) -> None:
        """No object of a project is below the state that its last clean sweep proved."""
        assert self.server is not None
        for s3_key, stored in self.server.current_objects().items():
            if s3_key.startswith(f"{name}/") and s3_key not in self.foreign:
                self._check(s3_key, self.inspect(s3_key, stored), when)
        if versions:
            for s3_key, stored in self.server.every_version():
                if s3_key.startswith(f"{name}/") and s3_key not in self.foreign:
                    self._check(s3_key, self.inspect(s3_key, stored), f"in a version {when}")

    def _check(self, s3_key: str, seen: Seen, when: str) -> None:
        if self._excused(s3_key):
            return
        project = self.projects[s3_key.partition("/")[0]]
        since = project.states[project.floor :]
        if seen.kind == "sealed":
            if seen.wraps not in {state.wraps for state in since}:
                self.violated(f"{s3_key} is wrapped under {seen.wraps} {when}, after a clean sweep")
        elif seen.kind == "plaintext" and not any(state.plaintext for state in since):
            self.violated(f"{s3_key} is plaintext {when}, after all was encrypted")

    def _check_known(self, s3_key: str, seen: Seen, delivery: Delivery) -> None:
        """No object is stored by a keyring that a mark contradicted when its message came."""
        name = s3_key.partition("/")[0]
        states = self.projects[name].states[delivery.known.get(name, 0) :]
        since = [state for state in states if not state.erased]
        if not since:
            self.violated(f"{s3_key} was written, and {name} is erased")
        if seen.wraps is not None and seen.wraps not in {state.wraps for state in since}:
            self.violated(f"{s3_key} was wrapped under {seen.wraps}, against a mark")
        if seen.kind == "plaintext" and not any(state.plaintext for state in since):
            self.violated(f"{s3_key} was stored as plaintext, against a mark")

    def _excused(self, s3_key: str) -> bool:
        """A streamed put may end long after its lease: it counts once its message is done.

        SPEC 8.4. The worker that made it inspects the keyring again before it acknowledges; if that
        worker was lost, the one that does its work again.
        """
        if self._hidden.get(s3_key, -1) > self._judged:
            return True
        delivery = self._streamed.get(s3_key)
        if delivery is None:
            return False
        if not delivery.lost:
            return not delivery.queued.settled
        round_id = _round_of(delivery.queued)
        if round_id is None:
            return not delivery.queued.settled
        return self.round(s3_key.partition("/")[0]).get("id") == round_id

    def acknowledged(self, delivery: Delivery) -> None:
        """A message is done: what its worker streamed is excused no longer."""
        for s3_key, streamed in list(self._streamed.items()):
            if streamed.queued is delivery.queued and not self._excused(s3_key):
                self._check_current(s3_key, "once its message was done")

    def _check_current(self, s3_key: str, when: str) -> Seen | None:
        assert self.server is not None
        stored = self.server.current_objects().get(s3_key)
        if stored is None:
            return None
        seen = self.inspect(s3_key, stored)
        self._check(s3_key, seen, when)
        return seen

    # Events.

    def published(self, event: Any, delivery: Delivery | None = None) -> None:
        """An event is durable: what it says must be so."""
        self.events.append(event)
        self.laws.published(event, delivery)
        self.reports.published(event, self.laws.request_of(delivery))
        self.marks.published(event)
        name = str(event.type)
        judge: Callable[[Any], None] | None = getattr(self, f"_on_{name.replace('.', '_')}", None)
        if judge is not None:
            judge(event)

    def _on_upload_stored(self, event: Any) -> None:
        s3_key = f"{event.project}/{event.key}"
        delivery = self._streamed.get(s3_key)
        if delivery and json.loads(delivery.queued.body).get("upload_id") == event.upload_id:
            del self._streamed[s3_key]  # from here on nothing excuses it
        seen = self._check_current(s3_key, "once its upload was published")
        if s3_key in self._hidden:
            return
        if seen is None or (seen.kind == "tombstone" and s3_key not in self.delete_requested):
            self.violated(f"{s3_key} was reported as stored, and does not exist")

    def _on_object_deleted(self, event: Any) -> None:
        s3_key = f"{event.project}/{event.key}"
        if s3_key in self._hidden:
            return
        self.deleted.add(s3_key)
        assert self.server is not None
        stored = self.server.current_objects().get(s3_key)
        if stored is None or self.inspect(s3_key, stored).kind != "tombstone":
            self.violated(f"{s3_key} was reported as deleted, and has no tombstone")
        elif any(
            self.inspect(s3_key, old).kind != "tombstone"
            for key, old in self.server.every_version()
            if key == s3_key
        ):
            self.violated(f"{s3_key} was reported as deleted, and has an older version")

    def _on_rotation_rejected(self, event: Any) -> None:
        request = self.laws.sent_requests.get((event.publisher, event.request))
        if request is None or event.code == "keyring_rolled_back":
            return  # bytes that are no request, under the id of one; or no worker knows the outcome
        # Another publisher that reuses the id, or this one with another KEK, is rightly refused.
        if self.laws.has_rotated(request):
            self.violated("a rotation was reported as rejected, and had rotated the keyring")

    def _on_rotation_accepted(self, event: Any) -> None:
        project = self.projects[event.project]
        if event.rotation_id not in project.rotation_ids:
            self.violated("a rotation was reported as accepted, and had not rotated the keyring")
        # Of a generation that another one followed, the keyring remembers the key alone.
        current = event.generation == project.states[-1].generation
        if current and event.publisher != project.brought_by.get(event.rotation_id):
            self.violated("a rotation was accepted of a publisher that had not rotated the keyring")

    def _on_rotation_completed(self, event: Any) -> None:
        self._on_clean_end(event.rotation_id, event)

    def _on_sweep_completed(self, event: Any) -> None:
        self._on_clean_end(event.sweep_id, event)

    def _on_project_erased(self, event: Any) -> None:
        self.evidence.ended(event)
        if event.project not in self.erasures.erased:
            self.violated(f"{event.project} was reported as erased, and is not")

    def _on_clean_end(self, sweep_id: str, event: Any) -> None:
        self.evidence.ended(event)
        if (sweep_id, event.project) not in self.ended_sweeps:
            self.violated(f"a sweep of {event.project} was reported as ended while it ran")
        if event.clean and (sweep_id, event.project) in self.claims and event.project != "*":
            self.check_all(event.project, "when its sweep was reported clean")

    # Those who wait.

    def believed(self, waiter: Waiter, event: Any) -> None:
        """A waiter believed that an event answers its request."""
        self.laws.believed(waiter, event)
        if event.type in ("status.reported", "dead_letters.moved"):
            self.reports.believed(waiter, event, self.laws.tries(waiter))
        if event.type in ("rotation.completed", "sweep.completed"):
            self.laws.ended(waiter, self._ended_options.get((waiter.request.id, event.project)))
        if event.type == "rotation.completed" and event.clean:
            self._check_rotated(event.project, self.laws.generation(waiter) or 0)

    def _check_rotated(self, name: str, generation: int) -> None:
        """No object of a project is wrapped under an earlier KEK than a rotation's."""
        for s3_key, stored in self._versions_under(name):
            if self._opens_under_an_earlier(name, generation, s3_key, stored):
                self.violated(f"an earlier KEK opens {s3_key} once its rotation was reported clean")

    def _opens_under_an_earlier(
        self, name: str, generation: int, s3_key: str, stored: Stored
    ) -> bool:
        keks = [row for row in self._user_keks(name) if row[2] < generation]
        key = s3_key.partition("/")[2]
        # Whatever a name says, its value may be a wrap.
        headers = stored.headers
        values = [
            *headers.metadata.values(),
            headers.content_type or "",
            *headers.restated.values(),
        ]
        return any(
            self._unwrap(iter(keks), "user", name, key, {"enc-dek-user": value}) is not None
            for value in (*values, *stored.tags.values())
            if len(value) == _WRAP_CHARACTERS
        )

    # The end.

    def check_desired(self, name: str) -> None:
        """Every object of the project is under just the state that is desired now."""
        assert self.server is not None
        desired = self.projects[name].states[-1]
        labels = (desired.label, desired.master_key)
        for s3_key, stored in self.server.current_objects().items():
            if not s3_key.startswith(f"{name}/") or s3_key in self.foreign:
                continue
            seen = self.inspect(s3_key, stored)
            if seen.kind == "sealed" and (seen.wraps, seen.labels) != (desired.wraps, labels):
                self.violated(
                    f"{s3_key} is wrapped under {seen.wraps} with {seen.labels} at the end"
                )
            if seen.kind == "plaintext" and not desired.plaintext:
                self.violated(f"{s3_key} is plaintext at the end")
            if s3_key in self.deleted - self._hidden.keys() and seen.kind != "tombstone":
                self.violated(f"{s3_key} exists at the end, after its delete was published")


def _round_of(queued: QueuedMessage) -> str | None:
    """The round that a page belongs to."""
    document = json.loads(queued.body)
    return str(document["round"]) if document["type"] == "sweep.page" else None


__all__ = ["Oracle", "Seen", "State", "etag_of"]
