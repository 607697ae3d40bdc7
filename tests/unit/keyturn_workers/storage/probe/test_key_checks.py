"""Servers that take keys for paths are found (SPEC 1, 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage.probe import key_checks as checks
from keyturn_workers.testing.memory_storage import MemoryStorage
from tests.unit.keyturn_workers.storage.probe.broken_storages import HidesNames, KeysArePaths

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyturn_workers.storage.probe.protocol import Outcome

    Check = Callable[[Any, str], Awaitable[Outcome]]

ALL: list[Check] = [
    checks.backslashes,
    checks.empty_segments,
    checks.beside_folder,
    checks.long_segment,
    checks.hidden_names,
]


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.__name__)
async def test_keys_that_are_only_bytes_pass(check: Check) -> None:
    storage = MemoryStorage()
    outcome = await check(storage, "probe")
    assert outcome.ok
    assert outcome.detail
    assert all(key.startswith("probe") for key in storage.stored_keys())


@pytest.mark.parametrize(
    ("check", "storage", "detail"),
    [
        (checks.backslashes, KeysArePaths, "the same object"),
        (checks.empty_segments, KeysArePaths, "the same object"),
        (checks.beside_folder, KeysArePaths, "refused as if it existed"),
        (checks.hidden_names, HidesNames, "hidden: b.versions/a"),
    ],
)
async def test_keys_that_are_paths_are_found(
    check: Check, storage: type[MemoryStorage], detail: str
) -> None:
    outcome = await check(storage(), "probe")
    assert (outcome.ok, outcome.detail) == (False, detail)


async def test_a_segment_that_is_no_file_name_fails_with_the_servers_error() -> None:
    with pytest.raises(StorageUnavailableError):
        await checks.long_segment(KeysArePaths(), "probe")
