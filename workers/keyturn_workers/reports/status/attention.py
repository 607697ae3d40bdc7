"""Problems that need a person: pure rules over the rows of the other views (SPEC 16.1).

Each rule is a function of the facts and gives a few items at most: many rows of one kind become one
item with their number and a link to the table. A rule whose source could not be read finds nothing;
another rule reports the unread source.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from keyturn.identifiers import ALL_PROJECTS, format_time, parse_time
from keyturn.messages.status import (
    AttentionLink,
    AttentionStatus,
    CodeCount,
    CustomerKeyStatus,
    MasterKeyStatus,
    ProjectStatus,
    QueueStatus,
    SweepStatus,
    WorkerStatus,
)
from keyturn.topology import (
    CONTROL_QUEUE,
    NOTIFICATIONS,
    PLAN_QUEUE,
    SWEEP_QUEUE,
    UNSIGNED_DEAD_QUEUE,
    UPLOAD_QUEUE,
)
from keyturn_workers.process.code_help import CODES, CodeHelp, code_help
from keyturn_workers.process.message_copies import CODES_WITHOUT_BODY
from keyturn_workers.reports.status.query import is_key_old, needs_sweep

LISTED: Final = 5
"""Names that one item lists."""
OLDEST_S: Final = 300.0
GROWTH_OVER: Final = timedelta(minutes=2)
ROLLOUT: Final = timedelta(minutes=15)
"""How long workers may differ while they are replaced one after the other."""
CLOCK_UNKNOWN_AFTER: Final = timedelta(minutes=5)
ROTATION_SLOW_AFTER: Final = timedelta(hours=1)
STUCK_AFTER: Final = timedelta(minutes=15)
KEPT_AFTER: Final = timedelta(days=1)
ROLE_QUEUES: Final = {
    UPLOAD_QUEUE: "upload",
    CONTROL_QUEUE: "control",
    SWEEP_QUEUE: "sweep",
    PLAN_QUEUE: "sweep",
    NOTIFICATIONS: "ingest",
}
_OTHER: Final = "other codes"
_OTHER_HELP: Final = CodeHelp("no code, or one that this version does not know", "")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SEVERITIES: Final = ("act", "soon", "info")

Severity = Literal["act", "soon", "info"]


@dataclass(frozen=True, slots=True)
class Facts:
    """The input of the rules.

    `projects` and `sweeps` are as of `indexed_at`, `queues` as of `queues_at`, and `dead_codes`,
    dead letters by queue and code, as of `dead_at`. `depths` returns the depths of a queue that
    were seen lately, by time. `unsigned_depth` counts messages that no known publisher signed; None
    if unknown. `audit_findings` has the problems of the audit trail by offset. `unread` has the
    reason for each source that could not be read. If `is_complete`, no keyring or sweep is missing.
    """

    now: datetime = _EPOCH
    indexed_at: str | None = None
    projects: Sequence[ProjectStatus] = ()
    sweeps: Sequence[SweepStatus] = ()
    queues_at: str | None = None
    queues: Sequence[QueueStatus] = ()
    depths: Callable[[str], Sequence[tuple[datetime, int]]] = lambda _: ()
    unsigned_depth: int | None = None
    workers: Sequence[WorkerStatus] = ()
    master_keys: Sequence[MasterKeyStatus] = ()
    dead_at: str | None = None
    dead_codes: Sequence[CodeCount] = ()
    audit_findings: Mapping[int, Sequence[str]] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    is_complete: bool = True

    @property
    def time(self) -> str:
        """The time in the format of messages."""
        return format_time(self.now)


Rule = Callable[[Facts], Iterable[AttentionStatus]]


def find_attention(facts: Facts) -> tuple[AttentionStatus, ...]:
    """Return the items of all rules, the most urgent first."""
    items = [item for rule in RULES for item in rule(facts)]
    return tuple(sorted(items, key=lambda item: _SEVERITIES.index(item.severity)))


# Words.


def listed(names: Iterable[str]) -> str:
    """Return some names, and how many more there are."""
    known = [*names]
    more = len(known) - LISTED
    text = ", ".join(known[:LISTED])
    return f"{text} and {more} more" if more > 0 else text


def ago(moment: timedelta) -> str:
    """Return a length of time in words."""
    seconds = int(moment.total_seconds())
    for unit_s, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit_s:
            return f"{seconds // unit_s} {name}"
    return f"{max(0, seconds)} seconds"


def count_of(number: int, noun: str) -> str:
    """Return the number with its noun."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}.".replace("..", ".") if text else ""


