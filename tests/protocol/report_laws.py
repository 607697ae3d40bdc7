"""Checks what control workers report to consoles: it must be so (SPEC 16.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from keyturn_workers.worker.grants import Grant
    from tests.protocol.oracle import Project
    from tests.protocol.waiters import SentRequest, Waiter


class ReportLaws:
    """Checks reports of status.

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
        # How many states each project had when a request was signed.
        self._states_at: dict[tuple[str, str], dict[str, int]] = {}

    def sent(self, request: SentRequest) -> None:
        """A publisher signed a request."""
        at = {name: len(project.states) for name, project in self._projects.items()}
        self._states_at.setdefault((request.publisher, request.digest), at)

    # What workers publish.

    def published(self, event: Any, request: SentRequest | None) -> None:
        """A worker answered a request."""
        if request is None:
            return
        if event.type == "status.reported":
            self._check_rows(event, request, "published of")

    def _check_rows(self, event: Any, request: SentRequest, how: str) -> None:
        about = f"status.reported {how} {request.publisher}'s request"
        if (event.project, event.view) != (request.project, request.document["view"]):
            self._violated(f"{about} reports something else")
        for row in (*(event.projects or ()), *(event.sweeps or ()), *(event.failures or ())):
            if request.project not in ("*", row.project):
                self._violated(f"{about} has rows of {row.project}")
        for row in event.projects or ():
            is_known = row.project in self._touched or self._latest_state(row) is not None
            if row.code is None and not is_known:
                self._violated(f"{about} has a state of {row.project} that never was")
        for row in event.sweeps or ():
            over = row.status in ("done", "failed")
            if over and (row.sweep_id, row.project) not in self._ended_sweeps:
                self._violated(f"{about} has the end of a sweep that runs")

    def _latest_state(self, row: Any) -> int | None:
        """The last place of a row among the states of its project."""
        project = self._projects.get(row.project)
        found = [] if project is None else [*enumerate(project.states)]
        wraps = (row.generation, row.kek_id, row.master_key)
        places = [n for n, each in found if (each.wraps, each.plaintext) == (wraps, row.plaintext)]
        return places[-1] if places else None

    # What is believed.

    def believed(self, waiter: Waiter, event: Any, tries: Iterable[SentRequest]) -> None:
        """A waiter believed an answer: to one of these attempts of its request."""
        tries = [*tries]
        about = f"{event.type} believed by {waiter}"
        if event.project != waiter.request.project:
            self._violated(f"{about} is about another project")
        if event.view not in {request.document["view"] for request in tries}:
            self._violated(f"{about} is about something else")
        states_at = [self._states_at[request.publisher, request.digest] for request in tries]
        for row in event.projects or ():
            at = self._latest_state(row)
            earliest = min(of_try.get(row.project, 0) for of_try in states_at)
            if at is not None and at + 1 < earliest and row.project not in self._touched:
                self._violated(f"{about} has a state from before it was requested")
