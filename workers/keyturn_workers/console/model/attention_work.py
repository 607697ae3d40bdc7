"""What needs a person: queues, worker processes, dead letters (SPEC 6.9, 8.4, 12, 16.2). Pure."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Final
from urllib.parse import urlencode

from keyturn.errors import AlreadyExistsError, BodyTooLargeError, DeletedKeyError
from keyturn_workers.console.codes import CODES, code_help
from keyturn_workers.console.model.attention_facts import Facts, Rule, ago, count_of, listed
from keyturn_workers.console.model.rows import AttentionItem, QueueRow, WorkerRow
from keyturn_workers.console.model.workers import ROLE_QUEUES

OLDEST_S: Final = 300.0
GROWTH_OVER: Final = timedelta(minutes=2)
ROLLOUT: Final = timedelta(minutes=15)
"""How long workers may differ while they are replaced one after the other."""
CLOCK_UNKNOWN_AFTER: Final = timedelta(minutes=5)
UNSIGNED: Final = "bad_signature"
_OTHER: Final = "other codes"
# Of letters with these codes the body is not kept, so they cannot be replayed (SPEC 6.9).
CODES_WITHOUT_BODY: Final = frozenset(
    error.code for error in (AlreadyExistsError, DeletedKeyError, BodyTooLargeError)
)


def queue_unserved(facts: Facts) -> Iterable[AttentionItem]:
    """Requests wait, and no worker consumes them."""
    for row in facts.queues:
        if not row.depth or row.consumers:
            continue
        role = ROLE_QUEUES.get(row.queue, "control")
        yield AttentionItem(
            "queue_unserved",
            "act",
            f"Nothing consumes {row.queue}",
            f"{count_of(row.depth, 'message')} {'waits' if row.depth == 1 else 'wait'}.",
            "/queues",
            "Start a worker with this role.",
            f"keyturn worker {role}",
            as_of=row.as_of,
        )


def backlog_grows(facts: Facts) -> Iterable[AttentionItem]:
    """Requests wait long, and more come than are served."""
    for row in facts.queues:
        if row.oldest_s is None or row.oldest_s <= OLDEST_S or not _grows(facts, row):
            continue
        yield AttentionItem(
            "backlog_grows",
            "soon",
            f"{row.queue} is growing",
            f"{count_of(row.depth or 0, 'message')}; the oldest has waited "
            f"{ago(timedelta(seconds=row.oldest_s))}.",
            "/queues",
            "Start more workers with this role, or find out why they are slow.",
            as_of=row.as_of,
        )


def _grows(facts: Facts, row: QueueRow) -> bool:
    known = facts.depths(row.queue)
    if not known or row.depth is None:
        return False
    at, _ = known[-1]
    before = [depth for moment, depth in known if at - moment >= GROWTH_OVER]
    return bool(before) and row.depth > before[-1]


def workers_missing(facts: Facts) -> Iterable[AttentionItem]:
    """Worker processes that stopped reporting without saying so."""
    missing = [row for row in facts.workers if row.is_missing]
    if not missing or not facts.is_broker_up:
        return
    present = {role for row in facts.workers if row.is_present for role in row.roles}
    lost = sorted({role for row in missing for role in row.roles} - present)
    names = listed(_run(row) for row in missing)
    alone = f" No {' or '.join(lost)} worker is left." if lost else ""
    yield AttentionItem(
        "workers_missing",
        "act" if lost else "soon",
        f"{count_of(len(missing), 'worker')} missing",
        f"No report for three intervals: {names}.{alone}",
        "/queues",
        "Look at the process and its log. This item goes away 15 minutes after its last report.",
        as_of=max(row.as_of for row in missing),
    )


def _run(row: WorkerRow) -> str:
    # A host may run several of a role: the start tells them apart.
    return f"{row.host} ({', '.join(row.roles)}, started {row.started_at:%Y-%m-%d %H:%M:%S})"


def workers_differ(facts: Facts) -> Iterable[AttentionItem]:
    """Workers that run with different versions, leases or keys."""
    present = [row for row in facts.workers if row.is_present]
    for what, value_of, remedy in _EQUAL:
        groups: defaultdict[str, list[WorkerRow]] = defaultdict(list)
        for row in present:
            groups[value_of(row)].append(row)
        if len(groups) < 2:  # noqa: PLR2004 - one group does not differ
            continue
        is_rollout = facts.now - max(row.started_at for row in present) < ROLLOUT
        parts = (
            f"{value}: {listed(sorted({row.host for row in rows}))}"
            for value, rows in sorted(groups.items())
        )
        yield AttentionItem(
            "workers_differ",
            "info" if is_rollout else "soon",
            f"Workers differ in {what}",
            "; ".join(parts) + ".",
            "/queues",
            remedy,
            as_of=max(row.as_of for row in present),
        )


_Equal = tuple[str, Callable[[WorkerRow], str], str]
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


def clock_unknown(facts: Facts) -> Iterable[AttentionItem]:
    """Workers that do not know the storage's clock cannot prove anything."""
    rows = [
        row
        for row in facts.workers
        if row.is_present
        and row.clock_unknown_since is not None
        and row.as_of - row.clock_unknown_since >= CLOCK_UNKNOWN_AFTER
    ]
    if not rows:
        return
    yield AttentionItem(
        "clock_unknown",
        "soon",
        f"{count_of(len(rows), 'worker')} without the storage's clock",
        f"{listed(row.host for row in rows)}: sweeps cannot end there.",
        "/queues",
        "Check that the storage answers these workers, and that its Date header is right.",
        as_of=max(row.as_of for row in rows),
    )


def dead_letters(facts: Facts) -> Iterable[AttentionItem]:
    """Dead letters, by code; those that are not signed have a rule of their own."""
    if facts.dead is None:
        return
    numbers: Counter[str] = Counter()
    queues: defaultdict[str, set[str]] = defaultdict(set)
    for count in facts.dead.counts:
        if count.code != UNSIGNED and count.count:
            # Headers are nobody's word: invented codes must not fill the page.
            code = count.code if count.code in CODES else _OTHER
            numbers[code] += count.count
            queues[code].add(count.queue)
    for code, number in sorted(numbers.items(), key=lambda each: (-each[1], each[0])):
        found = code_help(code)
        filters = {} if code == _OTHER else {"code": code}
        if len(queues[code]) == 1:
            filters["queue"] = next(iter(queues[code]))
        remedy = f"{found.remedy[:1].upper()}{found.remedy[1:]}".rstrip(".")
        then = "discard them" if code in CODES_WITHOUT_BODY else "replay or discard them"
        yield AttentionItem(
            "dead_letters",
            "soon",
            f"{count_of(number, 'dead letter')}: {code}",
            f"{found.meaning[:1].upper()}{found.meaning[1:]}.",
            f"/dead?{urlencode(filters)}" if filters else "/dead",
            f"{remedy}. Then {then}." if remedy else f"{then.capitalize()}.",
            as_of=facts.dead.as_of,
        )


WORK_RULES: Final[tuple[Rule, ...]] = (
    queue_unserved,
    backlog_grows,
    workers_missing,
    workers_differ,
    clock_unknown,
    dead_letters,
)
