"""The reports that the page of a sweep needs while it is looked at (SPEC 16.1)."""

from starlette.requests import Request

from keyturn_workers.console.actions.rules import options_of
from keyturn_workers.console.model.rows import SweepView
from keyturn_workers.console.web.context import context_of
from keyturn_workers.console.web.reports import reports_of


def want_sweep(request: Request, project: str, sweep_id: str, view: SweepView | None) -> None:
    """Ask for what the page of a sweep lacks: its record, its failures, its evidence."""
    reports, feeds = reports_of(request), context_of(request).feeds
    if view is None or options_of(view.row) is None or view.row.is_running:
        reports.want(("sweep", project, sweep_id), lambda: feeds.request_sweep(project, sweep_id))
    if view is None:
        return
    row = view.row
    if _lacks_failures(view):
        reports.want(
            ("failures", project, sweep_id), lambda: feeds.request_failures(project, sweep_id)
        )
    held = context_of(request).model.evidence(project).files
    if row.evidence is not None and not any(file.digest == row.evidence for file in held):
        reports.want(("evidence", project), lambda: feeds.request_evidence(project))


def _lacks_failures(view: SweepView) -> bool:
    """Whether failures are known to exist that were not read, or not since the sweep ended."""
    row = view.row
    if row.counts is None or not row.counts.failed or view.failures_truncated:
        return False
    if not view.failures_complete or len(view.failures) < row.counts.failed:
        return True
    read_at = view.failures_as_of
    return row.ended_at is not None and (read_at is None or read_at < row.ended_at)
