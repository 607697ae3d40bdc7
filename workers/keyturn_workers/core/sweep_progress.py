"""The progress of a sweep or a rotation, by its record (SPEC 8.6). Pure."""

from datetime import datetime

from keyturn.identifiers import format_time
from keyturn.progress import Progress
from keyturn_workers.core.sweep_record import AllRecord, Origin, ProjectRecord, Round, Walk


def current_round(record: ProjectRecord | AllRecord, origin: Origin) -> Round | Walk | None:
    """The running round, or walk, that answers an origin; None if the origin ended or waits."""
    current = record.round
    if current is None or not origin.is_open:
        return None
    # A rotation is answered by any round that proves its keyring.
    is_later_rotation = origin.kind == "rotation" and origin.options == current.options
    return current if is_later_rotation or origin.name in current.origins else None


def progress_of(record: ProjectRecord | AllRecord, origin: Origin) -> Progress:
    """The progress of an origin: its phase, counts, and the moments it passed."""
    end, current = origin.end, current_round(record, origin)
    if end is not None:
        return Progress(
            phase="ended",
            done=end.counts.objects,
            total=end.counts.objects,
            proof_possible_at=_text(end.proof_possible_at),
            first_rewrap_at=_text(end.first_rewrap_at),
            all_rewrapped_at=_text(end.all_rewrapped_at),
        )
    if isinstance(current, Walk):
        return Progress(phase="rewrapping", done=current.projects)
    if isinstance(record, AllRecord):
        return Progress(phase="waiting")
    if origin.kind == "erase":  # it asks the stores, and needs no secret
        return Progress(phase="waiting")
    waits_for_key = None if record.key_wait is None else record.key_wait.code
    if current is None:
        return Progress(phase="waiting", waits_for_key=waits_for_key)
    counts = current.counts
    is_rewrapped = current.all_rewrapped_at is not None
    keys = max(current.keys - counts.foreign, counts.objects)
    waits = [page.not_before for page in current.open_pages if page.not_before is not None]
    return Progress(
        phase="proving" if is_rewrapped else "rewrapping",
        done=current.proven.objects if is_rewrapped else counts.objects,
        total=keys if current.is_fully_paginated else None,
        proof_possible_at=_text(max([record.proof_after, *waits])),
        first_rewrap_at=_text(current.first_rewrap_at),
        all_rewrapped_at=_text(current.all_rewrapped_at),
        waits_for_key=waits_for_key,
    )


def _text(at: datetime | None) -> str | None:
    return None if at is None else format_time(at)
