"""What needs a person: keyrings, sweeps, rotations, keys (SPEC 5.4, 8.1, 8.6, 16.2). Pure."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from keyturn_workers.console.codes import code_help
from keyturn_workers.console.model.attention_facts import (
    LISTED,
    Facts,
    Rule,
    ago,
    count_of,
    listed,
    project_link,
    sweep_link,
)
from keyturn_workers.console.model.projects import NOT_FOUND, OLD_KEY
from keyturn_workers.console.model.rows import AttentionItem, ProjectRow, SweepRow

ROTATION_SLOW_AFTER: Final = timedelta(hours=1)
STUCK_AFTER: Final = timedelta(minutes=15)
KEPT_AFTER: Final = timedelta(days=1)


def keyrings_broken(facts: Facts) -> Iterable[AttentionItem]:
    """Keyrings that cannot be read, are rolled back, or are gone."""
    groups: defaultdict[str, list[ProjectRow]] = defaultdict(list)
    for row in facts.projects:
        if row.code is not None:
            groups[row.code].append(row)
    for code, rows in sorted(groups.items()):
        first, found = rows[0], code_help(code)
        detail = found.meaning
        remedy = found.remedy
        if code == NOT_FOUND:
            detail = "an inventory no longer lists the keyring of this project"
            remedy = "restore the keyring from a backup of the bucket; find out who removed it"
        names = listed(row.project for row in rows)
        yield AttentionItem(
            "keyrings_broken",
            "act",
            f"{count_of(len(rows), 'keyring')}: {code}",
            f"{names}: {detail}.",
            project_link(first.project) if len(rows) == 1 else "/projects?state=attention",
            f"{remedy[:1].upper()}{remedy[1:]}." if remedy else "Look at the detail.",
            as_of=max((row.as_of for row in rows if row.as_of is not None), default=None),
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


def keyrings_contradicted(facts: Facts) -> Iterable[AttentionItem]:
    """Keyrings that their marks contradict: rolled back, removed, or without a mark."""
    for mark, (word, detail, remedy, command) in _CONTRADICTED.items():
        rows = [row for row in facts.projects if row.mark == mark]
        if rows:
            names = listed(row.project for row in rows)
            yield AttentionItem(
                "keyrings_contradicted",
                "act",
                f"{count_of(len(rows), 'keyring')} {word}",
                f"{names}: {'the keyring is' if len(rows) == 1 else 'the keyrings are'} {detail}.",
                project_link(rows[0].project) if len(rows) == 1 else "/projects?state=attention",
                remedy,
                command.format(project=rows[0].project if len(rows) == 1 else "PROJECT"),
                as_of=max((row.as_of for row in rows if row.as_of is not None), default=None),
            )


def sweeps_not_clean(facts: Facts) -> Iterable[AttentionItem]:
    """Projects whose newest sweep failed or ended not clean; and the newest sweep of all."""
    rows = [row for row in facts.projects if row.is_last_end_clean is False]
    if len(rows) > LISTED:
        yield AttentionItem(
            "sweeps_not_clean",
            "act",
            f"{count_of(len(rows), 'project')} whose newest sweep is not clean",
            f"{listed(row.project for row in rows)}: objects may still open under an earlier key.",
            "/projects?state=attention",
            _NOT_CLEAN_REMEDY,
            as_of=max((row.as_of for row in rows if row.as_of is not None), default=None),
        )
    elif rows:
        for row in rows:
            if row.last_end is not None:
                yield _not_clean(
                    row.project, row.last_end.project, row.last_end.sweep_id, row.as_of
                )
    newest = facts.ended_of_all[0] if facts.ended_of_all else None
    if newest is not None and not newest.clean and not _is_due_to_projects(newest):
        yield _not_clean("all projects", newest.project, newest.sweep_id, newest.ended_at)


def _is_due_to_projects(row: SweepRow) -> bool:
    """Whether a sweep of all is not clean because of its parts: those have items of their own."""
    counts = row.counts
    return (
        row.status == "done"
        and counts is not None
        and bool(counts.failed or counts.noncurrent_stale)
    )


_NOT_CLEAN_REMEDY: Final = (
    "Look at the failures, repair or restore those objects, then sweep again."
)


def _not_clean(name: str, project: str, sweep_id: str, as_of: datetime | None) -> AttentionItem:
    return AttentionItem(
        "sweeps_not_clean",
        "act",
        f"The newest sweep of {name} is not clean",
        "It failed, or some objects could not be brought to the desired state: they may still "
        "open under an earlier key.",
        sweep_link(project, sweep_id),
        _NOT_CLEAN_REMEDY,
        as_of=as_of,
    )


def rotations_and_sweeps_stuck(facts: Facts) -> Iterable[AttentionItem]:
    """Sweeps and rotations that make no progress, and rotations that take long."""
    stuck, slow = [], []
    for row in facts.running:
        if row.status != "running" or row.started_at is None:
            continue
        moved_at = facts.moved_at(row) or row.started_at
        is_still = facts.now - max(moved_at, row.started_at) >= STUCK_AFTER
        # One that waits for the next round makes no progress before the running one ends.
        if is_still and not row.waits_for_round:
            stuck.append(row)
        elif row.kind == "rotation" and facts.now - row.started_at >= ROTATION_SLOW_AFTER:
            slow.append(row)
    yield from _of_sweeps(
        stuck,
        "sweeps_stuck",
        "act",
        "without progress for 15 minutes",
        "Check that sweep and control workers run and can read the storage; look for its step "
        "among the dead letters.",
    )
    yield from _of_sweeps(
        slow,
        "rotations_slow",
        "soon",
        "not ended after an hour",
        "Until it ends, the earlier key still opens objects. Start more sweep workers if needed.",
    )


def _of_sweeps(
    rows: Sequence[SweepRow], rule: str, severity: str, what: str, remedy: str
) -> Iterable[AttentionItem]:
    if not rows:
        return
    whole = [row for row in rows if not row.part_of_all] or [*rows]
    first, number = whole[0], len(whole)
    noun = "rotation" if all(row.kind == "rotation" for row in whole) else "sweep"
    yield AttentionItem(
        rule,
        "act" if severity == "act" else "soon",
        f"{count_of(number, noun)} {what}",
        listed("all projects" if row.project == "*" else row.project for row in whole) + ".",
        sweep_link(first.project, first.sweep_id) if number == 1 else "/sweeps?state=running",
        remedy,
        as_of=max((row.as_of for row in whole if row.as_of is not None), default=None),
    )


def earlier_keys_kept(facts: Facts) -> Iterable[AttentionItem]:
    """Projects whose keyring still holds earlier user KEKs long after their rotation."""
    rows = [
        row
        for row in facts.projects
        if row.earlier_keks
        and not row.running_sweeps
        and row.rotated_at is not None
        and facts.now - row.rotated_at >= KEPT_AFTER
    ]
    if not rows:
        return
    yield AttentionItem(
        "earlier_keys_kept",
        "soon",
        f"{count_of(len(rows), 'project')} with an earlier key not yet retired",
        f"{listed(row.project for row in rows)}: no sweep has proven since the rotation that "
        "nothing needs it.",
        project_link(rows[0].project) if len(rows) == 1 else "/projects?state=earlier_keks",
        "Sweep the project; a clean end retires the earlier keys.",
        as_of=max((row.as_of for row in rows if row.as_of is not None), default=None),
    )


def keys_old(facts: Facts) -> Iterable[AttentionItem]:
    """API keys that were not rotated for a year."""
    rows = [
        row
        for row in facts.projects
        if row.key_since is not None and facts.now - row.key_since > OLD_KEY
    ]
    if not rows:
        return
    oldest = min(row.key_since for row in rows if row.key_since is not None)
    yield AttentionItem(
        "keys_old",
        "info",
        f"{count_of(len(rows), 'project')} with an API key older than a year",
        f"The oldest is {ago(facts.now - oldest)} old.",
        "/projects?state=old_key&sort=key_since",
        "Rotate them if your policy asks for it.",
        as_of=max((row.as_of for row in rows if row.as_of is not None), default=None),
    )


def master_keys_unusable(facts: Facts) -> Iterable[AttentionItem]:
    """Master keys that cannot be used, or that records name and workers do not hold."""
    for row in facts.master_keys:
        if row.code is not None:
            found = code_help(row.code)
            title = f"Master key {row.master_key} cannot be used: {row.code}"
            remedy = f"{found.remedy[:1].upper()}{found.remedy[1:]}."
            detail = f"{found.meaning[:1].upper()}{found.meaning[1:]}."
        elif not row.is_held:
            title = f"Master key {row.master_key} is missing"
            detail = f"{row.reason}."
            remedy = "Add it to KEYTURN_MASTER_KEYS of all workers and gateways."
        else:
            continue
        yield AttentionItem(
            "master_keys_unusable", "act", title, detail, "/keys", remedy, as_of=row.as_of
        )


def master_keys_unused(facts: Facts) -> Iterable[AttentionItem]:
    """Master keys that can be dropped."""
    names = [row.master_key for row in facts.master_keys if row.safe_to_drop]
    if names:
        yield AttentionItem(
            "master_keys_unused",
            "info",
            f"{count_of(len(names), 'master key')} can be dropped",
            f"{listed(names)}: no object and no record uses it.",
            "/keys",
            "Remove it from KEYTURN_MASTER_KEYS, and keep it offline as long as backups of the "
            "bucket need it.",
            as_of=facts.master_keys[0].as_of,
        )


PROJECT_RULES: Final[tuple[Rule, ...]] = (
    keyrings_broken,
    keyrings_contradicted,
    sweeps_not_clean,
    rotations_and_sweeps_stuck,
    earlier_keys_kept,
    keys_old,
    master_keys_unusable,
    master_keys_unused,
)
