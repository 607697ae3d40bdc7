"""The known text of each master key id."""

from __future__ import annotations

import json

import pytest

from keyturn.crypto import record_kek
from keyturn.errors import StorageUnavailableError, UnknownMasterKeyError
from keyturn.identifiers import ALL_PROJECTS, is_project
from keyturn_workers.core.errors import RefusedError
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.keys.master_keys.known_text import RESERVED_PROJECT, check_known_text
from tools.harness.memory_storage import MemoryStorage

PATH = ".keyturn/keys/m1.json"
RIGHT = record_kek(bytes(32), RESERVED_PROJECT)
WRONG = record_kek(b"w" * 32, RESERVED_PROJECT)


def test_no_project_has_the_reserved_name() -> None:
    assert not is_project(RESERVED_PROJECT)
    # Whose record KEK seals the records of sweeps of all.
    assert RESERVED_PROJECT not in {"", ALL_PROJECTS}


async def test_the_first_process_creates_it_and_the_others_open_it() -> None:
    storage = MemoryStorage()
    await check_known_text(storage, "m1", RIGHT, create=True)
    first = (await storage.read(PATH))[1]
    await check_known_text(storage, "m1", RIGHT, create=True)
    await check_known_text(storage, "m1", RIGHT, create=False)
    assert (await storage.read(PATH))[1] == first


async def test_another_key_under_the_same_id_is_not_used() -> None:
    storage = MemoryStorage()
    await check_known_text(storage, "m1", RIGHT, create=True)
    with pytest.raises(UnknownMasterKeyError, match="m1"):
        await check_known_text(storage, "m1", WRONG, create=True)


async def test_a_reader_creates_nothing() -> None:
    storage = MemoryStorage()
    await check_known_text(storage, "m1", RIGHT, create=False)
    assert not storage.stored_keys()


async def test_of_two_processes_that_create_it_at_once_the_second_is_checked() -> None:
    storage = MemoryStorage()

    async def other() -> None:
        await check_known_text(storage, "m1", RIGHT, create=True)

    storage.before_next("put", other)
    with pytest.raises(UnknownMasterKeyError):
        await check_known_text(storage, "m1", WRONG, create=True)


@pytest.mark.parametrize("change", ["moved", "project", "version", "not JSON", "sealed"])
async def test_a_text_that_was_planted_does_not_open(change: str) -> None:
    storage = MemoryStorage()
    await check_known_text(storage, "m1", RIGHT, create=True)
    record = json.loads((await storage.read(PATH))[1])
    path, name = PATH, "m1"
    match change:
        case "moved":
            path, name = ".keyturn/keys/m2.json", "m2"
            record["master_key"] = "m2"
        case "project":
            record["project"] = "acme"
        case "version":
            record["v"] = "1"
        case "sealed":
            record["sealed"] = "AAAA"
    body = b"{" if change == "not JSON" else json.dumps(record).encode()
    storage.plant(path, body, Headers({}))
    with pytest.raises(UnknownMasterKeyError):
        await check_known_text(storage, name, RIGHT, create=True)


async def test_a_storage_that_refuses_is_no_wrong_key() -> None:
    storage = MemoryStorage()
    storage.fail_next("read", RefusedError("AccessDenied"))
    with pytest.raises(StorageUnavailableError):
        await check_known_text(storage, "m1", RIGHT, create=True)