def _item(
    rule: str,
    severity: Severity,
    title: str,
    detail: str,
    link: AttentionLink,
    remedy: str,
    **more: Any,
) -> AttentionStatus:
    return AttentionStatus(
        rule=rule,
        severity=severity,
        title=title,
        detail=detail,
        link=link,
        remedy=remedy,
        **more,
    )


_QUEUES: Final = AttentionLink(page="queues")


def _project_link(rows: Sequence[ProjectStatus], state: str) -> AttentionLink:
    """Return the page of one project, or the table of several."""
    if len(rows) == 1:
        return AttentionLink(page="project", project=rows[0].project)
    return AttentionLink(page="projects", filter={"state": state})


# Unread sources.


def sources_unread(facts: Facts) -> Iterable[AttentionStatus]:
    """A control worker cannot read a source of the other rules."""
    for source, problem in facts.unread.items():
        yield _item(
            "sources_unread",
            "soon",
            f"Control workers cannot read {source}",
            _sentence(problem),
            _QUEUES,
            "Check the storage and the broker, and the log of the control workers.",
            as_of=facts.time,
        )


def index_cut(facts: Facts) -> Iterable[AttentionStatus]:
    """There are more keyrings or sweeps than the index holds, or it is still being read."""
    if not facts.is_complete:
        yield _item(
            "index_cut",
            "info",
            "Only some of the projects and sweeps are known",
            "Control workers are still reading them, or there are too many.",
            AttentionLink(page="projects"),
            "Wait. If this persists, use the command line.",
            as_of=facts.indexed_at,
        )


def unsigned_messages(facts: Facts) -> Iterable[AttentionStatus]:
    """Requests that no known publisher signed."""
    if facts.unsigned_depth:
        yield _item(
            "unsigned_messages",
            "soon",
            f"{count_of(facts.unsigned_depth, 'request')} that no known publisher signed",
            "They are in a queue of their own, separate from signed dead letters.",
            AttentionLink(page="dead_letters", filter={"queue": UNSIGNED_DEAD_QUEUE}),
            "Check the publishers' keys and KEYTURN_PUBLISHERS; discard unknown requests.",
            as_of=facts.queues_at,
        )


def audit_gap(facts: Facts) -> Iterable[AttentionStatus]:
    """The audit trail has a gap, or a forged record."""
    if facts.audit_findings:
        newest = facts.audit_findings[max(facts.audit_findings)]
        yield _item(
            "audit_gap",
            "act",
            f"The audit trail has {count_of(len(facts.audit_findings), 'problem')}",
            "; ".join(newest),
            AttentionLink(page="audit"),
            "Export it and keep the file, then find out who can write to keyturn.audit.",
            command="keyturn audit export audit.jsonl",
            as_of=facts.time,
        )


# Queues, workers, dead letters.


def queue_unserved(facts: Facts) -> Iterable[AttentionStatus]:
    """Requests wait, and no worker consumes them."""
    for row in facts.queues:
        if not row.depth or row.consumers:
            continue
        yield _item(
            "queue_unserved",
            "act",
            f"Nothing consumes {row.queue}",
            f"{count_of(row.depth, 'message')} {'waits' if row.depth == 1 else 'wait'}.",
            _QUEUES,
            "Start a worker with this role.",
            command=f"keyturn worker {ROLE_QUEUES.get(row.queue, 'control')}",
            as_of=facts.queues_at,
        )


