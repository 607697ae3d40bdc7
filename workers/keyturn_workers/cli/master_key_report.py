"""Whether a master key is still in use, for `keyturn status` (SPEC 8.1). Pure.

Dropping a master key too early loses everything that it opens. So no key is reported as safe to
drop unless the whole bucket was inspected, no sweep is running, and everything could be opened.
"""

from collections.abc import Iterable
from typing import Any

from keyturn_workers.cli.census import NONCURRENT, UNREADABLE, Census
from keyturn_workers.cli.record_index import RecordIndex


def master_key_rows(
    master_keys: Iterable[str],
    index: RecordIndex,
    census: Census | None,
    *,
    project: str | None,
    active: str | None,
) -> list[dict[str, Any]]:
    """A row for each available master key, and for each missing one that a record names.

    Args:
        master_keys: The ids of the available master keys.
        index: What the records say.
        census: What the objects are wrapped under; None if they were not inspected.
        project: The only project that was inspected.
        active: The id of the master key that new projects get, if known.
    """
    rows = []
    for name in master_keys:
        row: dict[str, Any] = {
            "master_key": name,
            "held": True,
            "active": None if active is None else name == active,
            "objects": _count(census, name, noncurrent=False),
            "noncurrent": _count(census, name, noncurrent=True),
            "keyrings": index.keyrings_under[name],
            "sweep_records": index.sweep_records_under[name],
        }
        safe, reason = _safe_to_drop(row, index, census, project)
        rows.append(row | {"may_be_dropped": safe, "told": f"{name}: {reason}"})
    for name, count in sorted(index.missing_master_keys.items()):
        reason = f"missing from KEYTURN_MASTER_KEYS, but named by {_plural(count, 'record')}"
        row = {"master_key": name, "held": False, "may_be_dropped": None}
        rows.append(row | {"told": f"{name}: {reason}"})
    return rows


def _count(census: Census | None, name: str, *, noncurrent: bool) -> int | None:
    if census is None:
        return None
    return sum(
        count
        for group, count in census.items()
        if group.master_key == name and (group.kind == NONCURRENT) is noncurrent
    )


def _safe_to_drop(
    row: dict[str, Any], index: RecordIndex, census: Census | None, project: str | None
) -> tuple[bool | None, str]:
    """Whether the master key may be dropped, and the sentence that says why; None if unknown."""
    records = row["keyrings"] + row["sweep_records"]
    if census is None:
        return None, f"{_plural(records, 'record')}; objects were not inspected"
    uses = [_plural(row["objects"], "object"), _plural(records, "record")]
    if row["noncurrent"]:
        uses.insert(1, _plural(row["noncurrent"], "noncurrent version"))
    if project is not None:
        return None, f"{', '.join(uses)} in {project}"
    if row["objects"] or row["noncurrent"] or records:
        return False, f"in use by {', '.join(uses)}"
    if obstacle := _obstacle(row, index, census):
        return False, f"not safe to drop: {obstacle}"
    return True, "safe to drop: no object and no record uses it"


def _obstacle(row: dict[str, Any], index: RecordIndex, census: Census) -> str:
    if row["active"]:
        return "it is the active master key"
    if index.running:
        verb = "is" if index.running == 1 else "are"
        return f"{_plural(index.running, 'sweep')} {verb} still running"
    objects = sum(count for group, count in census.items() if group.kind == UNREADABLE)
    unreadable = [
        _plural(n, w) for n, w in ((objects, "object"), (index.unreadable, "record")) if n
    ]
    # It is unknown which key would open them.
    closed = f"{' and '.join(unreadable)} cannot be opened with any available key"
    return closed if unreadable else ""


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
