"""The index finds, sorts and counts letters, and says when and how completely it was read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.topology import DEAD_QUEUES
from keyturn_workers.console.dead.index import (
    NO_CODE,
    DeadFilter,
    DeadIndex,
    DeadQuery,
    QueueLetters,
)
from tests.unit.keyturn_workers.console.dead.letters import CONTROL, EPOCH_S, UPLOADS, indexed

if TYPE_CHECKING:
    from keyturn_workers.console.dead.letters import IndexedLetter

_NOW = datetime.fromtimestamp(EPOCH_S, UTC)
_EARLIER = datetime.fromtimestamp(EPOCH_S - 100, UTC)


def _index(*letters: IndexedLetter) -> DeadIndex:
    """An index of which every queue was read."""
    queues = [
        QueueLetters(
            name,
            found := tuple(letter for letter in letters if letter.queue == name),
            len(found),
            _NOW,
        )
        for name in DEAD_QUEUES
    ]
    return DeadIndex(queues)


def _digests(index: DeadIndex, **query: Any) -> list[int]:
    return [letter.digest for letter in index.select(DeadQuery(**query), _NOW)]


_VARIED = _index(
    indexed(1, code="bad_seal", project="acme"),
    indexed(2, code="", detail="", queue=CONTROL, type="delete.requested", work_queue=""),
    indexed(3, code="not_permitted", project="globex", publisher="billing"),
    indexed(4, code="bad_seal", project="initech", detail="Wrong length", dead_at=None),
)


@pytest.mark.parametrize(
    ("wanted", "digests"),
    [
        ({}, [1, 2, 3, 4]),
        ({"queue": UPLOADS}, [1, 3, 4]),
        ({"code": "bad_seal"}, [1, 4]),
        ({"code": NO_CODE}, [2]),
        ({"type": "delete.requested"}, [2]),
        ({"project": "globex"}, [3]),
        ({"publisher": "billing"}, [3]),
        ({"code": "bad_seal", "project": "acme"}, [1]),
        ({"text": "WRONG len"}, [4]),
        ({"text": "id-3"}, [3]),
        ({"text": "glob billing"}, [3]),
        ({"text": "h-0000000000000002"}, [2]),
        ({"text": "nothing"}, []),
        ({"age": "hour"}, [1, 2, 3, 4]),
        ({"age": "over_day"}, []),
    ],
)
def test_letters_are_filtered(wanted: dict[str, Any], digests: list[int]) -> None:
    assert _digests(_VARIED, filter=DeadFilter(**wanted)) == digests


@pytest.mark.parametrize(
    ("sort", "digests"),
    [
        ("since", [4, 3, 2, 1]),
        ("queue", [2, 4, 3, 1]),
        ("code", [2, 4, 1, 3]),
        ("project", [2, 1, 3, 4]),
        ("publisher", [4, 2, 1, 3]),
        ("size", [1, 2, 3, 4]),
    ],
)
def test_letters_are_sorted_and_of_equal_ones_the_oldest_come_first(
    sort: Any, digests: list[int]
) -> None:
    assert _digests(_VARIED, sort=sort, descending=False) == digests
    assert _digests(_VARIED, sort=sort) == digests[::-1]


def test_the_age_of_a_letter_is_that_of_its_death() -> None:
    day = 86_400
    old = indexed(1, dead_at=EPOCH_S - 2 * day)
    week_old = indexed(2, dead_at=None, requested_at=EPOCH_S - 8 * day)
    index = _index(old, week_old, indexed(3, dead_at=None, requested_at=None))
    assert _digests(index, filter=DeadFilter(age="over_day")) == [1, 2, 3]
    assert _digests(index, filter=DeadFilter(age="over_week")) == [2, 3]
    assert _digests(index, filter=DeadFilter(age="week")) == [1]


def test_a_selection_is_made_once_for_all_of_its_pages() -> None:
    index = _index(*(indexed(number) for number in range(250)))
    pages = [index.page(DeadQuery(page=number), _NOW) for number in (1, 2, 3, 9)]
    assert [len(page.rows) for page in pages] == [100, 100, 50, 50]
    assert {page.matching for page in pages} == {250}
    first, second = (index.select(DeadQuery(page=number), _NOW) for number in (1, 2))
    assert first is second


def test_counts_are_by_queue_and_code_with_the_newest() -> None:
    counts = [(c.queue, c.code, c.count) for c in _VARIED.counts]
    assert counts[0] == (UPLOADS, "bad_seal", 2)
    assert (CONTROL, NO_CODE, 1) in counts
    assert _VARIED.counts[0].newest_at == datetime.fromtimestamp(EPOCH_S - 1, UTC)


def test_identical_letters_are_found_together() -> None:
    index = _index(indexed(1), indexed(1), indexed(1, queue=CONTROL))
    assert len(index.find(UPLOADS, 1)) == 2
    assert index.find(UPLOADS, 2) == index.find("keyturn.none.dead", 1) == []


def test_an_index_says_as_of_when_it_was_read_and_whether_wholly() -> None:
    index = DeadIndex()
    assert (index.as_of, index.is_complete, index.summary()) == (None, False, None)
    for name in DEAD_QUEUES:
        index = index.with_queue(QueueLetters(name, (), 0, _NOW))
    index = index.with_queue(QueueLetters(UPLOADS, (indexed(1),), 3, _EARLIER))
    assert (index.as_of, index.total, index.is_complete) == (_EARLIER, 3, False)
    summary = index.summary()
    assert summary is not None
    assert (summary.total, summary.is_complete, summary.as_of) == (3, False, _EARLIER)
    assert index.with_queue(QueueLetters(UPLOADS, (indexed(1),), 1, _NOW)).is_complete


def test_a_search_of_very_many_words_finds_nothing() -> None:
    """It would take long, and one that left words out would find too much."""
    index = _index(indexed(1, code="corrupt_object"))
    assert _digests(index, filter=DeadFilter(text="corrupt " * 500)) == [1]
    words = " ".join("corrupt_object"[start:] for start in range(14))
    more = " ".join("corrupt_object"[:end] for end in range(1, 14))
    assert _digests(index, filter=DeadFilter(text=words)) == [1]
    assert _digests(index, filter=DeadFilter(text=f"{words} {more}")) == []
