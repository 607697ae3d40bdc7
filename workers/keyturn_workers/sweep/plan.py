"""A sweep as its record keeps it: what was asked, what is planned, what is proven (SPEC 8.5).

Values alone; `keyturn_workers.sweep.store` reads and writes them. A page covers the keys after
`after` up to and including `last`; by construction the pages of a key range touch each
other, so that no key lies between two of them.
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
# Digests of one publisher that a record keeps.
_MAX_DIGESTS: Final = 16

Status = Literal["running", "done", "failed"]
Origins = tuple[RequestOrigin | None, ...]
"""Who asked for a sweep, by publisher and digest; None where a record of 0.4 does not say."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """What was asked for.

    `kind` is how its end is told. `of_all` marks one project's part of a sweep of all.
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
    """A desired state in a few words (SPEC 5.2): what a page observed, what a sweep proves.

    `etag` is the keyring's: a state that was left and came back (two sweeps that name two
    master keys) is not the same one, since objects may have followed it in between.
    """

    generation: int
    kek_id: str
    master_key: str
    plaintext: bool
    etag: str

    @classmethod
    def of(cls, observed: KeyringSnapshot) -> "State":
        """The state that a keyring read showed."""
        desired = observed.desired
        return cls(
            desired.generation,
            desired.kek_id,
            desired.master_key,
            desired.plaintext_allowed,
            observed.etag,
        )


@dataclass(frozen=True, slots=True)
class KeyRange:
    """One range of keys: planned up to `through`, to be planned to `end`.

    Both are keys of the project; an empty `end` is the end of all keys.
    """

    through: str = ""
    end: str = ""
    planned: bool = False


@dataclass(frozen=True, slots=True)
class OpenPage:
    """A page that is not proven yet.

    `take` counts the looks at it so far, `tries` those of them that failed for an object
    with nothing else left to do. It is sent where `sent_at` is None and `not_before` (the
    storage's clock) is over.
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
    """An object that could not be brought to the desired state, or not even read."""

    key: str
    code: str


@dataclass(frozen=True, slots=True)
class Result:
    """What one take of a page found and did (SPEC 8.5).

    `state` is the desired state that was observed; None where it moved meanwhile.
    `observed_at` is the storage's `Date` of a read that came before all others of the take;
    `proves` whether the worker knew the storage's clock well enough for it to date a proof.
    `changed` counts everything that was written or removed. `after` and `last` are the page's,
    so that a result proves no other range of keys.
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
class Plan:
    """A sweep's record.

    `turned_at` is the storage's `Date` of the first answer that showed `state` as desired.
    `proven` adds up what the last look at each proven page found, `written` what all looks
    wrote. `width` is how many pages may be under way at once. `idle` counts the steps since
    one that found something to do. The end is published once to each of `origins`.
    `successor` is the id of the later sweep of the project that took this one over; `taken` are
    the ids of those that this one took over, noted by a step of its own before it proved
    anything for them: only they may copy its end.
    `turn_dated` is False until a worker that has known the storage's clock for two leases has
    dated the turn: nothing is proven before (SPEC 8.4).
    `late_writes_refused` is whether the storage refuses what comes after its lease.
    `lease_s` is the longest lease of all workers that took part (None in records of 0.4),
    `stepped_lease_s` that of the worker of the last step.
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

    @property
    def everything_planned(self) -> bool:
        """Whether every key of the project stands in a page, proven or live."""
        return all(keys.planned for keys in self.ranges)

    @property
    def complete(self) -> bool:
        """Whether every page is proven."""
        return self.everything_planned and not self.live

    @property
    def counts(self) -> Counts:
        """The counts so far: of proven pages, and of the last look at the others."""
        seen = self.proven
        for live in self.live:
            seen += live.seen
        return replace(seen, rewrapped=self.written.rewrapped, encrypted=self.written.encrypted)

    def page(self, number: int) -> OpenPage | None:
        """The live page of this number."""
        return next((live for live in self.live if live.page == number), None)

    def proof_after(self, lease_s: int) -> datetime:
        """An observation is proof only where it was made later than this (SPEC 8.4).

        A worker that stalled can set an object back until then.
        """
        return self.turned_at + timedelta(seconds=2 * lease_s)


@dataclass(frozen=True, slots=True)
class AllPlan:
    """The record of a sweep of all projects: those under way, and the sums so far.

    `through` is the last project that was looked at in this walk through the listing of
    keyrings, `begun_in_walk` how many were begun in it, or are to be looked for again.
    `not_found` counts the walks in which a project's keyring was listed and not found.
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
class Ended:
    """How one project's part of a sweep of all ended."""

    counts: Counts
    clean: bool

    @classmethod
    def of(cls, plan: Plan) -> "Ended":
        """The end of a part, by its own record."""
        if plan.status == "failed":
            # Of the whole it is one thing that failed; its own record says which code.
            return cls(plan.counts + Counts(failed=1), clean=False)
        return cls(plan.counts, plan.clean)


def joined(origins: Origins, more: Origins) -> Origins:
    """Those who asked for a sweep, with more of them; each once.

    A publisher that signs the same request again and again must not make the record grow
    without bound. Its further digests are left out: the end of a sweep is matched by all but
    the digest, so that they are answered all the same.
    """
    for origin in more:
        names = [each.publisher for each in origins if each is not None]
        if origin not in origins and (
            origin is None or names.count(origin.publisher) < _MAX_DIGESTS
        ):
            origins = (*origins, origin)
    return origins


def by_publisher(origins: Origins) -> Origins:
    """One origin of each publisher: progress is matched by all but the digest (SPEC 6.7)."""
    found: dict[str | None, RequestOrigin | None] = {}
    for origin in origins:
        found.setdefault(None if origin is None else origin.publisher, origin)
    return tuple(found.values())


def to_json(value: Any) -> dict[str, Any]:
    """A value of this module as JSON."""
    document: dict[str, Any] = _adapter(cast("Any", type(value))).dump_python(value, mode="json")
    return document


def from_json(kind: type[_T], document: dict[str, Any]) -> _T:
    """The reverse.

    Raises:
        ValueError: not of that kind.
    """
    try:
        value: _T = _adapter(cast("Any", kind)).validate_json(json.dumps(document))
    except ValidationError as exc:
        raise ValueError(f"{exc.error_count()} fields") from None
    return value


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
