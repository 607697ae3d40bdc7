"""What pages say about one sweep: kind, state, progress and counts in words (SPEC 8.6). Pure."""

from dataclasses import dataclass, replace
from typing import Final

from keyturn.identifiers import ALL_PROJECTS, ALL_PROJECTS_FOLDER, is_project
from keyturn.messages import COUNT_FIELDS
from keyturn_workers.console.model.rows import SweepCounts, SweepRef, SweepRow, SweepView
from keyturn_workers.console.web import links
from keyturn_workers.console.web.text import duration, number, rate

_COUNT_WORDS: Final = {
    "objects": ("Objects", "object keys of the last pass, other than foreign names"),
    "rewrapped": ("Rewrapped", "objects that got new wraps; their ciphertext did not change"),
    "current": ("Current", "objects at the desired state, as the last pass saw them"),
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

    name: str
    title: str
    value: int
    meaning: str


@dataclass(frozen=True, slots=True)
class Badge:
    """A state as a word and a kind of badge: ok, busy, warn, bad or off."""

    kind: str
    word: str


_BADGES: Final = {
    "requested": Badge("off", "Requested"),
    "running": Badge("busy", "Running"),
    "rejected": Badge("bad", "Refused"),
    "failed": Badge("bad", "Stopped"),
}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a sweep is. `done` and `of` are for a bar; without them only the text is known."""

    text: str
    done: float | None = None
    of: float | None = None


def project_of_segment(segment: str) -> str | None:
    """The project, or `*`, that a segment of a path names; None if it names none."""
    if segment == ALL_PROJECTS_FOLDER:
        return ALL_PROJECTS
    return segment if is_project(segment) else None


def sweep_path(project: str, sweep_id: str) -> str:
    """The page of one sweep."""
    return links.sweep_path(SweepRef(project, sweep_id))


def project_words(project: str) -> str:
    """A project for people."""
    return "all projects" if project == ALL_PROJECTS else project


def kind_words(row: SweepRow) -> str:
    """What kind of sweep it is."""
    if row.kind == "rotation":
        return "Rotation"
    return "Master key sweep" if row.master_key is not None else "Sweep"


def with_parts(view: SweepView) -> SweepRow:
    """The sweep; while it is one of all, with what its parts have done so far.

    Its own record is written only now and then, and counts nothing before the end.
    """
    row = view.row
    if row.project != ALL_PROJECTS or not row.is_running or not view.parts:
        return row
    ended = sum(not part.is_running for part in view.parts)
    counted = [part.counts for part in view.parts if part.counts is not None]
    sums = {name: sum(getattr(each, name) for each in counted) for name in COUNT_FIELDS}
    return replace(row, parts_ended=max(row.parts_ended or 0, ended), counts=SweepCounts(**sums))


def state_badge(row: SweepRow) -> Badge:
    """Its state."""
    if (badge := _BADGES.get(row.status)) is not None:
        return badge
    failed = row.counts.failed if row.counts is not None else 0
    if row.clean:
        return Badge("ok", "Clean")
    return Badge("warn", f"Not clean, {number(failed)} failed" if failed else "Not clean")


def progress(row: SweepRow) -> Progress:
    """How far it is."""
    if not row.is_running:
        done = row.counts.objects if row.counts is not None else None
        return Progress(f"{number(done)} objects" if done is not None else "—")
    if row.project == ALL_PROJECTS:
        ended = row.parts_ended
        return Progress("not counted yet" if ended is None else f"{number(ended)} projects done")
    done_objects, expected = row.objects_done, row.expected_objects
    if done_objects is None:
        return Progress("not counted yet")
    if not expected:
        return Progress(f"{number(done_objects)} objects done")
    done_objects = min(done_objects, float(expected))
    percent = int(done_objects * 100 / expected)
    text = f"{percent} %, {number(done_objects)} of {number(expected)} objects"
    return Progress(text, done_objects, float(expected))


def pace(row: SweepRow) -> str:
    """Its rate and the time left, for one that is running."""
    if not row.is_running or row.rate_per_s is None:
        return ""
    words = f"{rate(row.rate_per_s)} objects/s"
    return f"{words}, {duration(row.left_s)} left" if row.left_s is not None else words


def counts(row: SweepRow) -> tuple[Count, ...]:
    """The counts of SPEC 8.6, each with its meaning; empty while nothing is counted."""
    if row.counts is None:
        return ()
    return tuple(
        Count(name, title, getattr(row.counts, name), meaning)
        for name, (title, meaning) in _COUNT_WORDS.items()
    )


def options_words(row: SweepRow) -> tuple[str, ...]:
    """Its options, each as a phrase."""
    words = []
    if row.master_key is not None:
        words.append(f"master key {row.master_key}")
    if row.encrypt_plaintext:
        words.append("encrypt plaintext")
    if row.repair:
        words.append("repair: also use earlier keys of the project, and replace broken user wraps")
    return tuple(words)
