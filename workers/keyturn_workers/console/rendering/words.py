"""Addresses of pages, and words for sweeps, records and codes (SPEC 8.6, 16.2). Pure.

Addresses are typed or bookmarked, so malformed values fall back to defaults.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar, cast
from urllib.parse import quote, urlencode

from markupsafe import Markup
from starlette.datastructures import QueryParams

from keyturn.counts import Counts
from keyturn.errors import CustomerKeyRefusedError
from keyturn.identifiers import ALL_PROJECTS, ALL_PROJECTS_FOLDER, is_project
from keyturn.messages.audit import DONE, STARTED
from keyturn.messages.status import AttentionLink, AuditStatus, SweepStatus
from keyturn.progress import WHY_WAIT, Progress
from keyturn_workers.console.rendering.text import duration, moment, number, visible
from keyturn_workers.core.wording import plural

_T = TypeVar("_T", bound=str)
_MAX_TEXT: Final = 200
_MAX_PAGE: Final = 1_000_000
_PAGES: Final = {
    "queues": "/queues",
    "dead_letters": "/dead",
    "audit": "/audit",
    "projects": "/projects",
    "sweeps": "/sweeps",
    "master_keys": "/keys",
}
AUDIT_ACTIONS: Final[dict[str, str]] = {
    "request.served": "Request served",
    "request.refused": "Request refused",
    "kek.derived": "Key derived from a master key",
    "object.opened_as_operator": "Object opened with a master key",
    "dead_letter.replayed": "Dead letter replayed",
    "dead_letter.discarded": "Dead letter discarded",
    "project_kek.exported": "Project's key exported",
    "master_key.imported": "Master key imported",
}
# What a person did, what they tried if it was refused, and with or to what.
_ACTS: Final = {
    "enroll.requested": ("enrolled", "enroll", "{project}"),
    "rotation.requested": ("rotated", "rotate", "{project}"),
    "sweep.requested": ("started", "start", "a sweep of {project}"),
    "delete.requested": ("deleted", "delete", "{object} of {project}"),
    "upload.requested": ("uploaded", "upload", "{object} of {project}"),
    "recover.requested": ("recovered", "recover", "the keyring of {project}"),
    "erase.requested": ("requested", "request", "the erasure of {project}"),
    "status.requested": ("looked at", "look at", "the state of {project}"),
    "dead_letters.requested": ("moved", "move", "dead letters"),
    "kek.derived": ("derived", "derive", "a key of {project} from a master key"),
    "object.opened_as_operator": ("opened", "open", "{object} of {project} with a master key"),
    "dead_letter.replayed": ("replayed", "replay", "a dead letter of {project}"),
    "dead_letter.discarded": ("discarded", "discard", "a dead letter of {project}"),
    "project_kek.exported": ("exported", "export", "the key of {project}"),
    "master_key.imported": ("imported", "import", "a master key"),
}
MOVED: Final = {"dead_letter.replayed": "Replayed", "dead_letter.discarded": "Discarded"}
"""The fate of a dead letter, by the recorded action."""
_COUNT_WORDS: Final = {
    "objects": ("Objects", "object keys of the last pass, other than foreign names"),
    "rewrapped": ("Rewrapped", "objects that got new wraps; their ciphertext did not change"),
    "current": ("Current", "objects at the desired state, as of the last pass"),
    "plaintext": ("Plaintext", "objects without encryption, which the project allows"),
    "encrypted": ("Encrypted", "plaintext objects that were encrypted in place"),
    "deleted": ("Deleted", "tombstones: keys of deleted objects, which stay taken"),
    "foreign": ("Foreign", "names that no object can have, such as folder markers; left alone"),
    "failed": ("Failed", "objects that could not be brought to the desired state; see Failures"),
    "noncurrent_stale": (
        "Old versions",
        "noncurrent versions that still hold wraps under an earlier key",
    ),
}


@dataclass(frozen=True, slots=True)
class Count:
    """One count of SPEC 8.6 in words."""

    title: str
    value: int
    meaning: str


@dataclass(frozen=True, slots=True)
class Badge:
    """A state as a word and a kind of badge: ok, busy, warn, bad or off."""

    kind: str
    word: str


@dataclass(frozen=True, slots=True)
class SweepProgress:
    """The progress of a sweep. `fraction` is for a bar; without it only text is shown."""

    text: str
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of a sweep; `state` is done, next or later."""

    title: str
    state: str
    at: datetime | None
    note: str = ""


def project_path(project: str) -> str:
    """Return the page of a project."""
    return f"/projects/{quote(project, safe='')}"


def sweep_path(project: str, sweep_id: str) -> str:
    """Return the page of a sweep or rotation."""
    folder = ALL_PROJECTS_FOLDER if project == ALL_PROJECTS else project
    return f"/sweeps/{quote(folder, safe='')}/{quote(sweep_id, safe='')}"


