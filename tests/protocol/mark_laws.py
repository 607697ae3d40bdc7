"""What must hold of keyrings and their marks (SPEC 5.5). Shares no code with the workers.

A state of a keyring counts from the moment when its mark is the first of its serial on the stream.
What rests on a keyring before that, or on one that lost that race, violates the laws of
objects, events and evidence, for which such a state never was.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from keyturn.crypto import SignatureError
from keyturn.identifiers import KEYRINGS_PREFIX
from tests.protocol.waiters import EVENT_KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn.errors import CodedError
    from keyturn.messages import Event
    from keyturn.publisher.event_stream import StreamRecord
    from tests.protocol.process import Process

_VERIFY: Final = EVENT_KEY.verify_key()
_CODE: Final = "keyring_rolled_back"
# Above it, a mark is a thief's: no worker puts a keyring there (SPEC 5.5).
_LIMIT: Final = 2**47


class MarkLaws:
    """The marks of one stream.

    Args:
        violated: Takes what is wrong.
        count: Called with project, digest and mark, once a state of its keyring counts.
    """

    def __init__(
        self, violated: Callable[[str], None], count: Callable[[str, str, Any], None]
    ) -> None:
        self._violated = violated
        self._count = count
        # By project: the serial and digest of each state that counts, and when it began to.
        self.states: dict[str, list[tuple[int, str, float]]] = defaultdict(list)
        self._received: dict[tuple[Process, str], int] = {}
        # Projects whose keyring a bucket writer, or a test, has touched.
        self.touched: set[str] = set()

    def appended(self, record: StreamRecord, now_s: float) -> None:
        """The stream has one more message."""
        mark = _read(record)
        if mark is None:
            return
        project, serial, digest = mark["project"], mark["serial"], mark["digest"]
        states = self.states[project]
        if not states or serial > states[-1][0]:
            states.append((serial, digest, now_s))
            self._count(project, digest, mark)

    def received(self, process: Process, record: StreamRecord) -> None:
        """A process has received a message of the stream."""
        mark = _read(record)
        if mark is None:
            return
        rows = self.states[mark["project"]]
        place = next(
            (n for n, row in enumerate(rows) if row[:2] == (mark["serial"], mark["digest"])), 0
        )
        at = (process, mark["project"])
        self._received[at] = max(place, self._received.get(at, 0))

    def known(self, process: Process, now_s: float) -> dict[str, int]:
        """By project, the place of the first state that a process may use for what begins now.

        None below a mark that it received, and none that a higher mark contradicts for longer than
        it may be current without having received it.
        """
        places = {}
        for project, states in self.states.items():
            late = [n for n, (*_, at_s) in enumerate(states) if now_s - at_s > process.lease_s]
            received = self._received.get((process, project), 0)
            places[project] = max([received, *late[-1:]])
        return places

    # False alarms.

    def put_off(self, error: CodedError, project: str) -> None:
        """A message failed for the time being."""
        if type(error).__name__ in ("KeyringContradictedError", "KeyringRemovedError"):
            self._check_alarm(project, f"put off: {error}")

    def published(self, event: Event) -> None:
        """An event was published."""
        if getattr(event, "code", None) == _CODE:
            self._check_alarm(str(event.project), f"published as {event.type}")

    def _check_alarm(self, project: str, how: str) -> None:
        # A first keyring has no mark while the worker that put it stalls.
        if project not in self.touched and self.states[project]:
            self._violated(f"a false alarm about the keyring of {project} was {how}")


def project_of(s3_key: str) -> str:
    """The project of a keyring."""
    return s3_key.removeprefix(KEYRINGS_PREFIX).removesuffix(".json")


def _read(record: StreamRecord) -> Any:
    """A mark that a worker wrote; None otherwise."""
    try:
        _VERIFY.verify_mark("test", record.body, record.signature)
    except SignatureError:
        return None
    document = json.loads(record.body)
    if document["type"] != "keyring.marked":
        return None
    is_bounded = max(document["serial"], document["generation"]) < _LIMIT
    return document if is_bounded and document["at"] >= "1970" else None
