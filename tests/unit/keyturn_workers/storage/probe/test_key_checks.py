"""Servers that take keys for paths are found, and the order of listings (SPEC 1, 8.5, 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage.probe import key_checks as checks
from tests.unit.keyturn_workers.storage.probe.broken_storages import (
    HidesNames,
    KeysArePaths,
    ListsByPath,
    ListsFew,
    ResumesLate,
)
from tools.harness.memory_storage import MemoryStorage

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


_NEITHER = "a listing does not resume after its key"
_REFUSED = "versioned, and not listed by bytes"


@pytest.mark.parametrize(
    ("storage", "ok", "detail"),
    [
        (MemoryStorage(), True, "by bytes, each page from its key on"),
        (MemoryStorage(versioned=True), True, "by bytes, each page from its key on"),
        (ListsByPath(), True, checks.BY_PATH),
        (ListsByPath(versioned=True), False, _REFUSED),
        (ResumesLate(), False, _NEITHER),
        (ResumesLate(versioned=True), False, _REFUSED),
        (ListsFew(), False, _NEITHER),
    ],
)
async def test_a_listing_resumes_in_one_of_two_orders(
    storage: MemoryStorage, detail: str, *, ok: bool
) -> None:
    outcome = await checks.resumed(storage, "probe")
    assert (outcome.ok, outcome.detail) == (ok, detail)


async def test_the_order_is_a_row_of_its_own() -> None:
    assert (await checks.in_byte_order(MemoryStorage(), "probe")).ok
    outcome = await checks.in_byte_order(ListsByPath(), "probe")
    assert (outcome.ok, outcome.detail) == (False, "by paths")