def backlog_grows(facts: Facts) -> Iterable[AttentionStatus]:
    """Requests wait long, and more come than are served."""
    for row in facts.queues:
        if row.oldest_s is None or row.oldest_s <= OLDEST_S or not _grows(facts, row):
            continue
        yield _item(
            "backlog_grows",
            "soon",
            f"{row.queue} is growing",
            f"{count_of(row.depth or 0, 'message')}; the oldest has waited "
            f"{ago(timedelta(seconds=row.oldest_s))}.",
            _QUEUES,
            "Start more workers with this role, or find out why they are slow.",
            as_of=facts.queues_at,
        )


def _grows(facts: Facts, row: QueueStatus) -> bool:
    known = facts.depths(row.queue)
    if not known or row.depth is None:
        return False
    at, _ = known[-1]
    before = [depth for moment, depth in known if at - moment >= GROWTH_OVER]
    return bool(before) and row.depth > before[-1]


def _is_present(row: WorkerStatus) -> bool:
    return not (row.is_missing or row.is_stopping)


def workers_missing(facts: Facts) -> Iterable[AttentionStatus]:
    """Worker processes that stopped reporting without saying so."""
    missing = [row for row in facts.workers if row.is_missing]
    if not missing:
        return
    present = {role for row in facts.workers if _is_present(row) for role in row.roles}
    lost = sorted({role for row in missing for role in row.roles} - present)
    alone = f" No {' or '.join(lost)} worker is left." if lost else ""
    yield _item(
        "workers_missing",
        "act" if lost else "soon",
        f"{count_of(len(missing), 'worker')} missing",
        f"No report for three intervals: {listed(_run(row) for row in missing)}.{alone}",
        _QUEUES,
        "Look at the process and its log. This item goes away 15 minutes after its last report.",
        as_of=max(row.as_of for row in missing),
    )


def _run(row: WorkerStatus) -> str:
    # A host may run several of a role: the start tells them apart.
    started = parse_time(row.started_at)
    return f"{row.host} ({', '.join(row.roles)}, started {started:%Y-%m-%d %H:%M:%S})"


def workers_differ(facts: Facts) -> Iterable[AttentionStatus]:
    """Workers that run with different versions, leases or keys."""
    present = [row for row in facts.workers if _is_present(row)]
    for what, value_of, remedy in _EQUAL:
        groups: defaultdict[str, list[WorkerStatus]] = defaultdict(list)
        for row in present:
            groups[value_of(row)].append(row)
        if len(groups) < 2:  # noqa: PLR2004 - one group does not differ
            continue
        newest = max(parse_time(row.started_at) for row in present)
        parts = (
            f"{value}: {listed(sorted({row.host for row in rows}))}"
            for value, rows in sorted(groups.items())
        )
        yield _item(
            "workers_differ",
            "info" if facts.now - newest < ROLLOUT else "soon",
            f"Workers differ in {what}",
            "; ".join(parts) + ".",
            _QUEUES,
            remedy,
            as_of=max(row.as_of for row in present),
        )


_Equal = tuple[str, Callable[[WorkerStatus], str], str]
_EQUAL: Final[Sequence[_Equal]] = (
    ("version", lambda row: row.version, "Finish the upgrade."),
    (
        "lease",
        lambda row: f"{row.lease_s} s",
        "Set the same KEYTURN_LEASE_S everywhere: proofs wait for the longest one.",
    ),
    (
        "event keys",
        lambda row: ", ".join(row.event_keys),
        "Give all workers the same KEYTURN_EVENT_KEY, and readers its public half.",
    ),
    (
        "active master key",
        lambda row: row.active_master_key,
        "Set the same KEYTURN_ACTIVE_MASTER_KEY everywhere.",
    ),
    (
        "master keys",
        lambda row: ", ".join(sorted(row.master_keys)),
        "Give all workers the same KEYTURN_MASTER_KEYS: one that lacks a key defers projects.",
    ),
)


