"""The run over all objects: retries, failures by code, and what ends it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import stamina

from keyturn.errors import (
    CorruptObjectError,
    GatewayUnavailableError,
    IncompleteBodyError,
    NotFoundError,
    NoUsableWrapError,
    StorageUnavailableError,
    TooManyRequestsError,
    UnauthorizedError,
    UnexpectedResponseError,
)
from keyturn_workers.offline.export.run import FAILURES_KEPT
from tests.unit.keyturn_workers.offline.export.project import Project

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyturn_workers.offline.export.run import Incoming

BODY = os.urandom(300_000)


class Memory:
    """A destination in memory."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    async def size_of(self, key: str) -> int | None:
        return len(self.files[key]) if key in self.files else None

    async def store(self, incoming: Incoming) -> bool:
        self.files[incoming.key] = b"".join([block async for block in incoming.blocks()])
        return True


@pytest.fixture(autouse=True)
def no_backoff() -> Iterator[None]:
    with stamina.set_testing(True, attempts=8):
        yield


@pytest.mark.parametrize(
    "failure",
    [
        StorageUnavailableError("away"),
        GatewayUnavailableError("away"),
        IncompleteBodyError("cut"),
        TooManyRequestsError("busy"),
        UnexpectedResponseError("a proxy's", status=502),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_what_may_pass_is_tried_again(failure: Exception) -> None:
    project = Project(
        {"a": BODY, "b": BODY}, failures={"a": [failure] * 3}, refusals={"b": [failure]}
    )
    memory = Memory()
    report = await project.export(memory)
    assert memory.files == project.objects
    assert (report.exported, report.failures) == (2, [])
    assert (project.opened.count("a"), project.opened.count("b")) == (4, 2)
    # Bytes that were read again are counted once.
    assert (project.objects_seen, project.bytes_seen) == (2, 2 * len(BODY))


async def test_a_failure_is_counted_by_its_code_and_the_rest_is_exported() -> None:
    project = Project(
        {"a": BODY, "b": BODY, "c": BODY, "d": BODY, "e//f": BODY, "g": BODY},
        refusals={"a": [NoUsableWrapError("no wrap opens")]},
        failures={"b": [CorruptObjectError("a chunk")], "c": [IncompleteBodyError("cut")] * 8},
        stated_sizes={"d": len(BODY) + 1},
    )
    memory = Memory()
    report = await project.export(memory)
    assert memory.files.keys() == {"g"}
    assert sorted((row["key"], row["code"], row["detail"]) for row in report.failures) == [
        ("a", "no_usable_wrap", "no wrap opens"),
        ("b", "corrupt_object", "a chunk"),
        ("c", "incomplete_body", "cut"),
        ("d", "corrupt_object", "the size of the plaintext differs from the stated one"),
        ("e//f", "foreign_object", "no object can have this key"),
    ]
    assert report.failed == {"corrupt_object": 2} | dict.fromkeys(
        ("no_usable_wrap", "incomplete_body", "foreign_object"), 1
    )
    assert project.bytes_seen == len(BODY)


async def test_a_longer_body_than_stated_is_a_failure_too() -> None:
    project = Project({"a": BODY}, stated_sizes={"a": len(BODY) - 1})
    report = await project.export(Memory())
    assert report.failed == {"corrupt_object": 1}


async def test_an_object_that_was_deleted_since_is_no_failure() -> None:
    project = Project({"a": BODY, "b": BODY}, refusals={"a": [NotFoundError("a")]})
    report = await project.export(Memory())
    assert (report.exported, report.deleted, report.failures) == (1, 1, [])


async def test_a_listing_that_fails_is_continued_where_it_was() -> None:
    objects = {f"{number:03}": b"x" for number in range(100)}
    project = Project(objects, listing_failures=[StorageUnavailableError("away")] * 3)
    report = await project.export(Memory())
    assert (report.exported, sorted(project.opened)) == (100, sorted(objects))


@pytest.mark.parametrize(
    ("failure", "at_most"),
    [
        (UnauthorizedError("rotated"), 4),
        (GatewayUnavailableError("away"), 8 * 40),
        (StorageUnavailableError("away"), 8 * 40),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_is_not_about_one_object_ends_the_run(failure: Exception, at_most: int) -> None:
    objects = {f"{number:04}": b"x" for number in range(1000)}
    project = Project(objects, refusals={key: [failure] * 8 for key in objects})
    with pytest.raises(ExceptionGroup) as raised:
        await project.export(Memory())
    assert {type(exc) for exc in raised.value.exceptions} == {type(failure)}
    assert len(project.opened) <= at_most


async def test_many_corrupt_objects_do_not_end_the_run_and_not_all_are_kept() -> None:
    objects = {f"{number:04}": b"x" for number in range(FAILURES_KEPT + 50)}
    project = Project(objects, refusals={key: [CorruptObjectError()] for key in objects})
    report = await project.export(Memory())
    assert report.failed == {"corrupt_object": FAILURES_KEPT + 50}
    assert len(report.failures) == FAILURES_KEPT


async def test_no_more_is_read_at_once_than_asked_for() -> None:
    project = Project({f"{number}": b"x" for number in range(50)})
    reading, most = 0, 0

    class Counting(Memory):
        async def store(self, incoming: Incoming) -> bool:
            nonlocal reading, most
            reading += 1
            most = max(most, reading)
            is_new = await super().store(incoming)
            reading -= 1
            return is_new

    await project.export(Counting(), concurrency=3)
    assert 1 <= most <= 3
