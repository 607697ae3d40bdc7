"""All dead letters as of a time: counted, filtered, sorted and cut into pages (SPEC 16.2). Pure."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Literal

from keyturn.topology import DEAD_QUEUES
from keyturn_workers.console.dead.letters import IndexedLetter, digest_number, instant
from keyturn_workers.console.model.paging import page_of
from keyturn_workers.console.model.rows import DeadCount, DeadSummary, Page

LETTERS_MAX: Final = 200_000
"""Letters of one queue that are kept in memory."""
PAGE_SIZE: Final = 100
WORDS_MAX: Final = 20
"""Words of a search; one with more of them finds nothing."""
_CACHED_SELECTIONS: Final = 8
_HOUR_S: Final = 3600
_DAY_S: Final = 86_400

Age = Literal["", "hour", "day", "week", "over_day", "over_week"]
Sort = Literal["since", "queue", "code", "type", "project", "publisher", "size"]
NO_CODE: Final = "none"
"""Stands for the code of letters that name none."""

_SORT_KEYS: Final[Mapping[Sort, Callable[[IndexedLetter], str | float]]] = {
    "since": lambda letter: letter.since,
    "queue": lambda letter: letter.queue,
    "code": lambda letter: letter.code,
    "type": lambda letter: letter.type,
    "project": lambda letter: letter.project,
    "publisher": lambda letter: letter.publisher,
    "size": lambda letter: letter.size_bytes,
}
_YOUNGER: Final[Mapping[Age, int]] = {"hour": _HOUR_S, "day": _DAY_S, "week": 7 * _DAY_S}
_OLDER: Final[Mapping[Age, int]] = {"over_day": _DAY_S, "over_week": 7 * _DAY_S}


@dataclass(frozen=True, slots=True)
class DeadFilter:
    """Which letters; an empty field means any."""

    queue: str = ""
    code: str = ""
    type: str = ""
    project: str = ""
    publisher: str = ""
    age: Age = ""
    text: str = ""

    def matching(
        self, letters: Iterable[IndexedLetter], now: datetime, texts: Collection[str]
    ) -> list[IndexedLetter]:
        """The letters that match, in their order; `texts` are those of `texts_of`."""
        code = "" if self.code == NO_CODE else self.code
        found = list(letters)
        if self.queue:
            found = [letter for letter in found if letter.queue == self.queue]
        if self.code:
            found = [letter for letter in found if letter.code == code]
        if self.type:
            found = [letter for letter in found if letter.type == self.type]
        if self.project:
            found = [letter for letter in found if letter.project == self.project]
        if self.publisher:
            found = [letter for letter in found if letter.publisher == self.publisher]
        words = dict.fromkeys(self.text.casefold().split())
        # Each word takes a look at all letters. To leave some out would find more than was asked.
        if len(words) > WORDS_MAX:
            return []
        for word in words:
            found = _containing(found, word, texts)
        return _of_age(found, self.age, now.timestamp())


def _of_age(letters: list[IndexedLetter], age: Age, now: float) -> list[IndexedLetter]:
    if age in _YOUNGER:
        return [letter for letter in letters if letter.since >= now - _YOUNGER[age]]
    if age in _OLDER:
        return [letter for letter in letters if letter.since < now - _OLDER[age]]
    return letters


def texts_of(letters: Iterable[IndexedLetter]) -> set[str]:
    """What letters say of themselves besides their ids: few texts, which many of them share."""
    return {
        text
        for letter in letters
        for text in (letter.detail, letter.project, letter.code, letter.type, letter.publisher)
    }


def _containing(
    letters: list[IndexedLetter], word: str, texts: Collection[str]
) -> list[IndexedLetter]:
    """The letters with a word in one of their texts, each of which is searched once."""
    hits = {text for text in texts if word in text.casefold()}
    digest = _digest_in(word)
    return [
        letter
        for letter in letters
        if letter.detail in hits
        or letter.project in hits
        or letter.code in hits
        or letter.type in hits
        or letter.publisher in hits
        or word in letter.message_id.casefold()
        or letter.digest == digest
    ]


def _digest_in(word: str) -> int | None:
    try:
        return digest_number(word)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class DeadQuery:
    """Which letters to show, and in which order."""

    filter: DeadFilter = field(default_factory=DeadFilter)
    sort: Sort = "since"
    descending: bool = True
    page: int = 1


@dataclass(frozen=True, slots=True)
class QueueLetters:
    """The letters of one queue when it was last read.

    Attributes:
        letters: At most `LETTERS_MAX`, the oldest first.
        count: How many there were.
    """

    queue: str
    letters: tuple[IndexedLetter, ...] = ()
    count: int = 0
    as_of: datetime | None = None


class DeadIndex:
    """The letters of all queues. It never changes: a queue that is read again makes a new one."""

    def __init__(self, queues: Iterable[QueueLetters] = ()) -> None:
        self.queues = {name: QueueLetters(name) for name in DEAD_QUEUES}
        self.queues |= {queue.queue: queue for queue in queues}
        self.letters = [letter for queue in self.queues.values() for letter in queue.letters]
        self._sorted: dict[Sort, list[IndexedLetter]] = {}
        self._texts: set[str] | None = None
        self._selections: dict[DeadQuery, list[IndexedLetter]] = {}
        times = [queue.as_of for queue in self.queues.values()]
        known = [at for at in times if at is not None]
        self.as_of = min(known) if len(known) == len(times) else None
        self.counts = _counts(self.letters)

    def with_queue(self, queue: QueueLetters) -> "DeadIndex":
        """The index after one queue was read again."""
        return DeadIndex((self.queues | {queue.queue: queue}).values())

    def with_empty(self, queues: Iterable[str], at: datetime) -> "DeadIndex":
        """The index after these queues, which were read as empty, were seen to be so still."""
        return DeadIndex(
            (self.queues | {name: QueueLetters(name, (), 0, at) for name in queues}).values()
        )

    @property
    def total(self) -> int:
        """How many letters there were, also those that are not kept."""
        return sum(queue.count for queue in self.queues.values())

    @property
    def is_complete(self) -> bool:
        """Whether all letters are kept."""
        return self.as_of is not None and len(self.letters) == self.total

    def find(self, queue: str, digest: int) -> list[IndexedLetter]:
        """The letter with this digest; several if there are identical copies."""
        known = self.queues.get(queue)
        return [letter for letter in known.letters if letter.digest == digest] if known else []

    def select(self, query: DeadQuery, now: datetime) -> Sequence[IndexedLetter]:
        """The letters that match, in the order of the query."""
        # Pages of one query share a selection; one by age ends with the minute.
        key = replace(query, page=round(now.timestamp() / 60) if query.filter.age else 0)
        if key not in self._selections:
            while len(self._selections) >= _CACHED_SELECTIONS:
                del self._selections[next(iter(self._selections))]
            ordered = self._order(query.sort)
            if query.filter.text and self._texts is None:
                self._texts = texts_of(self.letters)
            self._selections[key] = query.filter.matching(
                reversed(ordered) if query.descending else ordered, now, self._texts or ()
            )
        return self._selections[key]

    def page(self, query: DeadQuery, now: datetime) -> Page[IndexedLetter]:
        """One page of them."""
        return page_of(
            self.select(query, now),
            query.page,
            PAGE_SIZE,
            total=len(self.letters),
            as_of=self.as_of,
            is_complete=self.is_complete,
        )

    def _order(self, sort: Sort) -> list[IndexedLetter]:
        if sort not in self._sorted:
            by_age = self._sorted.get("since") or sorted(self.letters, key=_SORT_KEYS["since"])
            self._sorted["since"] = by_age
            if sort != "since":
                self._sorted[sort] = sorted(by_age, key=_SORT_KEYS[sort])
        return self._sorted[sort]

    def summary(self) -> DeadSummary | None:
        """What other pages show of it; None before all queues were read."""
        if self.as_of is None:
            return None
        return DeadSummary(self.counts, self.total, self.as_of, self.is_complete)


def _counts(letters: Sequence[IndexedLetter]) -> tuple[DeadCount, ...]:
    """How many letters each queue has of each code, the most first."""
    counted = Counter((letter.queue, letter.code) for letter in letters)
    newest: dict[tuple[str, str], float] = {}
    for letter in letters:
        key = (letter.queue, letter.code)
        if letter.since > newest.get(key, 0.0):
            newest[key] = letter.since
    return tuple(
        DeadCount(queue, code or NO_CODE, count, instant(newest.get((queue, code))))
        for (queue, code), count in counted.most_common()
    )
