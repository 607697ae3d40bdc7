"""The one record of a project's sweeps, as values (SPEC 8.5). Pure.

A rotation, or a request to sweep, adds an *origin* to the record of its project. A *round* proves
the state of the project, page by page, for the origins that were there when it began. Each of
these origins then gets its own end. `sweep_transitions` has the changes of a record.

A page covers the object keys after `after` up to and including `last`. The pages of a key range
adjoin by construction, so no object key lies between two of them.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any, ClassVar, Final, Literal, TypeAlias, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from keyturn.counts import Counts
from keyturn.identifiers import ALL_PROJECTS
from keyturn.progress import KeyProblem
from keyturn.request_origin import RequestOrigin
from keyturn_workers.core.keyring_snapshot import KeyringSnapshot
from keyturn_workers.core.sweep_options import SweepOptions

ALL: Final = ALL_PROJECTS
# Digests of one repeated request that a record keeps.
_MAX_DIGESTS: Final = 64

Kind = Literal["rotation", "sweep", "part"]
OriginName: TypeAlias = tuple[Kind, str, str, str | None]
"""The identity of an origin: kind, id, publisher, and for a part its walk."""
_T = TypeVar("_T")


# Origins: requests, and their ends.


@dataclass(frozen=True, slots=True)
class End:
    """The end of an origin.

    Attributes:
        at: The storage's clock, or that of a worker whose step failed.
        clean: Every object was proven to be in its desired state.
        counts: The counts of the round, with the writes since the origin was added.
        round_id: The round, or the walk, that was to answer it, if any; failures, or the ends of
            parts, are stored there.
        late_writes_refused: The storage refuses writes that arrive after their lease, and no
            worker of the round saw its clocks contradict each other.
        state: The desired state that was proven; None without a proof, and for a walk.
        parts: For a sweep of all projects, the number of parts that ended.
        evidence: The digest of its evidence; None unless it is clean.
        code: The reason for a failure; empty if it did not fail.
        detail: See `code`.
        failed_at_step: The step that gave up. A replay of its message, or of the request,
            revokes such an end.
        published: Each of its requests was answered.
        first_rewrap_at: When the round had changed its first object.
        all_rewrapped_at: When the last object had been brought to the desired state.
        proof_possible_at: No earlier observation was a proof.
    """

    at: datetime
    clean: bool
    counts: Counts
    round_id: str | None = None
    late_writes_refused: bool | None = None
    state: "State | None" = None
    parts: int | None = None
    evidence: str | None = None
    code: str = ""
    detail: str = ""
    failed_at_step: int | None = None
    published: bool = False
    first_rewrap_at: datetime | None = None
    all_rewrapped_at: datetime | None = None
    proof_possible_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """A request for which the record's project is swept.

    Attributes:
        kind: A rotation, a sweep, or the part of a sweep of all projects.
        id: The id that the publisher chose.
        publisher: The signer.
        requested_at: As its publisher wrote it.
        digests: The SHA-256 of its bodies: several if it was signed again.
        actor: The person whom it names, if any.
        options: The options that it names.
        walk_id: For a part, the walk through all projects that collects its end.
        added_at: When it was added, by the clock of a worker.
        written_before: The writes that the record had counted when it was added.
        is_repeated: It was reopened after a step had given up.
        end: None while it is open.
    """

    kind: Kind
    id: str
    publisher: str
    requested_at: str
    digests: tuple[str, ...]
    added_at: datetime
    actor: str | None = None
    options: SweepOptions = field(default_factory=SweepOptions)
    walk_id: str | None = None
    written_before: Counts = field(default_factory=Counts)
    is_repeated: bool = False
    end: End | None = None

    @property
    def name(self) -> OriginName:
        """The origin's identity within its record."""
        return self.kind, self.id, self.publisher, self.walk_id

    @property
    def is_open(self) -> bool:
        """True until it ends."""
        return self.end is None

    @property
    def is_answered(self) -> bool:
        """True once its end was published."""
        return self.end is not None and self.end.published

    @property
    def status(self) -> Literal["running", "done", "failed"]:
        """The origin's status; `failed` means that it could not continue."""
        if self.end is None:
            return "running"
        return "failed" if self.end.code else "done"

    @property
    def requests(self) -> tuple[RequestOrigin, ...]:
        """The requests that the end answers."""
        return tuple(RequestOrigin(self.publisher, each, self.actor) for each in self.digests)

    def with_digests(self, digests: Iterable[str]) -> "Origin":
        """Add the digests of repeated requests, each once and a bounded number.

        A publisher that signs the same request repeatedly must not make the record grow. It still
        gets the end, which is matched by everything but the digest.
        """
        all_digests = dict.fromkeys((*self.digests, *digests))
        return replace(self, digests=tuple(all_digests)[:_MAX_DIGESTS])


# Rounds: the proof, page by page.


