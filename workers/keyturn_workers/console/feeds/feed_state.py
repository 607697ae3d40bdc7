"""The state of one source, as pages show it: connected, caught up, or why not (SPEC 16.2).

A stream is being read if its reader has attached and the broker can be reached now. `follow` waits
out lost connections by itself. So a loss shows first in the state of the broker's connection, and
then in each failed attempt: the broker may be up, but refuse this reader.
"""

from dataclasses import replace
from datetime import datetime

from keyturn_workers.console.model import Feed, FeedName, Model


class FeedState:
    """Keeps the model's `Feed` of one source.

    Args:
        name: Of the source.
        model: Holds the state.
    """

    def __init__(self, name: FeedName, model: Model) -> None:
        self._model = model
        self._feed = Feed(name, since=model.now())
        # Changes with each message. Copying the feed each time would cost more than reading it.
        self._as_of: datetime | None = None
        self._refused = 0
        self._is_attached = False
        self._is_broker_up = False
        self._own_problem: str | None = None
        self._broker_problem: str | None = None

    @property
    def is_connected(self) -> bool:
        """Whether it is being read."""
        return self._feed.is_connected

    @property
    def behind(self) -> datetime | None:
        """Of the history: how far back it was read."""
        return self._feed.behind

    def attached(self) -> None:
        """Its reader reads."""
        self._is_attached, self._own_problem = True, None
        self._update()

    def failed(self, problem: str) -> None:
        """Its reader cannot read, and tries again."""
        self._is_attached, self._own_problem = False, problem
        self._update()

    def note_problem(self, problem: str | None) -> None:
        """Note why the reader cannot read, or that it reads again (None)."""
        if problem is None:
            self.attached()
        else:
            self.failed(problem)

    def broker(self, problem: str | None) -> None:
        """The broker cannot be reached, or can (None)."""
        self._is_broker_up, self._broker_problem = problem is None, problem
        self._update()

    def caught_up(self) -> None:
        """It was read up to now."""
        self._set(replace(self._feed, is_caught_up=True))

    def seen(self, at: datetime | None, refused: int) -> None:
        """A message was read; `at` is its time if it was signed."""
        if at is not None and (self._as_of is None or at > self._as_of):
            # No clock that is ahead may make this look up to date for longer than it is.
            self._as_of = min(at, self._model.now())
        self._refused = refused

    def reached(self, behind: datetime | None, progress: float | None) -> None:
        """Of the history: how far it was read."""
        self._set(replace(self._feed, behind=behind, progress=progress))

    def publish(self) -> None:
        """Let the model have what `seen` noted."""
        self._set(self._feed)

    def _update(self) -> None:
        is_connected = self._is_attached and self._is_broker_up
        problem = None if is_connected else self._broker_problem or self._own_problem
        since = self._feed.since
        if is_connected != self._feed.is_connected:
            since = self._model.now()
        self._set(replace(self._feed, is_connected=is_connected, problem=problem, since=since))

    def _set(self, feed: Feed) -> None:
        self._feed = replace(feed, as_of=self._as_of, refused=self._refused)
        self._model.set_feed(self._feed)
