"""The reports that the page of a sweep needs while it is looked at (SPEC 16.1)."""

from starlette.requests import Request

from keyturn_workers.console.model.rows import SweepView
from keyturn_workers.console.web.context import context_of
from keyturn_workers.console.web.reports import reports_of


def want_sweep(request: Request, project: str, sweep_id: str, view: SweepView | None) -> None:
    """Ask for what the page of a sweep lacks: its record, its failures, its evidence."""
    reports, feeds = reports_of(request), context_of(request).feeds
    if view is None or view.row.dry_run is None or view.row.is_running:
        reports.want(("sweep", project, sweep_id), lambda: feeds.request_sweep(project, sweep_id))
    if view is None:
        return
    row = view.row
    has_failures = row.counts is not None and row.counts.failed > 0
    if has_failures and not (view.failures_complete or view.failures_truncated):
        reports.want(
            ("failures", project, sweep_id), lambda: feeds.request_failures(project, sweep_id)
        )
    held = context_of(request).model.evidence(project).files
    if row.evidence is not None and not any(file.digest == row.evidence for file in held):
        reports.want(("evidence", project), lambda: feeds.request_evidence(project))