@dataclass(frozen=True, slots=True)
class State:
    """A desired state in short (SPEC 5.2), which a page attempt observed, or a round proves.

    A keyring that returns to an earlier state, as with two sweeps that name two master keys, has
    another `serial`: objects may have followed the other state in between.
    """

    generation: int
    kek_id: str
    master_key: str
    plaintext: bool
    serial: int

    @classmethod
    def of(cls, snapshot: KeyringSnapshot) -> "State":
        """The state that a keyring snapshot shows."""
        desired = snapshot.desired
        return cls(
            desired.generation,
            desired.kek_id,
            desired.master_key,
            desired.plaintext_allowed,
            snapshot.keyring.serial,
        )


@dataclass(frozen=True, slots=True)
class KeyRange:
    """A range of object keys, up to `end`. The keys up to `through` are in pages.

    An empty `end` is the end of the project. `planned`: all its keys are in pages.
    """

    through: str = ""
    end: str = ""
    planned: bool = False


@dataclass(frozen=True, slots=True)
class OpenPage:
    """A page that is not proven yet.

    A page is sent if `sent_at` is None and `not_before` has passed by the storage's clock, and
    again if `sent_at` is too long ago.

    Attributes:
        attempts: The number of attempts whose results were applied, so of the current attempt.
        failures: Attempts that failed for an object, with nothing else left to do.
        sends: How often the current attempt was sent.
        seen: The counts of the last attempt.
    """

    page: int
    after: str
    last: str
    attempts: int = 0
    failures: int = 0
    sends: int = 0
    sent_at: datetime | None = None
    not_before: datetime | None = None
    seen: Counts = field(default_factory=Counts)


@dataclass(frozen=True, slots=True)
class Failure:
    """An object that could not be read, or not brought to the desired state."""

    key: str
    code: str


@dataclass(frozen=True, slots=True)
class Result:
    """The observations and changes of one page attempt (SPEC 8.5).

    Attributes:
        after: With `last` the range of the page, so that a result proves no other range.
        last: See `after`.
        state: The desired state that was observed; None if it changed during the attempt.
        observed_at: The storage's `Date` of a read that preceded all others of the attempt.
        changed: The number of writes and removals.
        proves: The worker had known the storage's clock for long enough to date a proof.
        clock_contradicted: In the ten minutes before, the worker saw responses of the storage
            whose dates contradict each other (SPEC 8.4).
    """

    after: str
    last: str
    state: State | None
    observed_at: datetime
    counts: Counts
    changed: int
    failures: tuple[Failure, ...] = ()
    proves: bool = False
    clock_contradicted: bool = False


@dataclass(frozen=True, slots=True)
class Round:
    """One proof of a project's state, page by page.

    Attributes:
        id: A random UUID, in the names of its page records and its evidence.
        options: The options of all origins that it serves.
        origins: The origins that it serves, added before it began.
        next_page: The number of pages, including proven ones.
        proven: The counts of proven pages, and of abandoned ones, each by its last attempt.
        proven_from: The storage's `Date` of the first observation that proved a page.
        proven_to: The storage's `Date` of the last such observation.
        width: The number of pages that may be under way at once.
        keys: The number of keys in the pages when they were listed.
        first_rewrap_at: When the first object had been changed.
        all_rewrapped_at: When each page had been attempted, and so every object had been brought
            to the desired state.
    """

    id: str
    options: SweepOptions
    origins: tuple[OriginName, ...]
    ranges: tuple[KeyRange, ...] = (KeyRange(),)
    open_pages: tuple[OpenPage, ...] = ()
    next_page: int = 0
    proven: Counts = field(default_factory=Counts)
    proven_from: datetime | None = None
    proven_to: datetime | None = None
    width: int = 16
    keys: int = 0
    first_rewrap_at: datetime | None = None
    all_rewrapped_at: datetime | None = None

    @property
    def is_fully_paginated(self) -> bool:
        """True if every object key of the project is in a page, proven or open."""
        return all(key_range.planned for key_range in self.ranges)

    @property
    def complete(self) -> bool:
        """True if every page is proven."""
        return self.is_fully_paginated and not self.open_pages

    @property
    def counts(self) -> Counts:
        """The counts so far: of proven pages, and of the last attempt at each open page."""
        return sum((page.seen for page in self.open_pages), self.proven)

    def page(self, number: int) -> OpenPage | None:
        """The open page with this number."""
        return next((page for page in self.open_pages if page.page == number), None)


@dataclass(frozen=True, slots=True)
class CleanEnd:
    """A clean end in progress (SPEC 15.1), fixed against any later change.

    Attributes:
        envelope: The content of the evidence's file, which is ASCII.
        state: The state that was proven. The keyring is changed only while it shows this state.
        origins: The origins that it ends.
        written: All writes that the record had counted by then.
    """

    envelope: str
    state: State
    origins: tuple[OriginName, ...]
    written: Counts


@dataclass(frozen=True, slots=True)
class KeyWait:
    """The project's customer key gave no secret to any step since then (SPEC 8.5)."""

    code: KeyProblem
    detail: str
    since: datetime