def clock_unknown(facts: Facts) -> Iterable[AttentionStatus]:
    """Workers that do not know the storage's clock cannot prove anything."""
    rows = [
        row
        for row in facts.workers
        if _is_present(row)
        and row.clock_unknown_since is not None
        and parse_time(row.as_of) - parse_time(row.clock_unknown_since) >= CLOCK_UNKNOWN_AFTER
    ]
    if rows:
        yield _item(
            "clock_unknown",
            "soon",
            f"{count_of(len(rows), 'worker')} without the storage's clock",
            f"{listed(row.host for row in rows)}: sweeps cannot end there.",
            _QUEUES,
            "Check that the storage responds to these workers, and that its Date header is right.",
            as_of=max(row.as_of for row in rows),
        )


def dead_letters(facts: Facts) -> Iterable[AttentionStatus]:
    """Dead letters, by code; those that are not signed have a rule of their own."""
    numbers: Counter[str] = Counter()
    queues: defaultdict[str, set[str]] = defaultdict(set)
    for count in facts.dead_codes:
        if count.queue != UNSIGNED_DEAD_QUEUE and count.count:
            # Headers are not signed: invented codes must not fill the page.
            code = count.code if count.code in CODES else _OTHER
            numbers[code] += count.count
            queues[code].add(count.queue or "")
    for code, number in sorted(numbers.items(), key=lambda each: (-each[1], each[0])):
        found = _OTHER_HELP if code == _OTHER else code_help(code)
        filters = {} if code == _OTHER else {"code": code}
        if len(queues[code]) == 1:
            filters["queue"] = next(iter(queues[code]))
        letters = "the letter" if number == 1 else "them"
        then = f"{'discard' if code in CODES_WITHOUT_BODY else 'replay or discard'} {letters}"
        remedy = _sentence(found.remedy)
        yield _item(
            "dead_letters",
            "soon",
            f"{count_of(number, 'dead letter')}: {code}",
            _sentence(found.meaning),
            AttentionLink(page="dead_letters", filter=filters or None),
            f"{remedy} Then {then}." if remedy else f"{then.capitalize()}.",
            as_of=facts.dead_at,
        )


# Keyrings, sweeps, keys.


def keyrings_broken(facts: Facts) -> Iterable[AttentionStatus]:
    """Keyrings that cannot be read."""
    groups: defaultdict[str, list[ProjectStatus]] = defaultdict(list)
    for row in facts.projects:
        if row.code is not None:
            groups[row.code].append(row)
    for code, rows in sorted(groups.items()):
        found = code_help(code)
        yield _item(
            "keyrings_broken",
            "act",
            f"{count_of(len(rows), 'keyring')}: {code}",
            f"{listed(row.project for row in rows)}: {found.meaning}.",
            _project_link(rows, "attention"),
            _sentence(found.remedy) or "Look at the detail.",
            as_of=facts.indexed_at,
        )


_CONTRADICTED: Final = {
    "rolled_back": (
        "rolled back",
        "older than the mark on the broker. No worker or gateway uses it",
        "Find out who did it, and restore the newest record. Only if you restored a backup:",
        "keyturn recover {project} --accept-restored REASON",
    ),
    "removed": (
        "removed",
        "gone, and a mark on the broker shows that it existed",
        "Find out who removed it, and restore the newest record. If there is none:",
        "keyturn enroll {project} --adopt",
    ),
    "unknown": (
        "without a mark",
        "not vouched for by a mark on the broker. No worker or gateway uses it",
        "Find out who put it there. Only if the broker was lost, or you restored a backup:",
        "keyturn recover {project} --accept-restored REASON",
    ),
}


