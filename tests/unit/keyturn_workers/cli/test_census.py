"""The census opens every wrap, and counts by what opened it (SPEC 8.1, 8.7)."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import StorageUnavailableError, UnknownMasterKeyError
from keyturn.messages import ObjectGroupStatus
from keyturn_workers.cli.reports import (
    OBJECTS_AT_ONCE,
    Groups,
    Reports,
    object_rows,
    take_census,
)
from keyturn_workers.keyring import create_keyring
from keyturn_workers.master_keys.local import LocalMasterKey
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from tests.unit.keyturn_workers.cli.status_bucket import (
    Bench,
)
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    keyring,
)
from tools.harness.local_keys import operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn.crypto import Secret
    from keyturn_workers.storage import ObjectHead


_FIRST = keyring()
_OTHER = keyring("other", master_key="m2")


async def _census(
    storage: MemoryStorage, *, project: str | None = None, keys: OperatorKeys | None = None
) -> Groups:
    reports = Reports(storage, keys or operator_keys(MASTER_KEYS))
    return await take_census(reports, storage, project)


def _group(
    project: str,
    kind: Any,
    generation: int | None = None,
    master_key: str | None = None,
    code: str | None = None,
) -> ObjectGroupStatus:
    return ObjectGroupStatus(
        kind=kind,
        count=0,
        generation=generation,
        master_key=master_key,
        code=code,
        project=project or None,
    )


class _Concurrent(MemoryStorage):
    """Records how many heads are read at once."""

    active = 0
    highest = 0

    async def head(self, key: str) -> ObjectHead:
        self.active += 1
        self.highest = max(self.highest, self.active)
        await asyncio.sleep(0)
        try:
            return await super().head(key)
        finally:
            self.active -= 1


async def test_the_census_reads_no_more_objects_at_once_than_allowed() -> None:
    storage = _Concurrent()
    Bench(storage).put(_FIRST, *(f"k{n}" for n in range(3 * OBJECTS_AT_ONCE + 1)))
    census = await _census(storage)
    assert sum(census.values()) == 3 * OBJECTS_AT_ONCE + 1
    assert storage.highest == OBJECTS_AT_ONCE


async def test_an_object_deleted_after_the_listing_is_not_counted() -> None:
    storage = MemoryStorage()
    Bench(storage).put(_FIRST, "a", "b")

    async def remove() -> None:
        await storage.delete("acme/a")

    storage.before_next("head", remove)
    census = await _census(storage)
    assert sum(census.values()) == 1


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def test_the_census_shows_a_progress_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = MemoryStorage()
    Bench(storage).put(_FIRST, *(f"k{n}" for n in range(OBJECTS_AT_ONCE + 2)))
    terminal = _Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    census = await _census(storage)
    assert census == Counter({next(iter(census)): OBJECTS_AT_ONCE + 2})
    assert "objects of acme" in terminal.getvalue()
    assert "66/66" in terminal.getvalue()


async def test_objects_are_grouped_by_what_opens_them_and_not_by_their_labels() -> None:
    storage = MemoryStorage()
    held = Bench(storage)
    for ring in (_FIRST, _OTHER):
        assert await create_keyring(storage, ring, operator_keys(MASTER_KEYS), lease_s=15)
    held.put(_FIRST, "a", "b")
    held.put(_FIRST, "c", generation=7, master_key="m2")
    held.put(_OTHER, "a")
    held.delete(_OTHER, "gone")
    held.plant("acme/plain", {})
    held.plant("acme/broken", {"enc-algo": "ROT13"})
    held.plant("acme//odd", {})
    held.plant("No Project/a", {})
    held.plant(".keyturn/keyrings/forged.json", {})
    census = await _census(storage)
    assert census == {
        _group("acme", "encrypted", 1, "m1"): 3,
        _group("other", "encrypted", 1, "m2"): 1,
        _group("other", "tombstone", None, "m2"): 1,
        _group("acme", "plaintext"): 1,
        _group("acme", "unreadable", code="unknown_algorithm"): 1,
        _group("acme", "foreign"): 1,
        _group("", "foreign"): 1,
    }


async def test_one_project_is_counted_alone() -> None:
    storage = MemoryStorage()
    Bench(storage).put(_FIRST, "a")
    Bench(storage).put(_OTHER, "a")
    census = await _census(storage, project="other")
    assert {group.project for group in census} == {"other"}


async def test_older_versions_are_counted_apart_and_delete_markers_are_not() -> None:
    storage = MemoryStorage(versioned=True)
    held = Bench(storage)
    held.put(_FIRST, "a")
    held.put(_FIRST, "a")
    held.put(_FIRST, "b")
    await storage.delete("acme/b")
    census = await _census(storage)
    assert census == {
        _group("acme", "encrypted", 1, "m1"): 1,
        _group("acme", "noncurrent", 1, "m1"): 2,
    }


async def test_an_outage_of_the_storage_fails_the_census() -> None:
    storage = MemoryStorage()
    Bench(storage).put(_FIRST, "a", "b")
    storage.fail_next("head", StorageUnavailableError("no answer"))
    with pytest.raises(StorageUnavailableError):
        await _census(storage)


def test_rows_are_sorted_by_project_and_kind_the_newest_generation_first() -> None:
    census = Counter(
        {
            _group("b", "encrypted", 1, "m1"): 1,
            _group("a", "plaintext"): 2,
            _group("a", "encrypted", 1, "m1"): 3,
            _group("a", "encrypted", 12, "m1"): 4,
            _group("a", "encrypted", 2, "m2"): 5,
            _group("", "foreign"): 6,
        }
    )
    rows = [
        (row["project"], row["kind"], row["generation"], row["objects"])
        for row in object_rows(census)
    ]
    assert rows == [
        (None, "foreign", None, 6),
        ("a", "encrypted", 12, 4),
        ("a", "encrypted", 2, 5),
        ("a", "encrypted", 1, 3),
        ("a", "plaintext", None, 2),
        ("b", "encrypted", 1, 1),
    ]


async def test_another_key_under_an_id_keeps_nothing_else_from_being_counted() -> None:
    async def check(name: str, _kek: Secret) -> bool:
        if name == "m2":
            raise UnknownMasterKeyError(name)
        return True

    storage = MemoryStorage()
    Bench(storage).put(_FIRST, "a")
    Bench(storage).put(_OTHER, "a")
    held = {name: LocalMasterKey(secret) for name, secret in MASTER_KEYS.items()}
    keys = OperatorKeys(held, check=check)
    assert await _census(storage, keys=keys) == {
        _group("acme", "encrypted", 1, "m1"): 1,
        _group("other", "unreadable", code="unknown_master_key"): 1,
    }
