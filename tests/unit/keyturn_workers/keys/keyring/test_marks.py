"""What a process knows of the marks, and how a keyring read compares with it (SPEC 5.5)."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Final

import pytest
from structlog.testing import capture_logs

from keyturn.crypto import new_customer_secret
from keyturn.identifiers import keyring_s3_key
from keyturn_workers.core.customer_keys import CustomerKey, KeyName
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.keys.keyring.marks import (
    Finding,
    Mark,
    MarkState,
    MarkTable,
    MarkWatch,
    compare,
    customer_keys_to_json,
)
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring
from tests.unit.keyturn_workers.pipeline.sweep.test_periodic import Scans
from tests.unit.keyturn_workers.witness import FakeWitness, mark_of
from tools.harness.local_keys import build_keyring

_A: Final = bytes([1]) * 32
_B: Final = bytes([2]) * 32


def _mark(serial: int, digest: bytes = _A, generation: int = 1) -> Mark:
    return Mark(serial, digest, generation)


@pytest.mark.parametrize(
    ("read", "known", "finding"),
    [
        pytest.param(_mark(0), None, Finding.UNMARKED, id="first-use"),
        pytest.param(_mark(1), None, Finding.UNKNOWN, id="a-serial-and-no-mark"),
        pytest.param(_mark(3), _mark(2), Finding.UNMARKED, id="newer-than-its-mark"),
        pytest.param(_mark(3), _mark(2, _B), Finding.UNMARKED, id="newer-whatever-its-bytes"),
        pytest.param(_mark(2), _mark(2), Finding.MARKED, id="the-marked-state"),
        pytest.param(_mark(0), _mark(0), Finding.MARKED, id="the-marked-state-at-0"),
        pytest.param(_mark(1), _mark(2), Finding.ROLLED_BACK, id="rolled-back"),
        pytest.param(_mark(2, _B), _mark(2), Finding.ROLLED_BACK, id="other-bytes-of-one-serial"),
        pytest.param(_mark(0, _B), _mark(0), Finding.ROLLED_BACK, id="other-bytes-at-0"),
        pytest.param(
            _mark(0), _mark(1), Finding.ROLLED_BACK, id="rolled-back-to-an-earlier-release's"
        ),
    ],
)
def test_a_read_is_compared_with_the_highest_mark(
    read: Mark, known: Mark | None, finding: Finding
) -> None:
    """A read that began before the mark was received may show the state before a rotation."""
    assert compare(read, known, began_after=True) is finding
    earlier = Finding.READ_AGAIN if finding is Finding.ROLLED_BACK else finding
    assert compare(read, known, began_after=False) is earlier


def test_the_generation_decides_nothing() -> None:
    """It is in the digest: a change of it changes the bytes."""
    assert compare(_mark(2, generation=7), _mark(2), began_after=True) is Finding.MARKED


@pytest.mark.parametrize(
    ("marks", "highest", "last_is_highest"),
    [
        pytest.param([_mark(0)], _mark(0), True, id="first"),
        pytest.param([_mark(1), _mark(2, _B, 2)], _mark(2, _B, 2), True, id="higher"),
        pytest.param([_mark(1), _mark(7)], _mark(7), True, id="serials-between-are-missing"),
        pytest.param([_mark(2), _mark(1)], _mark(2), False, id="lower"),
        pytest.param([_mark(2), _mark(2)], _mark(2), True, id="published-twice"),
        pytest.param([_mark(2), _mark(2, _B)], _mark(2), False, id="first-of-a-serial"),
        pytest.param(
            [_mark(1), _mark(2), _mark(1), _mark(2)], _mark(2), True, id="all-of-it-replayed"
        ),
    ],
)
def test_the_first_mark_of_the_highest_serial_counts(
    marks: list[Mark], highest: Mark, *, last_is_highest: bool
) -> None:
    table = MarkTable()
    results = [table.receive("acme", mark) for mark in marks]
    assert table.find("acme") == highest
    assert results[-1] is last_is_highest
    assert table.received == len(marks)


def test_projects_are_apart() -> None:
    table = MarkTable()
    table.receive("acme", _mark(5))
    table.receive("other", _mark(1, _B))
    assert table.find("acme") == _mark(5)
    assert table.find("other") == _mark(1, _B)
    assert table.find("third") is None
    assert table.compare("other", _mark(1, _B), table.received) is Finding.MARKED


def test_only_a_mark_that_was_received_before_the_read_began_contradicts_it() -> None:
    table = MarkTable()
    table.receive("acme", _mark(1))
    since = table.received
    assert table.compare("acme", _mark(1), since) is Finding.MARKED
    table.receive("acme", _mark(2))
    assert table.has_received("acme", since)
    assert table.compare("acme", _mark(1), since) is Finding.READ_AGAIN
    assert table.compare("acme", _mark(1), table.received) is Finding.ROLLED_BACK


@pytest.mark.parametrize(
    "harmless", [_mark(2), _mark(1), _mark(2, _B)], ids=["again", "lower", "other-branch"]
)
def test_marks_that_change_nothing_do_not_excuse_a_read(harmless: Mark) -> None:
    """Otherwise anyone who replays marks could keep a keyring that was rolled back from alarm."""
    table = MarkTable()
    table.receive("acme", _mark(2))
    since = table.received
    table.receive("acme", harmless)
    assert not table.has_received("acme", since)
    assert table.compare("acme", _mark(1), since) is Finding.ROLLED_BACK


def test_marks_of_other_projects_do_not_excuse_a_read() -> None:
    table = MarkTable()
    table.receive("acme", _mark(2))
    since = table.received
    table.receive("other", _mark(9))
    assert table.compare("acme", _mark(1), since) is Finding.ROLLED_BACK
    assert not table.has_received("third", 0)


@pytest.mark.parametrize(
    ("shown", "is_lost"),
    [
        pytest.param(_mark(5), False, id="the-same"),
        pytest.param(_mark(6, _B), False, id="higher"),
        pytest.param(_mark(4), True, id="lower"),
        pytest.param(_mark(5, _B), True, id="another-branch"),
        pytest.param(_mark(0), True, id="none-that-counts"),
    ],
)
def test_a_replaced_stream_must_show_what_the_earlier_one_had(
    shown: Mark, *, is_lost: bool
) -> None:
    table = MarkTable()
    table.receive("acme", _mark(5))
    table.begin_again()
    assert table.find("acme") is None
    assert table.find_lost("acme") == _mark(5)
    table.receive("acme", shown)
    assert table.find("acme") == shown
    assert table.find_lost("acme") == (_mark(5) if is_lost else None)


@pytest.mark.parametrize(
    ("read", "state"),
    [
        pytest.param(_mark(5), MarkState.UNKNOWN, id="the-same"),
        pytest.param(_mark(6, _B), MarkState.UNKNOWN, id="newer"),
        pytest.param(_mark(5, _B), MarkState.ROLLED_BACK, id="another-branch"),
        pytest.param(_mark(4), MarkState.ROLLED_BACK, id="older"),
        pytest.param(None, MarkState.REMOVED, id="none"),
    ],
)
def test_an_operator_sees_which_keyrings_a_lost_mark_contradicts(
    read: Mark | None, state: MarkState
) -> None:
    """Where it says unknown, `recover` takes the keyring as it is."""
    table = MarkTable()
    table.receive("acme", _mark(5))
    table.begin_again()
    assert table.find_state("acme", read, table.received) is state


def test_a_stream_that_is_replaced_twice_loses_nothing() -> None:
    """What the second one does not show is still known from the first one."""
    table = MarkTable()
    table.receive("acme", _mark(5))
    table.receive("other", _mark(1))
    table.begin_again()
    table.receive("other", _mark(2))
    table.begin_again()
    assert (table.find_lost("acme"), table.find_lost("other")) == (_mark(5), _mark(2))


def test_a_lower_mark_of_a_new_stream_does_not_lower_what_was_lost() -> None:
    """A stream replaced twice, with a planted mark in between, forgets nothing."""
    table = MarkTable()
    table.receive("acme", _mark(5))
    table.begin_again()
    table.receive("acme", _mark(1))
    table.begin_again()
    assert table.find_lost("acme") == _mark(5)


def test_the_largest_values_are_kept() -> None:
    table = MarkTable()
    largest = Mark(2**63 - 1, _B, 10**18 - 1)
    table.receive("acme", largest)
    assert table.find("acme") == largest


def test_customer_keys_are_kept_with_their_generations() -> None:
    """Also those of a stream that was replaced; a project without them costs nothing for it."""
    names = [KeyName("kms-eu", "a"), KeyName("bao", "b")]
    first, second = (CustomerKey.of(each, new_customer_secret(), "YQ==") for each in names)
    table, plain = MarkTable(), Mark(5, _B, 7)
    marked = Mark(5, _B, 7, {3: first, 4: second, 7: second})
    assert [each["generations"] for each in customer_keys_to_json(marked.customer_keys)] == [
        [3],
        [4, 7],
    ]
    table.receive("acme", marked)
    table.receive("plain", plain)
    for found, expected in ((table.find("acme"), marked), (table.find("plain"), plain)):
        assert found is not None
        assert found == expected
        assert found.customer_keys == expected.customer_keys
    date = table.find_date("acme")
    assert date is not None
    assert table.compare("acme", marked, since=9) is Finding.MARKED
    table.begin_again()
    lost = table.find_lost("acme")
    assert lost is not None
    assert lost.customer_keys == marked.customer_keys
    table.receive("acme", Mark(6, _A, 8))  # a clean end has cleared them
    found = table.find("acme")
    assert found is not None
    assert not found.customer_keys


def test_a_project_takes_few_bytes() -> None:
    """What docs/operations/capacity.md says of a million projects."""
    projects = 20_000
    names = [f"tenant-{number:06}" for number in range(projects)]
    tracemalloc.start()
    try:
        table = MarkTable()
        for name in names:
            table.receive(name, Mark(3, name.encode().ljust(32), 2))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / projects < 200


class _Rounds:
    """A bucket, its marks, and one process's rounds over it."""

    def __init__(self) -> None:
        self.witness, self.counts = FakeWitness(), list[int]()
        self.scans = Scans(watch=MarkWatch(self.witness, self.counts.append))
        self.storage = self.scans.storage

    def put(self, project: str, serial: int) -> bytes:
        body = build_keyring(replace(keyring(project), serial=serial), MASTER_KEYS)
        self.storage.plant(keyring_s3_key(project), body, Headers({}))
        return body

    async def round(self) -> list[tuple[str, str]]:
        """Look once; the projects that were logged, and as what."""
        with capture_logs() as logs:
            await self.scans.scan()
        rolled_back = [log for log in logs if log["event"] == "keyring rolled back"]
        return [(log["project"], log["state"]) for log in rolled_back]