@dataclass(frozen=True, slots=True)
class ProjectRecord:
    """The record of one project.

    Attributes:
        state: The desired state that the running round proves, or the last one proved.
        changed_at: The storage's `Date` of the first response that showed `state`.
        is_dated: False until a worker that has known the storage's clock for two leases has
            dated the change of state. Nothing is proven before (SPEC 8.4).
        lease_s: The longest lease of all workers that took part, kept while a write under it may
            still arrive.
        stepped_lease_s: The lease of the worker that made the last step.
        step: The number of the step that the record waits for.
        stepped_at: The storage's `Date` of the last step.
        parts_notified_at: When progress was last published to parts of a sweep of all.
        idle_steps: The number of steps since the last one that had something to do.
        origins: The requests, open and ended, in the order in which they were added.
        master_key_named_at: When the newest request that named a master key was signed.
        round: The running round, if any.
        written: The writes of all applied results, of all rounds.
        clean_end: The clean end in progress, if any.
        evidence: The envelope of the newest evidence, in case its file is lost.
        clock_contradicted: A worker reported `Result.clock_contradicted` since a round last came
            to its end. A round that was replaced, or whose step gave up, did not come to its end.
        key_wait: Set while the project's customer key gives no secret: no page is sent.
    """

    project: str
    state: State
    changed_at: datetime
    lease_s: int
    stepped_lease_s: int
    is_dated: bool = False
    step: int = 0
    stepped_at: datetime | None = None
    parts_notified_at: datetime | None = None
    idle_steps: int = 0
    origins: tuple[Origin, ...] = ()
    master_key_named_at: str | None = None
    round: Round | None = None
    written: Counts = field(default_factory=Counts)
    clean_end: CleanEnd | None = None
    evidence: str | None = None
    clock_contradicted: bool = False
    key_wait: KeyWait | None = None

    @property
    def proof_after(self) -> datetime:
        """Only an observation later than this is a proof (SPEC 8.4).

        Until then a stalled worker can revert an object.
        """
        return self.changed_at + timedelta(seconds=2 * self.lease_s)

    def counts_of(self, origin: Origin) -> Counts:
        """The counts of an origin: its end's, or those so far."""
        if origin.end is not None:
            return origin.end.counts
        states = Counts() if self.round is None else self.round.counts
        return states.with_writes(self.written.writes(origin.written_before))


@dataclass(frozen=True, slots=True)
class Walk:
    """One walk through all projects: each gets its part of the origins that the walk serves.

    Attributes:
        id: A random UUID. The ends of its parts are stored under it.
        options: The options of all origins that it serves.
        origins: The origins that it serves.
        through: The last project that this pass over the listing of keyrings inspected.
        added: The number of parts that this pass added, or leaves to the next pass.
        open_parts: The projects whose parts are under way.
        sums: The counts of the parts that ended.
        projects: The number of parts that ended.
        not_found: By project, the number of passes that listed its keyring but did not find it.
    """

    id: str
    options: SweepOptions
    origins: tuple[OriginName, ...]
    through: str = ""
    added: int = 0
    open_parts: tuple[str, ...] = ()
    sums: Counts = field(default_factory=Counts)
    projects: int = 0
    not_found: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AllRecord:
    """The record of the sweeps of all projects, like a project's; `round` is the walk."""

    step: int = 0
    stepped_at: datetime | None = None
    origins: tuple[Origin, ...] = ()
    master_key_named_at: str | None = None
    round: Walk | None = None

    project: ClassVar[str] = ALL

    def counts_of(self, origin: Origin) -> Counts:
        """The counts of an origin: its end's, or those of the parts that ended so far."""
        if origin.end is not None:
            return origin.end.counts
        is_served = self.round is not None and origin.name in self.round.origins
        return self.round.sums if self.round is not None and is_served else Counts()


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The end of one project's part of a sweep of all projects.

    `round_id` is the round that has its failures, if any. `code` is empty if it did not fail.
    """

    counts: Counts
    clean: bool
    round_id: str | None = None
    code: str = ""
    detail: str = ""
    late_writes_refused: bool | None = None

    @classmethod
    def of(cls, end: End) -> "PartEnd":
        """The contribution of a part's end to the whole sweep: a failed part adds one failure."""
        counts = end.counts + Counts(failed=1) if end.code else end.counts
        return cls(counts, end.clean, end.round_id, end.code, end.detail, end.late_writes_refused)


def to_json(value: Any) -> dict[str, Any]:
    """A value of this module as JSON."""
    document: dict[str, Any] = _adapter(cast("Any", type(value))).dump_python(value, mode="json")
    return document


def from_json(kind: type[_T], document: dict[str, Any]) -> _T:
    """A value of this module from JSON.

    Raises:
        ValueError: the document is not of that kind.
    """
    try:
        value: _T = _adapter(cast("Any", kind)).validate_json(json.dumps(document))
    except ValidationError as exc:
        raise ValueError(f"{exc.error_count()} fields") from None
    return value


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
