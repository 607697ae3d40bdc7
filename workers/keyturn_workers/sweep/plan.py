"""The record of a sweep as values: what was requested, planned and proven (SPEC 8.5). Pure.

`sweep_store` and `page_record_store` read and write these values. A page covers the object keys
after `after` up to and including `last`. The pages of a key range adjoin by construction, so no
object key lies between two of them.

The names of fields are the names in the stored JSON. That is why some of them differ from the
terms of the prose: `ask` is the request, `live` are the open pages, `take` is the number of
attempts, `told` means that the end was published, `taken` are the sweeps that were taken over,
and `turned_at` is when the state changed.
"""

import json
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final, Literal, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from keyturn.messages import RequestOrigin
from keyturn_workers.keyring import KeyringSnapshot
from keyturn_workers.sweep.counts import Counts

ALL: Final = "*"
# How many request digests of one publisher a record keeps.
_MAX_DIGESTS: Final = 16

Status = Literal["running", "done", "failed"]
Origins = tuple[RequestOrigin | None, ...]
"""Who requested a sweep: publisher and request digest; None if a record of 0.4 does not say."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """What was requested.

    Attributes:
        kind: Whether the end is published as that of a rotation or of a sweep.
        of_all: Whether this is one project's part of a sweep of all projects.
    """

    kind: Literal["rotation", "sweep"]
    sweep_id: str
    project: str
    requested_at: str
    master_key: str | None = None
    encrypt_plaintext: bool = False
    repair: bool = False
    dry_run: bool = False
    of_all: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """A desired state in short (SPEC 5.2): what a page attempt observed, what a sweep proves.

    Attributes:
        etag: The ETag of the keyring. A state that was left and came back, as with two sweeps
            that name two master keys, is not the same state: objects may have followed the
            other one in between.
    """

    generation: int
    kek_id: str
    master_key: str
    plaintext: bool
    etag: str

    @classmethod
    def of(cls, snapshot: KeyringSnapshot) -> "State":
        """The state that a keyring snapshot shows."""
        desired = snapshot.desired
        return cls(
            desired.generation,
            desired.kek_id,
            desired.master_key,
            desired.plaintext_allowed,
            snapshot.etag,
        )


@dataclass(frozen=True, slots=True)
class KeyRange:
    """A range of object keys, planned up to `through`, to be planned up to `end`.

    An empty `end` is the end of the project.
    """

    through: str = ""
    end: str = ""
    planned: bool = False


@dataclass(frozen=True, slots=True)
class OpenPage:
    """A page that is not proven yet.

    A page is sent if `sent_at` is None and `not_before` has passed by the storage's clock.

    Attributes:
        take: How many attempts at it were made.
        tries: How many of them failed for an object, with nothing else left to do.
        sends: How often the current attempt was sent.
        seen: What the last attempt counted.
    """

    page: int
    after: str
    last: str
    take: int = 0
    tries: int = 0
    sends: int = 0
    sent_at: datetime | None = None
    not_before: datetime | None = None
    seen: Counts = field(default_factory=Counts)


@dataclass(frozen=True, slots=True)
class Failure:
    """An object that could not be read, or not be brought to the desired state."""

    key: str
    code: str


@dataclass(frozen=True, slots=True)
class Result:
    """What one page attempt observed and did (SPEC 8.5).

    Attributes:
        after: With `last` the range of the page, so that a result proves no other range.
        last: See `after`.
        state: The desired state that was observed; None if it changed during the attempt.
        observed_at: The storage's `Date` of a read that preceded all others of the attempt.
        changed: How many writes and removals there were.
        proves: Whether the worker had known the storage's clock for long enough to date a proof.
    """

    after: str
    last: str
    state: State | None
    observed_at: datetime
    counts: Counts
    changed: int
    failures: tuple[Failure, ...] = ()
    proves: bool = False


@dataclass(frozen=True, slots=True)
class KeptEnvelope:
    """Evidence of a clean end, kept before the keyring names it (SPEC 15.1).

    Attributes:
        text: The content of its file, which is ASCII.
        state: The state that it proves. The put that names this evidence replaces the keyring with
            that ETag, so it cannot succeed any more once the keyring has another one.
    """

    text: str
    state: State


@dataclass(frozen=True, slots=True)
class Plan:
    """The record of a sweep of one project.

    Attributes:
        ask: The request.
        state: The desired state that the sweep proves.
        turned_at: The storage's `Date` of the first response that showed `state`.
        told: Whether the end was published to each of `origins`.
        idle: How many steps passed since one that had something to do.
        live: The open pages.
        proven: The counts of proven pages, each by its last attempt.
        written: The writes of all attempts.
        width: How many pages may be under way at once.
        origins: The requests whose publishers get the end.
        successor: The id of the later sweep of the project that took this one over.
        taken: The ids of the sweeps that this one took over. A step of its own notes them before
            it proves anything for them: only they may copy its end.
        turn_dated: False until a worker that has known the storage's clock for two leases has
            dated the change of state. Nothing is proven before (SPEC 8.4).
        late_writes_refused: Whether the storage refuses writes that arrive after their lease.
        lease_s: The longest lease of all workers that took part; None in records of 0.4.
        stepped_lease_s: The lease of the worker that made the last step.
        proven_from: The storage's `Date` of the first observation that proved a page.
        proven_to: The storage's `Date` of the last one.
        dated_pages: How many proven pages these two dates are of. Workers of 0.6 record none.
        envelope: The evidence of the end that is being made, or was made (SPEC 15.1).
        evidence: The digest of the evidence that the end names; None of an end that is not clean.
    """

    ask: SweepRequest
    state: State
    turned_at: datetime
    started_at: datetime
    status: Status = "running"
    told: bool = False
    step: int = 0
    stepped_at: datetime | None = None
    progressed_at: datetime | None = None
    idle: int = 0
    round: int = 0
    next_page: int = 0
    ranges: tuple[KeyRange, ...] = (KeyRange(),)
    live: tuple[OpenPage, ...] = ()
    proven: Counts = field(default_factory=Counts)
    written: Counts = field(default_factory=Counts)
    width: int = 16
    clean: bool = False
    code: str = ""
    detail: str = ""
    ended_at: datetime | None = None
    origins: Origins = (None,)
    successor: str | None = None
    taken: tuple[str, ...] = ()
    turn_dated: bool = True
    late_writes_refused: bool | None = None
    lease_s: int | None = None
    stepped_lease_s: int | None = None
    proven_from: datetime | None = None
    proven_to: datetime | None = None
    dated_pages: int = 0
    envelope: KeptEnvelope | None = None
    evidence: str | None = None

    @property
    def everything_planned(self) -> bool:
        """Whether every object key of the project is in a page, proven or open."""
        return all(key_range.planned for key_range in self.ranges)

    @property
    def complete(self) -> bool:
        """Whether every page is proven."""
        return self.everything_planned and not self.live

    @property
    def counts(self) -> Counts:
        """The counts so far: of proven pages, and of the last attempt at each open page."""
        seen = self.proven
        for open_page in self.live:
            seen += open_page.seen
        return replace(seen, rewrapped=self.written.rewrapped, encrypted=self.written.encrypted)

    def page(self, number: int) -> OpenPage | None:
        """The open page with this number."""
        return next((open_page for open_page in self.live if open_page.page == number), None)

    def proof_after(self, lease_s: int) -> datetime:
        """Only an observation later than this is a proof (SPEC 8.4).

        Until then a stalled worker can set an object back.
        """
        return self.turned_at + timedelta(seconds=2 * lease_s)


@dataclass(frozen=True, slots=True)
class AllPlan:
    """The record of a sweep of all projects.

    Attributes:
        ask: The request.
        told: Whether the end was published to each of `origins`.
        through: The last project that this walk through the listing of keyrings inspected.
        begun_in_walk: How many parts this walk started, or leaves to the next walk.
        live: The projects whose parts are under way.
        sums: The counts of the parts that ended.
        projects: How many parts ended.
        not_found: By project, in how many walks its keyring was listed but not found.
    """

    ask: SweepRequest
    started_at: datetime
    status: Status = "running"
    told: bool = False
    step: int = 0
    stepped_at: datetime | None = None
    through: str = ""
    begun_in_walk: int = 0
    live: tuple[str, ...] = ()
    sums: Counts = field(default_factory=Counts)
    projects: int = 0
    clean: bool = True
    code: str = ""
    detail: str = ""
    ended_at: datetime | None = None
    not_found: dict[str, int] = field(default_factory=dict)
    origins: Origins = (None,)
    late_writes_refused: bool | None = None


@dataclass(frozen=True, slots=True)
class PartResult:
    """How one project's part of a sweep of all projects ended."""

    counts: Counts
    clean: bool

    @classmethod
    def of(cls, plan: Plan) -> "PartResult":
        """The result of a part, by its own record."""
        if plan.status == "failed":
            # For the whole sweep this is one failure. The part's own record has its code.
            return cls(plan.counts + Counts(failed=1), clean=False)
        return cls(plan.counts, plan.clean)


def merge_origins(origins: Origins, more: Origins) -> Origins:
    """The requests of a sweep with more of them, each once.

    A publisher that signs the same request again and again must not make the record grow
    without bound. Its further digests are left out. It gets the end all the same, since that is
    matched by everything but the digest.
    """
    for origin in more:
        publishers = [each.publisher for each in origins if each is not None]
        if origin not in origins and (
            origin is None or publishers.count(origin.publisher) < _MAX_DIGESTS
        ):
            origins = (*origins, origin)
    return origins


def one_per_publisher(origins: Origins) -> Origins:
    """One origin of each publisher: progress is matched by all but the digest (SPEC 6.7)."""
    first: dict[str | None, RequestOrigin | None] = {}
    for origin in origins:
        first.setdefault(None if origin is None else origin.publisher, origin)
    return tuple(first.values())


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
