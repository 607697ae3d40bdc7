"""Which parts of the model changed, so that pages refresh themselves (SPEC 16.3).

A subscriber that is slow gets all topics since its last turn at once: nothing piles up.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Final, Literal

Topic = Literal["now", "projects", "sweeps", "master_keys", "dead", "queues", "workers", "audit"]
TOPICS: Final[frozenset[Topic]] = frozenset(
    ("now", "projects", "sweeps", "master_keys", "dead", "queues", "workers", "audit")
)

NOW: Final[Topic] = "now"


class _Subscriber:
    """The topics that one subscriber has not seen yet."""

    def __init__(self) -> None:
        self.topics: set[Topic] = set()
        self.changed = asyncio.Event()

    def add(self, topics: tuple[Topic, ...]) -> None:
        self.topics.update(topics)
        self.changed.set()


class Changes:
    """The topics that changed, for any number of subscribers.

    Attributes:
        version: Counts changes; what was computed at one version is valid until the next.
    """

    def __init__(self) -> None:
        self._subscribers: set[_Subscriber] = set()
        self._versions: dict[Topic, int] = {}
        self.version = 0

    def publish(self, *topics: Topic) -> None:
        """Note that something of these topics changed; *Now* shows a part of everything."""
        self.version += 1
        for topic in (*topics, NOW):
            self._versions[topic] = self.version
        for subscriber in self._subscribers:
            subscriber.add((*topics, NOW))

    def has_changed_since(self, version: int, topics: frozenset[Topic]) -> bool:
        """Whether something of these topics changed after this version."""
        return any(self._versions.get(topic, 0) > version for topic in topics)

    async def subscribe(self) -> AsyncGenerator[frozenset[Topic], None]:
        """The changed topics, for ever. Close it with `contextlib.aclosing`."""
        subscriber = _Subscriber()
        self._subscribers.add(subscriber)
        try:
            while True:
                await subscriber.changed.wait()
                topics = frozenset(subscriber.topics)
                subscriber.topics.clear()
                subscriber.changed.clear()
                yield topics
        finally:
            self._subscribers.discard(subscriber)

    @property
    def subscribers(self) -> int:
        """How many subscribers there are."""
        return len(self._subscribers)