def attention_link(link: AttentionLink) -> str:
    """Return the page about a problem that needs attention."""
    if link.page == "project" and link.project is not None:
        return project_path(link.project)
    if link.page == "sweep" and link.project is not None and link.sweep_id is not None:
        return sweep_path(link.project, link.sweep_id)
    path, chosen = _PAGES.get(link.page, "/"), dict(link.filter or {})
    order = chosen.pop("order", "")
    if order:
        chosen |= {"sort": order.removeprefix("-"), "order": "desc" if order[0] == "-" else ""}
    return address(path, QueryParams(chosen))


def address(path: str, params: QueryParams, **changed: object) -> str:
    """Return a path with these parameters, without the empty ones."""
    kept = {name: value for name, value in params.items() if name not in changed}
    named = kept | {name: str(value) for name, value in changed.items() if value is not None}
    query = urlencode({name: value for name, value in named.items() if value})
    return f"{path}?{query}" if query else path


def text_of(params: QueryParams, name: str) -> str:
    """Return the text that a person typed."""
    return params.get(name, "").strip()[:_MAX_TEXT]


def page_of(params: QueryParams, name: str = "page") -> int:
    """Return the number of a page, from 1."""
    value = params.get(name, "")
    if not (value.isascii() and value.isdigit()):
        return 1
    return min(max(int(value[:9]), 1), _MAX_PAGE)


def choice_of(params: QueryParams, name: str, choices: Sequence[_T], default: _T) -> _T:
    """Return one of the allowed words."""
    value = params.get(name)
    return cast("_T", value) if value in choices else default


def project_of_segment(segment: str) -> str | None:
    """Return the project, or `*`, in a segment of a path; None if it is invalid."""
    if segment == ALL_PROJECTS_FOLDER:
        return ALL_PROJECTS
    return segment if is_project(segment) else None


def project_words(project: str) -> str:
    """Return a project's name for people."""
    return "all projects" if project == ALL_PROJECTS else project


def audit_action(action: str) -> str:
    """Return an audit record's action in words."""
    return AUDIT_ACTIONS.get(action, action)


def audit_sentence(row: AuditStatus) -> Markup:
    """Return who did what: `kim rotated bulk to generation 4`."""
    is_request = row.action in ("request.served", "request.refused")
    named = row.request_type or "a request" if is_request else row.action
    did, tried, what = _ACTS.get(named, (f"sent {named}", f"send {named}", ""))
    verb = did if row.outcome in (DONE, STARTED) else f"tried to {tried}"
    project: object = visible(row.project) if row.project else ""
    if row.project == ALL_PROJECTS:
        project = project_words(row.project)
    elif row.project:
        project = Markup('<a href="{}">{}</a>').format(project_path(row.project), project)
    else:
        what = what.replace(" of {project}", "")
    key = "objects" if row.object_key is None else visible(row.object_key, 300)
    objects = plural(row.object_count, "object") if row.object_count else key
    if row.generation is not None:
        what += f" to generation {row.generation}"
    said = Markup(what).format(project=project, object=objects)  # noqa: S704 - from the table
    return Markup("<strong>{}</strong> {} {}").format(visible(row.actor, 200), verb, said)


def audit_outcome(row: AuditStatus) -> Badge:
    """Return the outcome. A command is recorded before it acts; after that, only its failure."""
    if row.outcome not in (DONE, STARTED):
        return Badge("bad", "Refused")
    if row.action in MOVED:
        return Badge("ok", MOVED[row.action])
    return Badge("ok", "Done") if row.outcome == DONE else Badge("off", "Attempted")


def key_wait_words(code: str) -> str:
    """Return in a word why a customer key gives no secret."""
    return "refused" if code == CustomerKeyRefusedError.code else "unavailable"


def sweep_kind(row: SweepStatus) -> str:
    """Return the kind of a sweep."""
    if row.kind == "erasure":
        return "Erasure"
    if row.kind == "rotation":
        return "Rotation"
    return "Master key sweep" if row.master_key is not None else "Sweep"


def sweep_badge(row: SweepStatus) -> Badge:
    """Return the state of a sweep."""
    if row.status == "running":
        return Badge("busy", "Running")
    if row.status == "failed":
        return Badge("bad", "Refused" if row.kind == "erasure" else "Failed")
    if row.status is None:
        return Badge("bad", "Unreadable")
    if row.clean:
        return Badge("ok", "Erased" if row.kind == "erasure" else "Clean")
    failed = 0 if row.counts is None else row.counts.failed
    return Badge("warn", f"Not clean, {number(failed)} failed" if failed else "Not clean")


