"""Checks what control workers report and record for consoles: it must be so (SPEC 15.3, 16.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from keyturn.messages import AuditAction, AuditRecorded, DeadLettersAction
    from keyturn_workers.core.grants import Grant
    from tests.protocol.oracle import Project, State
    from tests.protocol.waiters import SentRequest, Waiter


ACTIONS: Final[dict[DeadLettersAction, AuditAction]] = {
    "replay": "dead_letter.replayed",
    "discard": "dead_letter.discarded",
}


@dataclass(frozen=True)
class Action:
    """What a person did to a dead letter, as the audit trail has it."""

    publisher: str
    actor: str
    action: str
    queue: str
    letter: str


class ReportLaws:
    """Checks reports of status, records of letters, and what is done to letters by them.

    Args:
        violated: Takes what is wrong.
        grants: What each publisher may do.
        projects: What is known of each project.
        ended_sweeps: The sweeps that have ended, by id and project.
        touched: Projects whose keyring a bucket writer has touched: reports show what is there.
    """

    def __init__(
        self,
        violated: Callable[[str], None],
        grants: Mapping[str, Grant],
        projects: Mapping[str, Project],
        ended_sweeps: set[tuple[str, str]],
        touched: set[str],
    ) -> None:
        self._touched = touched
        self._violated = violated
        self._grants = grants
        self._projects = projects
        self._ended_sweeps = ended_sweeps
        # All states that workers put, by project: even those that no mark names yet.
        self._put: dict[str, list[State]] = {}
        # How many states each project had when a request was signed.
        self._states_at: dict[tuple[str, str], dict[str, int]] = {}
        # Those that publishers may have recorded, and those that the broker has.
        self._requested: set[Action] = set()
        self._recorded: set[Action] = set()
        self.records: list[AuditRecorded] = []

    def sent(self, request: SentRequest) -> None:
        """A publisher signed a request."""
        at = {name: len(project.states) for name, project in self._projects.items()}
        self._states_at.setdefault((request.publisher, request.digest), at)
        is_allowed = self._grants[request.publisher].allows(request.kind, request.project)
        if request.kind == "dead_letters.requested" and is_allowed:
            self._requested.update(actions_of(request))

    # What workers do.

    def put(self, project: str, state: State) -> None:
        """A worker put a keyring."""
        self._put.setdefault(project, []).append(state)

    def published(self, event: Any, request: SentRequest | None) -> None:
        """A worker answered a request."""
        if request is None:
            return
        if event.type == "status.reported":
            self._check_rows(event, request, "published of")
        elif event.type == "dead_letters.moved" and event.moved > self.recorded_of(request):
            self._violated("dead_letters.moved was published, and not every letter was recorded")

    def recorded(self, record: AuditRecorded) -> None:
        """The broker has a record of a letter: its publisher must have requested it."""
        action = Action(
            str(record.publisher),
            record.actor,
            record.action,
            str(record.queue),
            str(record.request),
        )
        if action not in self._requested:
            self._violated(f"{record.action} was recorded, and {record.publisher} may not do it")
        self._recorded.add(action)
        self.records.append(record)

    def recorded_of(self, request: SentRequest) -> int:
        """How many letters of a request the broker has a record of."""
        return len(self._recorded & actions_of(request))

    def _check_rows(self, event: Any, request: SentRequest, how: str) -> None:
        about = f"status.reported {how} {request.publisher}'s request"
        if (event.project, event.view) != (request.project, request.document["view"]):
            self._violated(f"{about} reports something else")
        for row in (*(event.projects or ()), *(event.sweeps or ()), *(event.failures or ())):
            if request.project not in ("*", row.project):
                self._violated(f"{about} has rows of {row.project}")
        for row in event.projects or ():
            is_known = self._latest_state(row) is not None or self._was_put(row)
            if row.code is None and not is_known and row.project not in self._touched:
                self._violated(f"{about} has a state of {row.project} that never was")
        for row in event.sweeps or ():
            over = row.status in ("done", "failed")
            if over and (row.sweep_id, row.project) not in self._ended_sweeps:
                self._violated(f"{about} has the end of a sweep that runs")

    def _latest_state(self, row: Any) -> int | None:
        """The last place of a row among the marked states of its project."""
        project = self._projects.get(row.project)
        found = [] if project is None else [*enumerate(project.states)]
        places = [n for n, each in found if _shows(row, each)]
        return places[-1] if places else None

    def _was_put(self, row: Any) -> bool:
        """Whether a worker put this state: a report may show it before its mark is published."""
        return any(_shows(row, each) for each in self._put.get(row.project, ()))

    # What is believed.

    def believed(self, waiter: Waiter, event: Any, tries: Iterable[SentRequest]) -> None:
        """A waiter believed an answer: to one of these attempts of its request."""
        tries = [*tries]
        about = f"{event.type} believed by {waiter}"
        if event.type == "dead_letters.moved":
            if event.moved > max(map(self.recorded_of, tries), default=0):
                self._violated(f"{about}, and not every letter was recorded")
            return
        if event.project != waiter.request.project:
            self._violated(f"{about} is about another project")
        if event.view not in {request.document["view"] for request in tries}:
            self._violated(f"{about} is about something else")
        states_at = [self._states_at[request.publisher, request.digest] for request in tries]
        if event.project == "*":  # the index may be two seconds old, as `at` says
            return
        for row in event.projects or ():
            at = self._latest_state(row)
            earliest = min(of_try.get(row.project, 0) for of_try in states_at)
            if at is not None and at + 1 < earliest and row.project not in self._touched:
                self._violated(f"{about} has a state from before it was requested")

    # What is done for consoles.

    def moved(self, action: Action) -> None:
        """A worker moved a letter."""
        if action not in self._recorded:
            self._violated(f"{action.action} was done, and not recorded before")


def _shows(row: Any, state: State) -> bool:
    shown = (row.generation, row.kek_id, row.master_key, row.plaintext)
    return shown == (*state.wraps, state.plaintext)


def actions_of(request: SentRequest) -> set[Action]:
    """What the audit trail is to have of a request to move dead letters."""
    named = request.document
    action = ACTIONS[named["action"]]
    return {
        Action(request.publisher, named["actor"], action, named["queue"], letter)
        for letter in named["letters"]
    }
