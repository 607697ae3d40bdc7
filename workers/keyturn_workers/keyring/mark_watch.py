"""The periodic scan of all keyrings: each is marked, or reported as rolled back (SPEC 5.5).

Uploads and rotations compare the keyrings that they read. An unused project would keep a keyring
that was rolled back, or that no worker has marked since an upgrade. So sweep workers compare all
keyrings several times an hour, and read only those that have changed.
"""

from collections.abc import Callable, Collection
from typing import Final

import structlog

from keyturn.errors import MarksUnavailableError
from keyturn_workers.keyring.marks import Mark, MarkState, Witness
from keyturn_workers.keyring.model import Keyring

# The others are counted. After the loss of a broker these are all projects.
_MAX_LOGGED: Final = 100

_log = structlog.get_logger()


class MarkWatch:
    """Compares all keyrings with their marks, one scan after another.

    Args:
        witness: The marks.
        report: Takes, at the end of each scan, how many keyrings no worker may use.
    """

    def __init__(self, witness: Witness, report: Callable[[int], None]) -> None:
        self._witness = witness
        self._report = report
        self._since = 0
        self._before: dict[str, MarkState] = {}
        self._found: dict[str, MarkState] = {}
        self._serials: dict[str, int] = {}

    def begin(self) -> None:
        """Begin a scan. What is compared in it was read, or listed, after this."""
        self._since = self._witness.table.received
        self._found, self._serials = {}, {}

    def is_settled(self, project: str, mark: Mark) -> bool:
        """Compare an unchanged keyring; False if it must be read, to be marked or compared."""
        state = self._witness.table.find_state(project, mark, self._since)
        self._note(project, state, mark)
        return state not in (None, MarkState.UNMARKED)

    async def compare(self, keyring: Keyring, mark: Mark) -> None:
        """Compare a keyring that was just read, and publish its mark if it lacks one."""
        project = keyring.project
        state = self._witness.table.find_state(project, mark, self._since)
        self._note(project, state, mark)
        if state is MarkState.UNMARKED:
            try:
                self._witness.check_current(project)
                await self._witness.publish(keyring, mark)
            except MarksUnavailableError as exc:
                # It stays unmarked, so the next scan reads it again.
                _log.warning("keyring not marked", project=project, detail=exc.detail)

    def end(self, listed: Collection[str]) -> None:
        """End a scan of all keyrings; `listed` are the projects that have one."""
        table = self._witness.table
        for project in table.projects():
            if project not in listed:
                self._note(project, table.find_state(project, None, self._since), None)
        new = [project for project, state in self._found.items() if self._is_new(project, state)]
        for project in sorted(new)[:_MAX_LOGGED]:
            known = table.find(project) or table.find_lost(project)
            _log.error(
                "keyring rolled back",
                project=project,
                state=self._found[project].value,
                serial=self._serials.get(project),
                mark_serial=None if known is None else known.serial,
            )
        if len(new) > _MAX_LOGGED:
            _log.error("more keyrings rolled back", projects=len(new) - _MAX_LOGGED)
        self._before = self._found
        self._report(len(self._found))

    def _is_new(self, project: str, state: MarkState) -> bool:
        return self._before.get(project) is not state

    def _note(self, project: str, state: MarkState | None, mark: Mark | None) -> None:
        if state is not None and state.is_contradicted:
            self._found[project] = state
            if mark is not None:
                self._serials[project] = mark.serial
