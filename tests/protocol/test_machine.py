"""The rotation protocol under a hostile scheduler: whatever it does, the oracle's laws hold.

Uploads, rotations, master key rotations, deletes and sweeps run at once on three workers.
Requests are held, lost, answered late and answered never; workers are killed in the midst of
anything, stall, and come back; messages come twice and in any order; time passes. At the end
all is let go on, and every request must have come to its end. `KEYTURN_PROTOCOL_EXAMPLES` in
the environment sets the number of stories, other ones each time; without it they are always
the same ones.
"""

from __future__ import annotations

import os
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from keyturn.identifiers import EVIDENCE_PREFIX, KEYRINGS_PREFIX, SWEEPS_PREFIX, keyring_s3_key
from keyturn.topology import (
    ATTEMPT_HEADER,
    CONTROL_QUEUE,
    PLAN_QUEUE,
    PUBLISHER_HEADER,
    REQUESTS,
    SWEEP_QUEUE,
    UPLOAD_QUEUE,
    WORKER_HEADERS,
)
from keyturn_workers.core.storage_values import Capabilities
from keyturn_workers.keys.sweep_records import parse_record_path
from tests.protocol.customer_keys import GIVEN, MOODS, named
from tests.protocol.hostile import HostilePublisher
from tests.protocol.marks import PUBLISH
from tests.protocol.process import LEASE_S, Options
from tests.protocol.wire import BEGUN, SENT
from tests.protocol.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.protocol.broker import QueuedMessage

from tests.protocol.customer_keys import Mood  # the rules' annotations are read
from tests.protocol.wire import Call

