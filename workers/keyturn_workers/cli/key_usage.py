"""Whether a master key is still needed, as `keyturn status` tells it (SPEC 8.1). Pure.

Dropping one too early loses whatever stands under it. So nothing is said to be droppable
by less than the whole bucket, while sweeps run, or where something did not open.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from keyturn_workers.cli.census import NONCURRENT, UNREADABLE, Seen
from keyturn_workers.cli.record_index import Recorded


def master_key_rows(
    held: Iterable[str],
    recorded: Recorded,
    census: Counter[Seen] | None,
    *,
    project: str | None,
    active: str | None,
) -> list[dict[str, Any]]:
    """A row for each master key that is held, and for each other that a record names.

    Args:
        held: The ids of the master keys held here.
        recorded: What the records say.
        census: What the objects stand under; None where nobody looked.
        project: The only project that was looked at.
        active: The id of the master key that new projects are enrolled under, if known.
    """
    rows = []
    for name in held:
        row: dict[str, Any] = {
            "master_key": name,
            "held": True,
            "active": None if active is None else name == active,
            "objects": None if census is None else _objects(census, name),
            "noncurrent": None if census is None else _noncurrent(census, name),
            "keyrings": recorded.keyrings_under[name],
            "sweep_records": recorded.sweep_records_under[name],
        }
        rows.append(row | _told(row, recorded, census, project))
    for name in sorted(recorded.named):
        told = f"{name}: not held here, but named by {_many(recorded.named[name], 'record')}"
        rows.append({"master_key": name, "held": False, "may_be_dropped": None, "told": told})
    return rows


def _objects(census: Counter[Seen], name: str) -> int:
    return sum(n for seen, n in census.items() if seen.master_key == name) - _noncurrent(
        census, name
    )


def _noncurrent(census: Counter[Seen], name: str) -> int:
    return sum(
        n for seen, n in census.items() if (seen.master_key, seen.kind) == (name, NONCURRENT)
    )


def _told(
    row: dict[str, Any], recorded: Recorded, census: Counter[Seen] | None, project: str | None
) -> dict[str, Any]:
    name, records = row["master_key"], row["keyrings"] + row["sweep_records"]
    if census is None:
        told = f"{name}: {_many(records, 'record')}; objects were not looked at"
        return {"may_be_dropped": None, "told": told}
    under = [_many(row["objects"], "object"), _many(records, "record")]
    if row["noncurrent"]:
        under.insert(1, _many(row["noncurrent"], "noncurrent version"))
    if project is not None:
        told = f"{name}: {', '.join(under)} of {project}"
        return {"may_be_dropped": None, "told": told}
    if row["objects"] or row["noncurrent"] or records:
        return {"may_be_dropped": False, "told": f"{name}: still needed by {', '.join(under)}"}
    if hindrance := _hindrance(row, recorded, census):
        return {"may_be_dropped": False, "told": f"{name}: {', '.join(under)}: {hindrance}"}
    return {"may_be_dropped": True, "told": f"{name}: {', '.join(under)}: may be dropped"}


def _hindrance(row: dict[str, Any], recorded: Recorded, census: Counter[Seen]) -> str:
    if row["active"]:
        return "may be dropped once another is the active one"
    if recorded.running:
        return f"may be dropped if it is so after {_many(recorded.running, 'sweep')} under way"
    unreadable = sum(n for seen, n in census.items() if seen.kind == UNREADABLE)
    if unreadable or recorded.failed:
        # Nobody knows what key it takes to make them readable again.
        closed = f"{_many(unreadable, 'object')} and {_many(recorded.failed, 'record')}"
        return f"may be dropped if it cannot help {closed} that open under no key held here"
    return ""


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
