"""The files of evidence that were read, by project (SPEC 15.1, 16.2). Pure.

They are requested when a person opens a project. Memory is bounded: those that were read longest
ago are dropped.
"""

from typing import Final

from keyturn.messages import EvidenceStatus, StatusReported
from keyturn_workers.console.model.paged_reports import PagedReport
from keyturn_workers.console.model.rows import EvidenceView

MAX_FILES: Final = 2000
MAX_PROJECTS: Final = 20


class EvidenceBook:
    """Evidence by project."""

    def __init__(self) -> None:
        self._projects: dict[str, PagedReport[EvidenceStatus]] = {}

    def apply(self, report: StatusReported) -> bool:
        """Take over a report of the view `evidence`."""
        held = self._projects.get(report.project)
        if held is None:
            held = self._projects[report.project] = PagedReport(MAX_FILES)
        changed = held.apply(report, report.evidence_files)
        while len(self._projects) > MAX_PROJECTS:
            del self._projects[min(self._projects, key=self._age)]
        return changed

    def _age(self, project: str) -> tuple[float, str]:
        as_of = self._projects[project].as_of
        return (as_of.timestamp() if as_of else 0.0, project)

    def of(self, project: str) -> PagedReport[EvidenceStatus] | None:
        """What was read of a project."""
        return self._projects.get(project)

    def view(self, project: str) -> EvidenceView:
        """What a page shows of a project's evidence."""
        held = self._projects.get(project)
        if held is None:
            return EvidenceView(project)
        chain = held.chain()
        return EvidenceView(project, chain.rows, chain.as_of, chain.is_complete)
