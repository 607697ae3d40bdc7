"""Changes of a record: its origins, rounds and ends (SPEC 8.4 to 8.6). Pure.

`sweep_proof` decides about the pages of a round.

All moments are the storage's, each by one read, and one read can be dated wrongly. So a moment
later than the step's own read proves nothing, and nothing waits for it (SPEC 8.4).
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from keyturn.counts import Counts
from keyturn.errors import (
    CodedError,
    GenerationMismatchError,
    LeaseMismatchError,
    MalformedRequestError,
    StorageUnavailableError,
    TooManyRequestsError,
)
from keyturn.identifiers import parse_time
from keyturn.topology import RETRY_DELAYS_S
from keyturn_workers.core.keyring import Keyring
from keyturn_workers.core.keyring_requests import find_generation_number
from keyturn_workers.core.sweep_proof import MAX_PAUSE_S
from keyturn_workers.core.sweep_record import (
    AllRecord,
    End,
    KeyRange,
    KeyWait,
    OpenPage,
    Origin,
    OriginName,
    ProjectRecord,
    Result,
    Round,
    State,
    Walk,
)

# If workers with the record's longer lease made no step for this long, others continue: no such
# worker may be left.
_ABANDONED_AFTER_S: Final = 900
# The clocks of one storage's front ends may differ by seconds. A date further ahead is wrong.
_MAX_AHEAD_S: Final = 60
# For each publisher: the number of open sweeps, and of ends that are kept.
MAX_OPEN_SWEEPS: Final = 16
_MAX_ENDS: Final = 64
# A part of a sweep of all waits this long for a customer key: the others must not wait for it.
PART_KEY_WAIT: Final = timedelta(minutes=2)

_RecordT = TypeVar("_RecordT", ProjectRecord, AllRecord)


# Origins.


def find_origin(record: ProjectRecord | AllRecord, name: OriginName) -> Origin | None:
    """The origin with this name, if the record has it."""
    return next((each for each in record.origins if each.name == name), None)


def find_repeated(record: ProjectRecord | AllRecord, origin: Origin) -> Origin | None:
    """The origin that an earlier delivery of the same request added, if any.

    Raises:
        MalformedRequestError: the id was used with other options.
    """
    existing = find_origin(record, origin.name)
    if existing is not None and existing.options != origin.options:
        raise MalformedRequestError("this id belongs to a sweep with other options")
    return existing


def check_share(record: ProjectRecord | AllRecord, publisher: str) -> None:
    """Check that this publisher may have one more sweep.

    Raises:
        TooManyRequestsError: too many of its sweeps are open.
    """
    open_sweeps = [each for each in open_origins(record) if each.kind == "sweep"]
    if sum(each.publisher == publisher for each in open_sweeps) >= MAX_OPEN_SWEEPS:
        raise TooManyRequestsError(f"{MAX_OPEN_SWEEPS} sweeps of this publisher have not ended")


def check_order(record: ProjectRecord | AllRecord, origin: Origin) -> None:
    """Check that no later request has named a master key.

    A copy of a request may come long after its end, which the record may have dropped by then.

    Raises:
        GenerationMismatchError: a later one has, so this request's master key must not be used.
    """
    named_at = record.master_key_named_at
    if origin.options.master_key is None or named_at is None:
        return
    if parse_time(origin.requested_at) < parse_time(named_at):
        raise GenerationMismatchError("a later sweep request has already named a master key")


def add_origin(record: _RecordT, origin: Origin) -> _RecordT:
    """Add an origin.

    A repeated one adds its digest, unless it was answered. If a step had given up, it is reopened
    as the youngest: earlier proofs do not answer it.
    """
    existing = find_repeated(record, origin)
    if existing is None:
        if isinstance(record, ProjectRecord):
            origin = replace(origin, written_before=record.written)
        if origin.options.master_key is not None:
            record = replace(record, master_key_named_at=origin.requested_at)
        return replace(record, origins=(*record.origins, origin))
    repeated = existing.with_digests(origin.digests)
    if existing.end is None or existing.end.failed_at_step is None:
        if existing.is_answered:
            return record
        return _map_origins(record, lambda each: repeated if each.name == origin.name else each)
    others: tuple[Origin, ...] = tuple(each for each in record.origins if each.name != origin.name)
    return replace(record, origins=(*others, _taken_up(repeated)))


def _taken_up(origin: Origin) -> Origin:
    return replace(origin, end=None, is_repeated=True)


def open_origins(record: ProjectRecord | AllRecord) -> tuple[Origin, ...]:
    """The origins that have not ended, oldest first."""
    return tuple(each for each in record.origins if each.is_open)


def unpublished_origins(record: ProjectRecord | AllRecord) -> tuple[Origin, ...]:
    """The ended origins whose end is not published."""
    return tuple(each for each in record.origins if not (each.is_open or each.is_answered))


def needs_step(record: ProjectRecord | AllRecord) -> bool:
    """Return True if the record needs another step.

    An origin is open, or its end is not published, or a clean end is not finished: the keyring
    may name its evidence already.
    """
    is_ending = isinstance(record, ProjectRecord) and record.clean_end is not None
    return is_ending or not all(each.is_answered for each in record.origins)


def choose_origins(record: ProjectRecord | AllRecord) -> tuple[Origin, ...]:
    """The origins for a new round: the oldest open one, and all with the same options.

    A round proves nothing of an erasure.
    """
    waiting = [each for each in open_origins(record) if each.kind != "erase"]
    return tuple(each for each in waiting if each.options == waiting[0].options)


def find_erasure(record: ProjectRecord) -> Origin | None:
    """The oldest open erasure: it is served before anything else."""
    return next((each for each in open_origins(record) if each.kind == "erase"), None)


def end_refused(
    record: ProjectRecord, name: OriginName, error: CodedError, now: datetime
) -> ProjectRecord:
    """Fail one open origin for good: no replay of a message reopens it."""

    def end(origin: Origin) -> Origin:
        return _refused(origin, error, now) if origin.name == name else origin

    return _map_origins(record, end)


def _refused(origin: Origin, error: CodedError, now: datetime) -> Origin:
    end = End(now, clean=False, counts=Counts(), code=error.code, detail=error.detail)
    return replace(origin, end=end)


def served_origins(record: ProjectRecord, of: Round, keyring: Keyring) -> tuple[Origin, ...]:
    """The open origins that the proof of a round answers.

    These are the origins that were there when the round began, and later rotations that were not
    repeated: the keyring whose state is proven already had them.
    """
    return tuple(
        each
        for each in open_origins(record)
        if each.name in of.origins
        or (
            (each.kind == "rotation" and each.options == of.options and not each.is_repeated)
            and find_generation_number(keyring, each.id) is not None
        )
    )


def end_overtaken(record: ProjectRecord, keyring: Keyring, now: datetime) -> ProjectRecord:
    """Fail every open request that this keyring contradicts.

    Another request has named another master key, or a restored keyring lacks the rotation.
    """

    def end(origin: Origin) -> Origin:
        detail = _overtaken_by(origin, keyring)
        if not origin.is_open or detail is None:
            return origin
        counts, code = record.counts_of(origin), GenerationMismatchError.code
        return replace(origin, end=End(now, clean=False, counts=counts, code=code, detail=detail))

    return _map_origins(record, end)


def _overtaken_by(origin: Origin, keyring: Keyring) -> str | None:
    if origin.options.master_key not in (None, keyring.master_key):
        return f"a later request has moved the project to master key {keyring.master_key}"
    if origin.kind == "rotation" and find_generation_number(keyring, origin.id) is None:
        return "the keyring was restored to a state without this rotation"
    return None


def end_erased(record: ProjectRecord, error: CodedError, now: datetime) -> ProjectRecord:
    """End every open origin, because the project was erased.

    A sweep of all projects finds nothing to do there, and nothing that is left open.
    """

    def end(origin: Origin) -> Origin:
        if not origin.is_open:
            return origin
        if origin.kind == "part":
            nothing = End(now, clean=True, counts=Counts(), late_writes_refused=True)
            return replace(origin, end=nothing)
        return _refused(origin, error, now)

    return replace(_map_origins(record, end), round=None, key_wait=None)


def end_failed(record: _RecordT, code: str, detail: str, now: datetime) -> _RecordT:
    """Fail every open origin, because the step gave up.

    If they are reopened, earlier proofs do not answer them. A clean end in progress stays: the
    keyring may name its evidence already.
    """

    def end(origin: Origin) -> Origin:
        return _given_up(record, origin, code, detail, now) if origin.is_open else origin

    record = replace(_map_origins(record, end), round=None)
    if isinstance(record, ProjectRecord) and record.clean_end is not None:
        record = replace(record, clean_end=replace(record.clean_end, origins=()))
    return record


def _given_up(
    record: ProjectRecord | AllRecord, origin: Origin, code: str, detail: str, now: datetime
) -> Origin:
    is_served = record.round is not None and origin.name in record.round.origins
    failed = End(
        now,
        clean=False,
        counts=record.counts_of(origin),
        round_id=record.round.id if record.round is not None and is_served else None,
        code=code,
        detail=detail,
        failed_at_step=record.step,
    )
    return replace(origin, end=failed)


def with_key_wait(
    record: ProjectRecord, problem: CodedError | None, now: datetime, max_wait: timedelta
) -> ProjectRecord:
    """Note whether the customer key gives its secret, and fail what has waited for too long.

    A part of a sweep of all fails within minutes, and everything else after `max_wait`. The round
    ends if it serves nothing any more.
    """
    if problem is None:
        return replace(record, key_wait=None)
    since = now if record.key_wait is None else min(record.key_wait.since, now)
    code: Any = problem.code
    record = replace(record, key_wait=KeyWait(code, problem.detail, since))

    def end(origin: Origin) -> Origin:
        limit = PART_KEY_WAIT if origin.kind == "part" else max_wait
        if not origin.is_open or now - max(since, origin.added_at) <= limit:
            return origin
        return _given_up(record, origin, code, problem.detail, now)

    after = _map_origins(record, end)
    left = {each.name for each in open_origins(after)}
    if after.round is not None and left.isdisjoint(after.round.origins):
        after = replace(after, round=None)
    # A request that is repeated waits anew.
    return after if left else replace(after, key_wait=None)


def reopen_failed(record: _RecordT) -> _RecordT:
    """Reopen the origins whose step gave up, for a replay of its message."""

    def reopen(origin: Origin) -> Origin:
        at_step = None if origin.end is None else origin.end.failed_at_step
        return _taken_up(origin) if at_step == record.step else origin

    return _map_origins(record, reopen)


def with_ends_published(record: _RecordT, names: Sequence[OriginName]) -> _RecordT:
    """Mark the ends of these origins as published. Parts are removed."""
    origins = tuple(
        replace(each, digests=each.digests[:1], end=replace(each.end, published=True))
        if each.end is not None and each.name in names
        else each
        for each in record.origins
        if not (each.kind == "part" and each.name in names and not each.is_open)
    )
    return replace(record, origins=origins)


def without_old_ends(record: _RecordT, now: datetime, keep_for: timedelta) -> _RecordT:
    """Remove ends that no repeated request can need.

    For each publisher a bounded number is kept, for the time that a request may be repeated. All
    rotations without a later clean end stay, as long as their keyring names them, and the newest
    one always stays: otherwise they would be mistaken for lost ones, and swept again.
    """
    newest = next((each.name for each in reversed(record.origins) if each.kind == "rotation"), None)
    kept, ends, is_cleared = list[Origin](), Counter[str](), False
    for origin in reversed(record.origins):
        end = origin.end
        is_cleared |= end is not None and end.clean
        is_in_keyring = origin.kind == "rotation" and (not is_cleared or origin.name == newest)
        if origin.is_answered and end is not None and not is_in_keyring:
            ends[origin.publisher] += 1
            if now - end.at > keep_for or ends[origin.publisher] > _MAX_ENDS:
                continue
        kept.append(origin)
    return replace(record, origins=tuple(reversed(kept)))


def _map_origins(record: _RecordT, change: Callable[[Origin], Origin]) -> _RecordT:
    return replace(record, origins=tuple(map(change, record.origins)))


# Rounds, leases and the date of the state.


def begin_round(record: ProjectRecord, round_id: str) -> ProjectRecord:
    """Begin a new round: every page must be proven again.

    Objects that were written stay counted. A page of an earlier round no longer proves anything.
    But a write that was held for a front end whose clock lags may still arrive.
    """
    chosen = choose_origins(record)
    if not chosen:
        return replace(record, round=None)
    ranges = (KeyRange(),) if record.round is None else record.round.ranges
    # The ranges adjoin: each begins at the end of the previous one.
    starts = ("", *(key_range.end for key_range in ranges[:-1]))
    restarted = tuple(
        KeyRange(through=start, end=key_range.end)
        for start, key_range in zip(starts, ranges, strict=True)
    )
    names = tuple(each.name for each in chosen)
    begun = Round(round_id, chosen[0].options, names, restarted)
    if record.round is not None:
        begun = replace(
            begun,
            first_rewrap_at=record.round.first_rewrap_at,
        )
    return replace(record, round=begun)


def with_state(
    record: ProjectRecord, state: State, changed_at: datetime, *, dated: bool
) -> ProjectRecord:
    """Change the desired state of a project's record. Its round must begin again.

    `changed_at` is when `state` was first read, by the storage's clock; `dated` if that read proves
    (`KeyringSnapshot.proves`).
    """
    return replace(record, state=state, changed_at=changed_at, is_dated=dated)


def with_lease(
    record: ProjectRecord, own_s: int, keyring_s: int | None, now: datetime
) -> tuple[ProjectRecord, bool]:
    """Continue a record by a worker with this lease (SPEC 8.4, "One lease").

    The record decides. A longer lease, of this worker or of one that wrote the keyring, is
    written into it and starts a new round: that worker's writes may arrive later than the proofs
    so far allowed for. A worker with a shorter lease leaves a running round to workers with the
    record's lease. If none of those made a step for a long time, it continues by the record's
    lease, which proves no less. Otherwise a round would never end after every lease was
    shortened. While no round runs, the lease drops to the current one as soon as no write
    under the longer one can still be in progress.

    `own_s` is this worker's `LEASE_S`; `keyring_s` is the longest lease of the workers that wrote
    the keyring, if recorded; `now` is by the storage's clock.

    Returns:
        The record, and True if its round must begin again.

    Raises:
        LeaseMismatchError: other workers continue this round.
    """
    longest = max(own_s, keyring_s or 0)
    begins_again = False
    if record.round is None:
        lease_s = longest if now > record.proof_after else max(longest, record.lease_s)
        record = replace(record, lease_s=lease_s)
    elif longest > record.lease_s:
        record, begins_again = replace(record, lease_s=longest), True
    elif own_s < record.lease_s and record.stepped_lease_s > own_s:
        since = record.changed_at if record.stepped_at is None else record.stepped_at
        if now - since <= timedelta(seconds=_ABANDONED_AFTER_S):
            raise LeaseMismatchError(
                f"the record's lease is {record.lease_s} s, and LEASE_S here {own_s}"
            )
    return replace(record, stepped_lease_s=own_s), begins_again


def reconcile_clock(
    record: ProjectRecord, now: datetime, *, proves: bool
) -> tuple[ProjectRecord, bool]:
    """Check the record's moments against `now`, the `Date` of the step's own read (SPEC 8.4).

    `changed_at` must be no earlier than the change of state, and no later than anything that
    follows it. Every step dates it anew until a step by a worker that has known the storage's
    clock for two leases (`proves`). Pages are processed meanwhile, and none of them proves
    anything. A step that finds the date later than its own read starts a new round.

    Returns:
        The record, and True if its round must begin again.

    Raises:
        StorageUnavailableError: the record is dated later, and it is unknown which of the two
            dates is wrong.
    """
    latest = max(filter(None, (record.changed_at, record.stepped_at)))
    if now < latest and not proves:
        raise StorageUnavailableError("the record is newer than this read")
    begins_again = record.changed_at > now
    if begins_again:
        record = replace(record, changed_at=now, is_dated=proves)
    elif not record.is_dated:
        # The worker that dated it may have met a slow front end, and dated it too early.
        record = _date_state_change(record, now, proves=proves)
    parts_notified_at = record.parts_notified_at
    if parts_notified_at is not None and parts_notified_at > now:
        parts_notified_at = None
    record = replace(record, parts_notified_at=parts_notified_at)
    lease_s = record.lease_s
    record = _map_pages(record, lambda page: _drop_implausible_times(page, now, lease_s))
    return record, begins_again


def _date_state_change(record: ProjectRecord, now: datetime, *, proves: bool) -> ProjectRecord:
    """Date the change of state anew. Pages that wait for a proof wait for the later date."""
    record = replace(record, changed_at=now, is_dated=proves)
    proof_after = record.proof_after

    def wait(page: OpenPage) -> OpenPage:
        if page.not_before is None:
            return page
        return replace(page, not_before=max(page.not_before, proof_after))

    return _map_pages(record, wait)


def _map_pages(record: ProjectRecord, change: Callable[[OpenPage], OpenPage]) -> ProjectRecord:
    if record.round is None:
        return record
    pages = tuple(map(change, record.round.open_pages))
    return replace(record, round=replace(record.round, open_pages=pages))


def _drop_implausible_times(page: OpenPage, now: datetime, lease_s: int) -> OpenPage:
    """Drop moments that only a wrong `Date` can explain: the page would wait for them."""
    latest = now + timedelta(seconds=_MAX_AHEAD_S)
    sent_at = page.sent_at
    if sent_at is not None and sent_at > latest:
        sent_at = None
    latest += timedelta(seconds=2 * lease_s + MAX_PAUSE_S + RETRY_DELAYS_S[-1])
    not_before = page.not_before
    if not_before is not None and not_before > latest:
        not_before = None
    return replace(page, sent_at=sent_at, not_before=not_before)


def with_contradictions(
    record: ProjectRecord, results: Iterable[Result], *, own: bool = False
) -> ProjectRecord:
    """Record after a step that a worker saw the storage's clocks contradict each other.

    `results` are those of all pages that the step found, proofs or not; `own` is the observation
    of the step's own worker.
    """
    seen = own or any(each.clock_contradicted for each in results)
    return replace(record, clock_contradicted=record.clock_contradicted or seen)


def with_pages_unsent(record: ProjectRecord) -> ProjectRecord:
    """Mark all pages to be sent again. Processing a page twice does no harm."""
    return _map_pages(record, lambda page: replace(page, sent_at=None))


# The end of a round.


def end_round(
    record: ProjectRecord, names: Collection[OriginName], end: End, written: Counts
) -> ProjectRecord:
    """End a round, and the origins that it served (`names`).

    `end` has the state that was proven; `written` are all writes that the record had counted by
    then.
    """
    of = record.round
    if of is not None:
        end = replace(
            end,
            first_rewrap_at=of.first_rewrap_at,
            all_rewrapped_at=of.all_rewrapped_at,
            proof_possible_at=record.proof_after,
        )

    def with_end(origin: Origin) -> Origin:
        if not origin.is_open or origin.name not in names:
            return origin
        own = end.counts.with_writes(written.writes(origin.written_before))
        return replace(origin, end=replace(end, counts=own))

    record = replace(record, round=None, clean_end=None, clock_contradicted=False)
    return _map_origins(record, with_end)


# Sweeps of all projects.


def begin_walk(record: AllRecord, walk_id: str) -> AllRecord:
    """Begin a walk through all projects for the oldest open origins."""
    chosen = choose_origins(record)
    names = tuple(each.name for each in chosen)
    return replace(record, round=Walk(walk_id, chosen[0].options, names))


def end_walk(record: AllRecord, walk: Walk, end: End) -> AllRecord:
    """End a walk, and each origin that it served."""

    def with_end(origin: Origin) -> Origin:
        is_served = origin.is_open and origin.name in walk.origins
        return replace(origin, end=end) if is_served else origin

    return replace(_map_origins(record, with_end), round=None)