async def test_each_keyring_of_an_earlier_release_is_marked_once() -> None:
    on = _Rounds()
    bodies = {project: on.put(project, 0) for project in ("acme", "bob")}
    assert await on.round() == []
    assert sorted(on.witness.published) == [(name, mark_of(bodies[name], name)) for name in bodies]
    assert await on.round() == []
    assert len(on.witness.published) == 2
    assert on.storage.reads == []


async def test_a_keyring_stays_unmarked_without_the_broker_and_is_marked_later() -> None:
    on = _Rounds()
    on.put("acme", 0)
    on.witness.is_current = False
    await on.round()
    assert on.witness.published == []
    on.witness.is_current = True
    await on.round()
    assert len(on.witness.published) == 1
    assert on.counts == [0, 0]


async def test_keyrings_that_were_rolled_back_removed_or_never_marked_are_reported_once() -> None:
    on = _Rounds()
    before = {project: on.put(project, 1) for project in ("acme", "bob", "carol")}
    for project, body in before.items():
        on.witness.receive(project, mark_of(body, project))
    assert await on.round() == []
    on.witness.receive("acme", mark_of(on.put("acme", 2)))
    on.storage.plant(keyring_s3_key("acme"), before["acme"], Headers({}))
    await on.storage.delete(keyring_s3_key("bob"))
    on.put("dave", 3)
    expected = [("acme", "rolled_back"), ("bob", "removed"), ("dave", "unknown")]
    assert await on.round() == expected
    # What it had read before is compared with the new mark, and not read again.
    assert on.storage.reads == [keyring_s3_key("dave")]
    assert await on.round() == []
    on.put("acme", 3)
    assert await on.round() == []
    assert on.counts == [0, 3, 3, 2]


async def test_a_keyring_that_changes_during_the_round_was_not_rolled_back() -> None:
    on = _Rounds()
    on.witness.receive("acme", mark_of(on.put("acme", 1)))

    async def rotate() -> None:
        """After the listing; the read still shows the state before."""
        on.witness.receive(
            "acme", mark_of(build_keyring(replace(keyring(), serial=2), MASTER_KEYS))
        )

    on.storage.before_next("read", rotate)
    assert await on.round() == []
    assert on.counts == [0]