_EXAMPLES: Final = os.environ.get("KEYTURN_PROTOCOL_EXAMPLES")
_SETTINGS: Final = settings(
    max_examples=int(_EXAMPLES or 80),
    stateful_step_count=20,
    derandomize=_EXAMPLES is None,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

_MAX_STEPPED_S: Final = 240

PROJECTS: Final = st.sampled_from(("acme", "beta"))
CUSTOMER_KEYS: Final = st.sampled_from([key for keys in GIVEN.values() for key in keys])
KEYS: Final = st.sampled_from(("a", "b", "c/d", "e"))
# The object that a bucket writer hides, and puts back in any earlier state.
HIDDEN: Final = "h"
WORKERS: Final = st.integers(0, 2)
PUBLISHER: Final = st.sampled_from(("api", "api", "api", "second", "other"))
QUEUES: Final = (UPLOAD_QUEUE, CONTROL_QUEUE, PLAN_QUEUE, SWEEP_QUEUE)
PICKS: Final = st.integers(0, 1000)
# Requests whose loss, delay or death is worth a story.
MOMENTS: Final[dict[str, Callable[[Call], bool]]] = {
    "a copy": lambda call: call.op in ("copy_onto_itself", "copy_part"),
    "an object's put": lambda call: call.is_write and not call.key.startswith(".keyturn/"),
    "a keyring's put": lambda call: call.op == "put" and call.key.startswith(KEYRINGS_PREFIX),
    "a file of evidence": lambda call: call.op == "put" and call.key.startswith(EVIDENCE_PREFIX),
    "a record's put": lambda call: call.op == "put" and _is_main_record(call.key),
    "a part": lambda call: call.op == "upload_part",
    "an abort": lambda call: call.op == "abort_multipart",
    "a result's put": lambda call: call.op == "put" and "/results/" in call.key,
    "a keyring's read": lambda call: call.op == "read" and call.key.startswith(KEYRINGS_PREFIX),
    "an object's read": lambda call: call.op in ("read_start", "head", "stream"),
    "a record's read": lambda call: call.op == "read" and call.key.startswith(SWEEPS_PREFIX),
    "a listing": lambda call: call.op.startswith("list"),
    "an event": lambda call: call.op.startswith("publish "),
    "a mark": lambda call: call.op == PUBLISH,
    "an audit record": lambda call: call.op == "publish audit.recorded",
    "a message": lambda call: call.op.startswith(("send", "put off")),
    "a removal": lambda call: call.op.startswith("delete"),
    "a read of the source": lambda call: call.op == "stream" and call.key.startswith("in/"),
    "a customer secret": lambda call: call.op in ("encrypt", "decrypt", "check_answers"),
    "a removal from the source": lambda call: (
        call.op.startswith("delete") and call.key.startswith("in/")
    ),
}
MOMENT: Final = st.sampled_from(sorted(MOMENTS))
FATES: Final = (
    *("hold", "begun", "midst", "midst", "late", "cut"),
    *("lose", "lose before", "lose after", "crash", "crash before"),
)
WRITE: Final = st.sampled_from(("a copy", "a copy", "an object's put", "an object's read"))


def _is_main_record(s3_key: str) -> bool:
    path = parse_record_path(s3_key)
    return path is not None and path.is_main


class Protocol(RuleBasedStateMachine):
    """One story."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None
        self.held: list[Call] = []
        self.stepped_s = 0.0

    @property
    def on(self) -> World:
        assert self.world is not None
        return self.world

    @initialize(
        versioned=st.booleans(),
        source_versioned=st.booleans(),
        source_honors_conditions=st.booleans(),
        completion=st.booleans(),
        tags=st.booleans(),
        late_refused=st.booleans(),
        in_parts=st.booleans(),
        unencrypted=st.frozensets(WORKERS, max_size=2),
        plaintext=st.booleans(),
        longer_lease=st.one_of(st.none(), WORKERS),
        hold_s=st.sampled_from((10.0, 1.0, 0.03)),
    )
    def begin(  # a world has as many
        self,
        *,
        versioned: bool,
        source_versioned: bool,
        source_honors_conditions: bool,
        completion: bool,
        tags: bool,
        late_refused: bool,
        in_parts: bool,
        unencrypted: frozenset[int],
        plaintext: bool,
        longer_lease: int | None,
        hold_s: float,
    ) -> None:
        capabilities = Capabilities(
            conditional_completion=completion,
            copy_keeps_tags=tags,
            late_writes_refused=late_refused,
        )
        self.world = World(
            options=Options(
                versioned=versioned,
                source_versioned=source_versioned,
                source_honors_conditions=source_honors_conditions,
                capabilities=capabilities,
                copy_limit_bytes=200 if in_parts else 10**9,
                unencrypted=unencrypted,
                leases={} if longer_lease is None else {longer_lease: 3 * LEASE_S},
                hold_s=hold_s,
                acks_hold_s=2 * hold_s,
            )
        )
        self.on.oracle.erasures.slack_s = 2 * _MAX_STEPPED_S
        more: dict[str, Any] = {"plaintext": "allowed"} if plaintext else {}
        self.on.enroll("acme", **more)
        self.all_proceeds(seconds=1)
        for key in ("a", "b", "e", HIDDEN):
            self.on.upload("acme", key, key.encode() * 100)
        self.all_proceeds_at_once(0, seconds=30)

    # Requests.

    @rule(project=PROJECTS, plaintext=st.booleans(), publisher=PUBLISHER)
    def enroll(self, project: str, publisher: str, *, plaintext: bool) -> None:
        more: dict[str, Any] = {"plaintext": "allowed"} if plaintext else {}
        self.on.enroll(project, publisher=publisher, **more)

    @rule(
        project=PROJECTS,
        key=KEYS,
        size=st.sampled_from((0, 5, 300)),
        content=st.integers(0, 255),
        staged=st.booleans(),
        publisher=PUBLISHER,
    )
    def upload(  # an upload has as many
        self, project: str, key: str, size: int, content: int, publisher: str, *, staged: bool
    ) -> None:
        body = bytes([content]) * size
        self.on.upload(project, key, body, staged=staged, publisher=publisher)

    @rule(
        project=PROJECTS,
        key=st.sampled_from(("s", "t", "e")),
        size=st.sampled_from((1, 90)),
        publisher=PUBLISHER,
        named=st.booleans(),
    )
    def an_object_is_dropped(
        self, project: str, key: str, size: int, publisher: str, *, named: bool
    ) -> None:
        """Into the source, over an earlier one or not; its upload is perhaps not requested yet."""
        # No two have the same bytes: an ETag names one object for good.
        body = b"%06d" % len(self.on.dropped) * size
        dropped = self.on.drop(project, key, body)
        if named:
            self.on.upload_from_source(dropped, body, publisher=publisher)

    @precondition(lambda self: self.on.dropped)
    @rule(pick=PICKS, publisher=PUBLISHER)
    def a_dropped_object_is_named(self, pick: int, publisher: str) -> None:
        """Be it there or not, and by others before or not."""
        dropped, body = self.on.dropped[pick % len(self.on.dropped)]
        self.on.upload_from_source(dropped, body, publisher=publisher)

    @precondition(lambda self: self.on.dropped)
    @rule(pick=PICKS)
    def the_owner_deletes_a_dropped_object(self, pick: int) -> None:
        self.on.source.removed(self.on.dropped[pick % len(self.on.dropped)][0]["key"])

    @rule(project=PROJECTS, publisher=PUBLISHER)
    def rotate(self, project: str, publisher: str) -> None:
        self.on.rotate(project, publisher=publisher)

    @rule(project=PROJECTS, key=CUSTOMER_KEYS, new_kek=st.booleans(), publisher=PUBLISHER)
    def rotate_to_a_customer_key(
        self, project: str, key: str, publisher: str, *, new_kek: bool
    ) -> None:
        """One of its own keys, or another project's."""
        self.on.rotate(project, publisher=publisher, new_kek=new_kek, customer_key=named(key))

    @rule(project=PROJECTS, publisher=PUBLISHER)
    def erase(self, project: str, publisher: str) -> None:
        """Most have no customer key, or one that gives."""
        self.on.erase(project, publisher=publisher)

    @rule(
        moment=st.sampled_from(
            ("a keyring's put", "a record's put", "a customer secret", "a mark")
        ),
        fate=st.sampled_from(FATES),
        skip=st.integers(0, 3),
        then=st.sampled_from(("gives", "away", "refuses", "pretends", "missing")),
        seconds=st.sampled_from((0.5, 4, 60)),
    )
    def beta_is_erased(self, moment: str, fate: str, skip: int, then: Mood, seconds: float) -> None:
        """Perhaps: something happens on the way, and its key changes."""
        key = GIVEN["beta"][0]
        self.on.stores.moods.pop(key, None)
        self.on.enroll("beta", customer_key=named(key))
        self.on.upload("beta", "a", b"a" * 100)
        self.all_proceeds(seconds=4)
        self.on.stores.moods[key] = "disabled"
        self.on.erase("beta")
        self.something_happens_at(moment, fate, skip)
        self.on.upload("beta", "b", b"b" * 100)
        self.all_proceeds(seconds=seconds)
        self.on.stores.moods[key] = then
        self.nothing_is_violated()

    @rule(
        project=st.sampled_from(("acme", "beta", "*")),
        master_key=st.sampled_from((None, "m1", "m2")),
        encrypt=st.booleans(),
    )
    def sweep(self, project: str, master_key: str | None, *, encrypt: bool) -> None:
        named: dict[str, Any] = {} if master_key is None else {"master_key": master_key}
        self.on.sweep(project, encrypt_plaintext=encrypt, **named)

    @rule(
        project=PROJECTS,
        keys=st.lists(KEYS, min_size=1, max_size=3, unique=True),
        publisher=PUBLISHER,
    )
    def delete(self, project: str, keys: list[str], publisher: str) -> None:
        self.on.delete(project, *keys, publisher=publisher)

    @rule(
        project=st.sampled_from(("acme", "beta", "*", "*")),
        view=st.sampled_from(("projects", "projects", "projects", "sweeps", "sweep", "evidence")),
        publisher=PUBLISHER,
        pick=PICKS,
    )
    def status(self, project: str, view: str, publisher: str, pick: int) -> None:
        """A publisher wants to know what is so, of its project or another."""
        more: dict[str, Any] = {}
        if view == "sweep":
            names = list(self.on.requests)
            more = {"sweep_id": names[pick % len(names)]}
        elif view == "evidence" and project == "*":
            project, view = "*", "master_keys"
        self.on.status(project, view=view, publisher=publisher, **more)

    @rule(pick=PICKS, discard=st.booleans())
    def a_console_moves_a_letter(self, pick: int, *, discard: bool) -> None:
        if self.on.dead:
            letter, _ = self.on.dead[pick % len(self.on.dead)]
            self.on.move_letters(letter, action="discard" if discard else "replay")

    @rule(pick=PICKS, publisher=PUBLISHER)
    def move_letters(self, pick: int, publisher: str) -> None:
        """A publisher has letters moved that may be there, be it allowed to or not."""
        sent = list(self.on.sent_requests.values())
        dead = [letter for letter, _ in self.on.dead][:1]
        self.on.move_letters(*dead, digests=[sent[pick % len(sent)].digest], publisher=publisher)

    @rule(pick=PICKS, signed_again=st.booleans())
    def request_again(self, pick: int, *, signed_again: bool) -> None:
        names = list(self.on.requests)
        again = self.on.send_again if signed_again else self.on.replay
        again(names[pick % len(names)])

    # Attackers.

    @rule(
        pick=PICKS,
        queue=st.sampled_from((None, None, *QUEUES)),
        routing_key=st.sampled_from((None, None, *REQUESTS, *QUEUES)),
        of=st.one_of(st.none(), PICKS),
        attempt=st.sampled_from((None, "unknown_project:3", "storage_unavailable:99", "waiting:1")),
    )
    def a_message_is_copied(
        self,
        pick: int,
        queue: str | None,
        routing_key: str | None,
        of: int | None,
        attempt: str | None,
    ) -> None:
        """To any queue, by any key, with the notes of another message or forged ones."""
        all_messages = self.on.all_messages
        headers: dict[str, Any] = {} if attempt is None else {ATTEMPT_HEADER: attempt}
        if of is not None:
            noted = all_messages[of % len(all_messages)].headers
            headers = {name: noted[name] for name in WORKER_HEADERS if name in noted}
        queued = all_messages[pick % len(all_messages)]
        self.on.broker_writer.copy(queued, queue=queue, routing_key=routing_key, headers=headers)

    @rule(pick=PICKS)
    def an_event_is_published_again(self, pick: int) -> None:
        if self.on.stream:
            self.on.broker_writer.publish_again(self.on.stream[pick % len(self.on.stream)])

    @rule(pick=PICKS)
    def an_event_is_repacked(self, pick: int) -> None:
        """Cut out of its batch, or put into one."""
        if self.on.stream:
            self.on.broker_writer.repack(self.on.stream[pick % len(self.on.stream)])

    @rule(queue=st.sampled_from(QUEUES), body=st.sampled_from((b"", b"{}", b"\xff")))
    def junk_is_published(self, queue: str, body: bytes) -> None:
        self.on.broker_writer.junk(queue, body, **{PUBLISHER_HEADER: "api"})

    @rule(pick=PICKS, queue=st.sampled_from(QUEUES))
    def a_request_is_changed(self, pick: int, queue: str) -> None:
        """Its bytes, under the signature of others."""
        sent = list(self.on.sent_requests.values())
        document = {**sent[pick % len(sent)].document, "key": "forged", "project": "acme"}
        self.on.broker_writer.unsigned(document, queue, sent[pick % len(sent)].publisher)

    @rule(pick=PICKS, project=st.sampled_from(("acme", "beta", "*")), numbers=st.integers(0, 40))
    def a_hint_is_forged(self, pick: int, project: str, numbers: int) -> None:
        rounds = list(self.on.oracle._rounds) or [next(iter(self.on.requests))]
        if numbers % 2 or project == "*":
            self.on.broker_writer.step(project, numbers // 2)
        else:
            round_id = rounds[pick % len(rounds)]
            self.on.broker_writer.page(project, round_id, numbers // 2 % 4, numbers // 8)

    @rule(
        pick=PICKS,
        kind=st.sampled_from(("enroll", "upload", "rotate", "sweep", "delete", "status")),
        hostile=st.sampled_from(("other", "second")),
        key=KEYS,
        own=st.booleans(),
    )
    def an_id_is_reused(self, pick: int, kind: str, hostile: str, key: str, *, own: bool) -> None:
        """Another publisher asks for something else under the id of an honest request."""
        sent = [each for each in self.on.sent_requests.values() if each.honest]
        taken = sent[pick % len(sent)]
        publisher = HostilePublisher(self.on, hostile)
        more: dict[str, Any] = {}
        match kind:
            case "upload":
                more = {"key": taken.document.get("key", key), "plaintext": b"own"}
            case "delete":
                more = {"key": key}
            case "enroll" | "rotate":
                more = {"kek": bytes([7]) * 32} if own else {}
            case "sweep":
                more = {"encrypt_plaintext": own}
            case "status":
                more = {"view": "projects" if own else "sweeps"}
        project = "beta" if hostile == "other" else "acme"
        publisher.reuse(taken.id, kind, project, **more)

    @rule(pick=PICKS, hostile=st.sampled_from(("other", "second")))
    def bytes_are_signed_once_more(self, pick: int, hostile: str) -> None:
        sent = [each for each in self.on.sent_requests.values() if each.honest]
        HostilePublisher(self.on, hostile).sign_as_own(sent[pick % len(sent)])

    @rule(
        pick=PICKS,
        hostile=st.sampled_from(("other", "second")),
        project=st.sampled_from(("acme", "beta", None)),
    )
    def a_malformed_body_names_anothers_id(
        self, pick: int, hostile: str, project: str | None
    ) -> None:
        sent = [each for each in self.on.sent_requests.values() if each.publisher != hostile]
        taken = sent[pick % len(sent)]
        HostilePublisher(self.on, hostile).malformed(taken.id, taken.kind, project)

    @rule(pick=PICKS)
    def a_sweeps_record_is_removed(self, pick: int) -> None:
        """By a bucket writer: that of a project, or one of its pages."""
        keys = [key for key in self.on.server.current_objects() if key.startswith(SWEEPS_PREFIX)]
        if keys:
            self.on.bucket_writer.remove(keys[pick % len(keys)])

    @rule(project=st.sampled_from(("acme", "beta", "*")), pick=PICKS, with_results=st.booleans())
    def a_sweeps_record_is_set_back(self, project: str, pick: int, *, with_results: bool) -> None:
        """By a bucket writer: to an earlier one, perhaps with all results that there were."""
        self.on.bucket_writer.set_back(project, pick, with_results=with_results)

    @rule(key=KEYS, pick=PICKS)
    def an_object_is_relabeled(self, key: str, pick: int) -> None:
        """To the id of an upload that is perhaps still to come."""
        uploads = [a.id for a in self.on.sent_requests.values() if a.kind == "upload.requested"]
        stored = self.on.server.current_objects().get(f"acme/{key}")
        if stored is not None and "enc-upload" in stored.headers.metadata:
            self.on.bucket_writer.relabel(f"acme/{key}", enc_upload=uploads[pick % len(uploads)])

    @rule(project=PROJECTS, place=PICKS)
    def a_keyring_is_rolled_back(self, project: str, place: int) -> None:
        """To any state that it ever had; perhaps to the newest one."""
        if self.on.bucket_writer.states(project):
            self.on.bucket_writer.roll_back(project, place)

    @rule(project=PROJECTS)
    def a_keyring_is_removed(self, project: str) -> None:
        self.on.bucket_writer.remove_keyring(project)

    @rule(project=PROJECTS)
    def a_keyring_is_put_right(self, project: str) -> None:
        self.on.bucket_writer.put_right(project)

    @rule(place=PICKS, shown=st.booleans())
    def an_object_is_hidden_or_put_back(self, place: int, *, shown: bool) -> None:
        if shown and self.on.bucket_writer.states("acme", HIDDEN):
            self.on.bucket_writer.show(f"acme/{HIDDEN}", place)
        else:
            self.on.bucket_writer.hide(f"acme/{HIDDEN}")

    @rule(pick=PICKS)
    def an_old_mark_is_published_again(self, pick: int) -> None:
        records = self.on.marks.records
        self.on.marks.add_again(records[pick % len(records)])

    @rule(worker=WORKERS, cut=st.booleans())
    def a_worker_gets_no_marks(self, worker: int, *, cut: bool) -> None:
        if cut:
            self.on.marks.cut.add(worker)
        else:
            self.on.marks.delay(self.on.processes[worker])

    @rule()
    def all_workers_get_marks_again(self) -> None:
        self.on.marks.mend()

    # What the storage does wrong.

    @rule(key=KEYS, code=st.sampled_from(("NoSuchKey", "")), times=st.integers(1, 9))
    def an_object_answers_404(self, key: str, code: Any, times: int) -> None:
        self.on.server.hide(f"acme/{key}", code=code, times=times)

    @rule(project=PROJECTS, code=st.sampled_from(("NoSuchKey", "")))
    def a_keyring_answers_404(self, project: str, code: Any) -> None:
        self.on.server.hide(keyring_s3_key(project), code=code, times=1)

    @rule(
        clock_s=st.sampled_from((-86_400, -16, -5, 5, 16, 86_400)),
        times=st.sampled_from((1, 3, 20, None)),
        every=st.integers(1, 3),
        early=st.booleans(),
    )
    def a_front_end_is_off(
        self, clock_s: float, times: int | None, every: int, *, early: bool
    ) -> None:
        """One of a few front ends, which serve requests in rotation."""
        served = count()
        in_turn = lambda _: next(served) % every == 0  # noqa: E731
        if early:
            self.on.server.front_end(where=in_turn, times=times, dated_early=True)
        else:
            self.on.server.front_end(clock_s, in_turn, times=times)

    @rule()
    def all_front_ends_agree_again(self) -> None:
        self.on.server.mend()

    @rule(seconds=st.sampled_from((-120, -16, 16, 120)))
    def the_storages_clock_steps(self, seconds: float) -> None:
        """Never by five minutes in all: it rightly refuses requests that come from its future."""
        if abs(self.stepped_s + seconds) <= _MAX_STEPPED_S:
            self.stepped_s += seconds
            self.on.server.advance(seconds)

    @rule(worker=WORKERS, clock_s=st.sampled_from((0, -600, 600)))
    def a_workers_clock_is_off(self, worker: int, clock_s: float) -> None:
        self.on.processes[worker].clock_s = clock_s

    @rule(worker=WORKERS)
    def a_worker_looks_at_sweeps(self, worker: int) -> None:
        process = self.on.processes[worker]
        if not process.stalled:
            self.on.advance(1000)
            self.on.scan_sweeps(process)

    @rule(key=CUSTOMER_KEYS, mood=st.sampled_from(MOODS))
    def a_customer_key_changes(self, key: str, mood: Mood) -> None:
        self.on.stores.moods[key] = mood

    # The scheduler.

    @rule(picks=st.lists(PICKS, min_size=1, max_size=12))
    def some_calls_proceed(self, picks: list[int]) -> None:
        for pick in picks:
            calls = [call for call in self.on.moving() if call not in self.held]
            ready = self.on.ready()
            if not calls and not ready:
                return
            at = pick % (len(calls) + len(ready))
            if at < len(calls):
                self.on.step(calls[at])
            else:
                self.on.deliver(ready[at - len(calls)])

    @rule(seconds=st.sampled_from((0.5, 4, 20, 60)))
    def all_proceeds(self, seconds: float) -> None:
        self.on.run(hold=self.held.__contains__, seconds=seconds)

    @rule(worker=WORKERS, seconds=st.sampled_from((0.5, 4, 20)))
    def all_proceeds_at_once(self, worker: int, seconds: float) -> None:
        """Whatever can be delivered is delivered to one worker first."""
        process = self.on.processes[worker]
        for queued in [] if process.stalled else self.on.ready():
            self.on.deliver(queued, process)
        self.all_proceeds(seconds)

    @rule(seconds=st.sampled_from((0.6, 3, 7, 14)))
    def time_passes(self, seconds: float) -> None:
        self.on.advance(seconds)

    # Faults.

    @rule(
        moment=MOMENT,
        fate=st.sampled_from(FATES),
        skip=st.integers(0, 3),
    )
    def something_happens_at(self, moment: str, fate: str, skip: int) -> None:
        """Proceed until a request of this kind is sent; then it meets its fate."""
        for _ in range(skip + 1):
            call = self._next(moment)
            if call is None:
                return
            if _ < skip:
                self.on.step(call)
        assert call is not None
        self._meet(call, fate)

    def _next(self, moment: str) -> Call | None:
        def found() -> Call | None:
            return next(
                (
                    call
                    for call in self.on.calls
                    if MOMENTS[moment](call)
                    and call.state == SENT
                    and call not in self.held
                    and not call.is_ghost
                ),
                None,
            )

        self.on.run(until=found, hold=self.held.__contains__, seconds=20)
        return found()

    def _meet(self, call: Call, fate: str) -> None:
        """A request that is neither served nor dropped by it is held from then on."""
        match fate:
            case "begun" | "midst" | "late":
                self._serve_in_part(call, fate)
            case "lose":
                self.on.network.lose(call)
            case "lose after":
                self._serve_in_part(call, "late")
                self.on.network.lose(call)
            case "lose before":
                self.on.network.drop(call)
            case "crash":
                self.on.crash(call.sender)
            case "crash before":
                self.on.crash(call.sender, arriving=lambda each: each is not call)
            case "cut":
                self.on.disconnect(call.sender, noticed=False)
        if call in self.on.calls:
            self.held.append(call)

    def _serve_in_part(self, call: Call, fate: str) -> None:
        self.on.step(call, respond=fate != "late")
        if call.state == BEGUN and fate == "midst":
            self.on.step(call)

    @rule(
        first=st.sampled_from(("rotate", "rotate", "sweep", "encrypt", "upload", "delete")),
        moment=st.one_of(WRITE, MOMENT),
        fate=st.sampled_from(("hold", *FATES)),
        then=st.lists(
            st.sampled_from(("rotate", "delete", "rotate", "delete", "sweep", "upload", "encrypt")),
            min_size=1,
            max_size=2,
        ),
        seconds=st.sampled_from((0.5, 5, 8, 16, 40)),
        key=KEYS,
    )
    def meanwhile(
        self, first: str, moment: str, fate: str, then: list[str], seconds: float, key: str
    ) -> None:
        """One request is held at a moment of its way, others are served, then it proceeds."""
        self._request(first, key)
        call = self._next(moment)
        if call is None:
            return
        self._meet(call, fate)
        if call.key.startswith("acme/"):
            key = call.key.removeprefix("acme/")
        for what in then:
            self._request(what, key)
            self.all_proceeds(seconds=seconds)
        while self.held:
            self.a_held_call_proceeds(0)
        self.nothing_is_violated()

    def _request(self, what: str, key: str) -> None:
        match what:
            case "rotate":
                self.on.rotate("acme")
            case "sweep":
                current = self.on.oracle.projects["acme"].states[-1].master_key
                self.on.sweep("acme", master_key="m2" if current == "m1" else "m1")
            case "encrypt":
                self.on.sweep("acme", encrypt_plaintext=True)
            case "upload":
                self.on.upload("acme", key, key.encode() * 200, staged=True)
            case "delete":
                self.on.delete("acme", key)

    @precondition(lambda self: self.held)
    @rule(pick=PICKS)
    def a_held_call_proceeds(self, pick: int) -> None:
        call = self.held.pop(pick % len(self.held))
        if call in self.on.calls:
            self.on.step(call)

    @rule(worker=WORKERS, arriving=st.booleans())
    def crash(self, worker: int, *, arriving: bool) -> None:
        self.on.crash(self.on.processes[worker], arriving=lambda _: arriving)

    @rule(worker=WORKERS)
    def a_worker_stops_in_order(self, worker: int) -> None:
        process = self.on.processes[worker]
        if not process.stalled:
            self.on.stop(process, hold=self.held.__contains__)

    @rule(
        worker=WORKERS,
        count=st.integers(3, 6),
        publisher=PUBLISHER,
        fate=st.sampled_from(FATES),
        first=st.sampled_from((True, False, False)),
        slow=st.booleans(),
    )
    def uploads_end_together(
        self, worker: int, count: int, publisher: str, fate: str, *, first: bool, slow: bool
    ) -> None:
        """On one worker: an event is held, perhaps an upload is slow, and others' events gather.

        Then this first publish, or the next one, meets its fate.
        """
        process = self.on.processes[worker]
        for number in range(count):
            key = f"together/{len(self.on.sent_requests)}"
            self.on.upload("acme", key, b"x" * number, publisher=publisher)
            if not process.stalled:
                self.on.deliver(self.on.queue[-1], process)
        call = self._next_while_others_gather(slow=slow)
        if call is not None and not first:
            self.on.step(call)
            call = self._next_while_others_gather(slow=slow)
        if call is not None:
            self._meet(call, fate)

    def _next_while_others_gather(self, *, slow: bool) -> Call | None:
        call = self._next("an event")
        if call is not None:
            puts = [each for each in self.on.calls if MOMENTS["an object's put"](each)]
            held = (*self.held, *(puts[:1] if slow else ()), call)
            self.on.run(hold=held.__contains__, keep=lambda _: True, seconds=0.9)
        return call

    @rule(worker=WORKERS, clock_s=st.sampled_from((-86_400, -16, -5, 5, 16, 86_400)))
    def a_worker_restarts_behind_a_wrong_front_end(self, worker: int, clock_s: float) -> None:
        """Its first `Date` is wrong, and is its reference at once."""
        self.on.restart(self.on.processes[worker], clock_s=clock_s)

    @rule(key=st.sampled_from(("c/d", "f", "g")), copies=st.integers(1, 2))
    def a_retry_of_a_large_upload_is_copied(self, key: str, copies: int) -> None:
        """Its first attempt fails at a part, if it uploads in parts."""
        self.on.upload("acme", key, key.encode() * 200, staged=True)
        part = self._next("a part")
        if part is None:
            return
        self.on.network.lose(part)
        self.on.run(until=self._retries, hold=self.held.__contains__, seconds=1)
        for queued in self._retries()[-1:]:
            for _ in range(copies):
                self.on.duplicate(queued)

    def _retries(self) -> list[QueuedMessage]:
        return [queued for queued in self.on.queue if ATTEMPT_HEADER in queued.headers]

    @rule(worker=WORKERS, noticed=st.booleans())
    def disconnect(self, worker: int, *, noticed: bool) -> None:
        self.on.disconnect(self.on.processes[worker], noticed=noticed)

    @rule(worker=WORKERS)
    def stall_or_recover(self, worker: int) -> None:
        process = self.on.processes[worker]
        process.stalled = not process.stalled

    @rule(pick=PICKS)
    def duplicate(self, pick: int) -> None:
        if self.on.queue:
            self.on.duplicate(self.on.queue[pick % len(self.on.queue)])

    @invariant()
    def nothing_is_violated(self) -> None:
        if self.world is not None:
            assert self.world.oracle.violations == []

    def teardown(self) -> None:
        if self.world is None:
            return
        try:
            if self.world.holds():
                # With different ones a sweep waits for minutes at a time, but ends too.
                self.world.unify_leases()
                self.world.settle()
                assert self.world.oracle.violations == []
        finally:
            self.world.close()


def test_whatever_happens_nothing_is_violated() -> None:
    run_state_machine_as_test(Protocol, settings=_SETTINGS)