def keyrings_contradicted(facts: Facts) -> Iterable[AttentionStatus]:
    """Keyrings that their marks contradict: rolled back, removed, or without a mark."""
    for mark, (word, detail, remedy, command) in _CONTRADICTED.items():
        rows = [row for row in facts.projects if row.mark == mark]
        if rows:
            names = listed(row.project for row in rows)
            yield _item(
                "keyrings_contradicted",
                "act",
                f"{count_of(len(rows), 'keyring')} {word}",
                f"{names}: {'the keyring is' if len(rows) == 1 else 'the keyrings are'} {detail}.",
                _project_link(rows, "attention"),
                remedy,
                command=command.format(project=rows[0].project if len(rows) == 1 else "PROJECT"),
                as_of=facts.indexed_at,
            )


_NOT_CLEAN_REMEDY: Final = (
    "Look at the failures, repair or restore those objects, then sweep again."
)


def sweeps_not_clean(facts: Facts) -> Iterable[AttentionStatus]:
    """Projects whose newest sweep failed or did not end clean; and the newest sweep of all."""
    rows = [row for row in facts.projects if needs_sweep(row)]
    if len(rows) > LISTED:
        yield _item(
            "sweeps_not_clean",
            "act",
            f"{count_of(len(rows), 'project')} whose newest sweep is not clean",
            f"{listed(row.project for row in rows)}: objects may still open under an earlier key.",
            AttentionLink(page="projects", filter={"state": "attention"}),
            _NOT_CLEAN_REMEDY,
            as_of=facts.indexed_at,
        )
    else:
        for row in rows:
            if row.last_end_sweep is not None:
                yield _not_clean(facts, row.project, row.project, row.last_end_sweep)
    ended = [row for row in facts.sweeps if row.project == ALL_PROJECTS and row.ended_at]
    newest = max(ended, key=lambda row: row.ended_at or "", default=None)
    if newest is not None and not newest.clean:
        yield _not_clean(facts, "all projects", newest.project, newest.sweep_id)


def _not_clean(facts: Facts, name: str, project: str, sweep_id: str) -> AttentionStatus:
    return _item(
        "sweeps_not_clean",
        "act",
        f"The newest sweep of {name} is not clean",
        "It failed, or some objects could not be brought to the desired state: they may still "
        "open under an earlier key.",
        AttentionLink(page="sweep", project=project, sweep_id=sweep_id),
        _NOT_CLEAN_REMEDY,
        as_of=facts.indexed_at,
    )


def customer_keys_missing(facts: Facts) -> Iterable[AttentionStatus]:
    """Projects whose sweep or rotation waits for the customer key."""
    groups: defaultdict[str, list[tuple[ProjectStatus, CustomerKeyStatus]]] = defaultdict(list)
    for row in facts.projects:
        if row.customer_key is not None and row.customer_key.code is not None:
            groups[row.customer_key.code].append((row, row.customer_key))
    for code, waiting in sorted(groups.items()):
        found = code_help(code)
        since = min(key.since or facts.time for _, key in waiting)
        names = listed(f"{row.project} (store {key.store})" for row, key in waiting)
        waits = "waits for its customer key" if len(waiting) == 1 else "wait for their customer key"
        yield _item(
            "customer_keys_missing",
            "act",
            f"{count_of(len(waiting), 'project')} {waits}: {code}",
            f"{names}: {found.meaning}. The first has waited for "
            f"{ago(facts.now - parse_time(since))}.",
            _project_link([row for row, _ in waiting], "waits_for_key"),
            _sentence(found.remedy),
            as_of=facts.indexed_at,
        )


def rotations_and_sweeps_stuck(facts: Facts) -> Iterable[AttentionStatus]:
    """Sweeps and rotations that make no progress, and rotations that take long."""
    stuck, slow = list[SweepStatus](), list[SweepStatus]()
    for row in facts.sweeps:
        if row.status != "running" or row.started_at is None:
            continue
        if row.progress is not None and row.progress.waits_for_key is not None:
            continue  # `customer_keys_missing` names its project
        started = parse_time(row.started_at)
        moved = started if row.stepped_at is None else max(started, parse_time(row.stepped_at))
        # A sweep that waits for the next round makes no progress before the running one ends.
        if facts.now - moved >= STUCK_AFTER and not row.waits_for_round:
            stuck.append(row)
        elif row.kind == "rotation" and facts.now - started >= ROTATION_SLOW_AFTER:
            slow.append(row)
    yield from _of_sweeps(
        facts,
        stuck,
        "sweeps_stuck",
        "act",
        "without progress for 15 minutes",
        "Check that sweep and control workers run and can read the storage; look for its step "
        "among the dead letters.",
    )
    yield from _of_sweeps(
        facts,
        slow,
        "rotations_slow",
        "soon",
        "not ended after an hour",
        "Until it ends, the earlier key still opens objects. Start more sweep workers if needed.",
    )