def sweep_progress(row: SweepStatus, now: datetime) -> SweepProgress:
    """Return the progress of a sweep."""
    if row.kind == "erasure":
        is_running = row.status == "running"
        return SweepProgress("Asking the stores of the customer keys" if is_running else "—")
    if row.status != "running":
        return SweepProgress("—" if row.counts is None else _counted(row.counts))
    known = row.progress
    if known is None:
        return SweepProgress("not counted yet")
    waits_for_key = "" if known.waits_for_key is None else ", waiting for the customer key"
    if known.phase == "waiting":
        awaited = "customer key" if waits_for_key else "next round" if row.waits_for_round else ""
        return SweepProgress(f"Waiting for the {awaited}" if awaited else "Waiting for a worker")
    unit = "project" if row.project == ALL_PROJECTS else "object"
    verb = "Proving" if known.phase == "proving" else "Rewrapping"
    if known.total is None:
        return SweepProgress(f"{verb}, {plural(known.done, unit)} so far{waits_for_key}")
    of_total = f"{number(known.done)} of {plural(known.total, unit)}"
    text = f"{verb} {of_total}{waits_for_key}"
    # Before that phase, rewrapping takes longer than the leases.
    left_s = known.seconds_to_proof(now) if known.phase == "proving" else None
    if left_s is not None and not waits_for_key:
        state = f"Proved {of_total}" if known.done else "All rewrapped"
        text = f"{state}; waiting {duration(left_s)}, {WHY_WAIT}"
    return SweepProgress(text, known.fraction)


def _counted(counts: Counts) -> str:
    """Return the number of objects as on the project's page, which counts no tombstones."""
    objects = plural(counts.objects - counts.deleted, "object")
    return f"{objects}, {number(counts.deleted)} deleted" if counts.deleted else objects


def sweep_moments(row: SweepStatus, now: datetime) -> tuple[Moment, ...]:
    """Return the moments from the request to the proof: past, next and later ones."""
    known = row.progress or Progress(phase="waiting")
    has_ended = row.status not in ("running", None)
    # A failed sweep may have ended before any of these; an older record has none of them.
    is_past = row.status == "done"
    ended_at = moment(row.ended_at)
    rewrapped_at = moment(known.all_rewrapped_at)
    # Before the rewrapping ends, this moment moves with the pauses of pages.
    possible_at = None if rewrapped_at is None else moment(known.proof_possible_at)
    first_at = moment(known.first_rewrap_at)
    is_nothing_new = rewrapped_at is not None and first_at is None
    steps = [
        ("Requested", moment(row.requested_at or row.started_at), True, ""),
        (
            "First rewrap",
            first_at,
            first_at is not None or is_nothing_new or is_past,
            "nothing had to be rewrapped" if is_nothing_new else "",
        ),
        ("All rewrapped", rewrapped_at, rewrapped_at is not None or is_past, ""),
        (
            "Proof possible from",
            possible_at,
            is_past or (possible_at is not None and possible_at <= (ended_at or now)),
            "",
        ),
        (_end_title(row), ended_at if has_ended else None, has_ended, ""),
    ]
    if row.project == ALL_PROJECTS or row.kind == "erasure":
        # The moments in between belong to each project's part. An erasure rewraps nothing.
        steps = [steps[0], steps[-1]]
    if has_ended:
        return tuple(
            Moment(title, "done", at, note)
            if is_done
            else Moment(title, "later", None, "not reached")
            for title, at, is_done, note in steps
        )
    following = next((index for index, each in enumerate(steps) if not each[2]), len(steps))
    return tuple(
        Moment(title, "done" if is_done else "next" if index == following else "later", at, note)
        for index, (title, at, is_done, note) in enumerate(steps)
    )


def _end_title(row: SweepStatus) -> str:
    if row.kind == "erasure":
        return "Refused" if row.status == "failed" else "Erased"
    if row.status == "failed":
        return "Failed"
    return "Ended, not clean" if row.status == "done" and not row.clean else "Proven"


def sweep_counts(counts: Counts | None) -> tuple[Count, ...]:
    """Return the counts of SPEC 8.6, each with its meaning; empty before the first count."""
    if counts is None:
        return ()
    return tuple(
        Count(title, getattr(counts, name), meaning)
        for name, (title, meaning) in _COUNT_WORDS.items()
    )


def sweep_options(row: SweepStatus) -> tuple[str, ...]:
    """Return the options of a sweep, each as a phrase."""
    words = []
    if row.master_key is not None:
        words.append(f"master key {row.master_key}")
    if row.encrypt_plaintext:
        words.append("encrypt plaintext")
    if row.repair:
        words.append("repair: also use earlier keys of the project, and replace broken user wraps")
    return tuple(words)