def _of_sweeps(
    facts: Facts,
    rows: Sequence[SweepStatus],
    rule: str,
    severity: Severity,
    what: str,
    remedy: str,
) -> Iterable[AttentionStatus]:
    if not rows:
        return
    whole = [row for row in rows if not row.part_of_all] or [*rows]
    first, number = whole[0], len(whole)
    kinds = {row.kind for row in whole}
    noun = first.kind if first.kind is not None and len(kinds) == 1 else "sweep"
    link = AttentionLink(page="sweep", project=first.project, sweep_id=first.sweep_id)
    yield _item(
        rule,
        severity,
        f"{count_of(number, noun)} {what}",
        listed("all projects" if row.project == ALL_PROJECTS else row.project for row in whole)
        + ".",
        link if number == 1 else AttentionLink(page="sweeps", filter={"state": "running"}),
        remedy,
        as_of=facts.indexed_at,
    )


def earlier_keys_kept(facts: Facts) -> Iterable[AttentionStatus]:
    """Projects whose keyring still holds earlier user KEKs long after their rotation."""
    rows = [
        row
        for row in facts.projects
        if row.earlier_keks
        and not row.running_sweeps
        and row.rotated_at is not None
        and facts.now - parse_time(row.rotated_at) >= KEPT_AFTER
    ]
    if rows:
        yield _item(
            "earlier_keys_kept",
            "soon",
            f"{count_of(len(rows), 'project')} with an earlier key not yet retired",
            f"{listed(row.project for row in rows)}: since the rotation, no sweep has proven that "
            "nothing needs it.",
            _project_link(rows, "earlier_keks"),
            "Sweep the project; a clean end retires the earlier keys.",
            as_of=facts.indexed_at,
        )


def keys_old(facts: Facts) -> Iterable[AttentionStatus]:
    """API keys that were not rotated for a year."""
    old = [
        parse_time(row.key_since)
        for row in facts.projects
        if row.key_since is not None and is_key_old(row, facts.now)
    ]
    if old:
        yield _item(
            "keys_old",
            "info",
            f"{count_of(len(old), 'project')} with an API key older than a year",
            f"The oldest is {ago(facts.now - min(old))} old.",
            AttentionLink(page="projects", filter={"state": "old_key", "order": "key_since"}),
            "Rotate them if your policy asks for it.",
            as_of=facts.indexed_at,
        )


def master_keys_unusable(facts: Facts) -> Iterable[AttentionStatus]:
    """Master keys that cannot be used. A missing one shows at the keyrings under it."""
    for row in facts.master_keys:
        if row.code is not None:
            found = code_help(row.code)
            yield _item(
                "master_keys_unusable",
                "act",
                f"Master key {row.master_key} cannot be used: {row.code}",
                _sentence(found.meaning),
                AttentionLink(page="master_keys"),
                _sentence(found.remedy),
                as_of=facts.time,
            )


RULES: Final[tuple[Rule, ...]] = (
    sources_unread,
    unsigned_messages,
    audit_gap,
    queue_unserved,
    backlog_grows,
    workers_missing,
    workers_differ,
    clock_unknown,
    dead_letters,
    keyrings_broken,
    keyrings_contradicted,
    sweeps_not_clean,
    customer_keys_missing,
    rotations_and_sweeps_stuck,
    earlier_keys_kept,
    keys_old,
    master_keys_unusable,
    index_cut,
)
