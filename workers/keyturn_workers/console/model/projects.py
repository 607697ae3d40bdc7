"""All projects: their keyrings by reports and events, and their last proof (SPEC 5.2, 16.2). Pure.

An event of a rotation or an enrollment is newer than a report until the keyring is read again. The
row of a project follows from what is known of its keyring and of its sweeps, and is computed when
a page asks for it.
"""

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from keyturn.identifiers import parse_time
from keyturn.messages import (
    ProjectEnrolled,
    ProjectStatus,
    RotationAccepted,
    StatusReported,
)
from keyturn_workers.console.model.pages import HeldPage, PagedReport
from keyturn_workers.console.model.paging import matches, page_of
from keyturn_workers.console.model.rows import Page, ProjectQuery, ProjectRow, SweepRow
from keyturn_workers.console.model.sweep_facts import REPORT_SLACK

MAX_PROJECTS: Final = 100_000
OLD_KEY: Final = timedelta(days=365)
NOT_FOUND: Final = "not_found"


@dataclass(frozen=True, slots=True)
class Proof:
    """A clean end of a sweep that was no dry run."""

    at: datetime
    sweep_id: str
    evidence: str | None


@dataclass(slots=True, eq=False)
class _Facts:
    """What is known of one project.

    Attributes:
        report: What the newest report said, as a row.
        enrolled: The earliest event of its enrollment, with the generation.
        accepted: Of the highest generation that an event named: that, and when it began.
        proof: The newest proof among sweeps that were dropped.
    """

    report: ProjectRow | None = None
    enrolled: tuple[datetime, int] | None = None
    accepted: tuple[int, datetime] | None = None
    proof: Proof | None = None


class ProjectBook:
    """The projects.

    Args:
        now: The clock.
        sweeps_of: Gives the sweeps of a project, newest first.

    Attributes:
        inventory: The pages of the view `projects`: the names on each.
        is_truncated: Whether projects were left out, to bound the memory.
    """

    def __init__(
        self,
        now: Callable[[], datetime],
        sweeps_of: Callable[[str], Sequence[SweepRow]],
    ) -> None:
        self._now = now
        self._sweeps_of = sweeps_of
        self._facts: dict[str, _Facts] = {}
        self._names: list[str] = []
        self._rows: dict[str, ProjectRow] = {}
        self._sorted: dict[str, list[str]] = {}
        self._pages: dict[str, HeldPage[str]] | None = None
        self._version = 0
        self._sorted_at = -1
        self.inventory = PagedReport[str](MAX_PROJECTS)
        self.is_truncated = False

    # What comes in.

    def apply_event(self, event: object) -> bool:
        """Take an event over; False if it says nothing new about keyrings."""
        if not isinstance(event, ProjectEnrolled | RotationAccepted):
            return False
        facts = self._find(event.project)
        if facts is None:
            return False
        at = parse_time(event.at)
        if isinstance(event, ProjectEnrolled):
            # Told again where the request is repeated: the earliest one counts.
            enrolled = (at, event.generation)
            if facts.enrolled is not None and facts.enrolled <= enrolled:
                return False
            facts.enrolled = enrolled
        else:
            held = facts.accepted
            if held is not None and (-held[0], held[1]) <= (-event.generation, at):
                return False
            facts.accepted = (event.generation, at)
        self.touch(event.project)
        return True

    def apply_report(self, report: StatusReported) -> bool:
        """Take over a report of the view `projects`."""
        at, changed = parse_time(report.at), False
        for status in report.projects or ():
            changed |= self._apply_status(status, at)
        if report.project != "*":
            return changed
        names = None if report.projects is None else [row.project for row in report.projects]
        held = self.inventory.page(report.after)
        if self.inventory.apply(report, names):
            self._touch_page(held, self.inventory.page(report.after))
            changed = True
        if self.inventory.is_truncated:
            self.is_truncated = True
        return changed

    def _apply_status(self, status: ProjectStatus, at: datetime) -> bool:
        facts = self._find(status.project)
        if facts is None:
            return False
        row = _reported_row(status, at)
        held = facts.report
        if held is not None and _rank(held) >= _rank(row):
            return False
        facts.report = row
        self.touch(status.project)
        return True

    def _find(self, project: str) -> _Facts | None:
        facts = self._facts.get(project)
        if facts is None:
            if len(self._facts) >= MAX_PROJECTS:
                self.is_truncated = True
                return None
            facts = self._facts[project] = _Facts()
            insort(self._names, project)
            self._version += 1
        return facts

    def remember_proof(self, row: SweepRow) -> None:
        """Keep what a sweep proved that is about to be dropped."""
        facts = self._facts.get(row.project)
        proof = proof_of(row)
        if facts is not None and proof is not None:
            held = facts.proof
            facts.proof = proof if held is None else max(held, proof, key=_proof_rank)
            self.touch(row.project)

    def touch(self, project: str) -> None:
        """Note that something of a project changed: its row is computed anew."""
        if self._rows.pop(project, None) is not None or project in self._facts:
            self._version += 1

    def _touch_page(self, before: HeldPage[str] | None, now: HeldPage[str] | None) -> None:
        """Compute the rows of one page anew, and those that no page lists any more."""
        self._pages = None
        pages = self._listed()
        listed = [*(before.rows if before else ()), *(now.rows if now else ())]
        for project in (*listed, *(self._facts.keys() - pages.keys())):
            self._rows.pop(project, None)
        self._version += 1

    def _listed(self) -> dict[str, HeldPage[str]]:
        """The page that lists each project."""
        if self._pages is None:
            chain = self.inventory.chain()
            self._pages = {name: page for page in chain.pages for name in page.rows}
        return self._pages

    # What pages ask.

    def row(self, project: str) -> ProjectRow | None:
        """One project; None if it is not known."""
        row = self._rows.get(project)
        if row is None:
            facts = self._facts.get(project)
            if facts is None:
                return None
            row = self._rows[project] = self._build(project, facts)
        return row

    def _build(self, project: str, facts: _Facts) -> ProjectRow:
        row = self._keyring(project, facts)
        proof, last_end, running = facts.proof, None, []
        for sweep in self._sweeps_of(project):
            found = proof_of(sweep)
            if found is not None and (proof is None or _proof_rank(found) > _proof_rank(proof)):
                proof = found
            if sweep.is_running:
                running.append(sweep.ref)
            elif is_end_of_consequence(sweep) and (
                last_end is None or _end_rank(sweep) > _end_rank(last_end)
            ):
                last_end = sweep
        return replace(
            row,
            key_since=row.rotated_at or row.enrolled_at,
            last_proof_at=None if proof is None else proof.at,
            last_proof_sweep=None if proof is None else proof.sweep_id,
            last_proof_evidence=None if proof is None else proof.evidence,
            last_end=None if last_end is None else last_end.ref,
            is_last_end_clean=None if last_end is None else bool(last_end.clean),
            running_sweeps=tuple(running),
        )

    def _keyring(self, project: str, facts: _Facts) -> ProjectRow:
        """What is known of the keyring: by the newest report, or by newer events."""
        said = facts.report or ProjectRow(project)
        confirmed = self._confirmed_at(project, facts)
        at, enrolled_at = said.as_of, said.enrolled_at
        if confirmed is not None and (at is None or confirmed > at):
            said, at = replace(said, as_of=confirmed), confirmed
        if enrolled_at is None and facts.enrolled is not None:
            enrolled_at = facts.enrolled[0]
        said = replace(said, enrolled_at=enrolled_at)
        begun = facts.accepted or (facts.enrolled and (facts.enrolled[1], facts.enrolled[0]))
        if begun is not None:
            generation, began_at = begun
            is_newer = at is None or began_at + REPORT_SLACK > at
            if generation > (said.generation or 0) and is_newer:
                said = replace(
                    said,
                    generation=generation,
                    kek_id=None,
                    rotated_at=began_at if facts.accepted else None,
                    code=None,
                    detail=None,
                    as_of=max(began_at, at) if at else began_at,
                )
        if self._is_gone(project, said.as_of):
            said = replace(said, code=NOT_FOUND, detail="an inventory no longer lists its keyring")
        return said

    def _confirmed_at(self, project: str, facts: _Facts) -> datetime | None:
        """When an inventory last said that the keyring is as it was reported."""
        page = self._listed().get(project)
        if facts.report is None or facts.report.as_of is None or page is None:
            return None
        return page.at if page.read_at <= facts.report.as_of else None

    def _is_gone(self, project: str, as_of: datetime | None) -> bool:
        """Whether a whole inventory that is newer than all that is known does not list it."""
        chain = self.inventory.chain()
        if not chain.is_complete or chain.as_of is None or project in self._listed():
            return False
        return as_of is None or chain.as_of > as_of + REPORT_SLACK

    def names(self) -> Sequence[str]:
        """All projects, in order."""
        return self._names

    def rows(self) -> list[ProjectRow]:
        """All projects, in order of their names."""
        return [row for name in self._names if (row := self.row(name)) is not None]

    def query(self, query: ProjectQuery) -> Page[ProjectRow]:
        """One page of the projects that match."""
        names = self._ordered(query.sort)
        keep = self._filter(query)
        matching = [name for name in names if keep(name)]
        if query.descending:
            matching.reverse()
        chain = self.inventory.chain()
        page = page_of(
            matching,
            query.page,
            query.size,
            total=len(self._names),
            as_of=chain.as_of,
            is_complete=chain.is_complete and not self.is_truncated,
        )
        rows = tuple(row for name in page.rows if (row := self.row(name)) is not None)
        return Page(
            rows, page.total, page.matching, page.page, page.pages, page.as_of, page.is_complete
        )

    def _filter(self, query: ProjectQuery) -> Callable[[str], bool]:
        text, state, key = query.text.strip().casefold(), query.state, query.master_key
        if state == "any" and key is None:
            words = text.split()
            return lambda name: all(word in name for word in words)
        oldest = self._now() - OLD_KEY

        def keep(name: str) -> bool:
            row = self.row(name)
            return (
                row is not None
                and (key is None or row.master_key == key)
                and matches(text, (name,))
                and _is_in_state(row, state, oldest)
            )

        return keep

    def _ordered(self, sort: str) -> list[str]:
        """All names in this order; kept until something changes."""
        if sort == "project":
            return self._names
        if self._sorted_at != self._version:
            self._sorted.clear()
            self._sorted_at = self._version
        ordered = self._sorted.get(sort)
        if ordered is None:
            rows = self.rows()
            rows.sort(key=lambda row: _sort_key(getattr(row, sort)))
            ordered = self._sorted[sort] = [row.project for row in rows]
        return ordered

    def __len__(self) -> int:
        return len(self._names)


def proof_of(row: SweepRow) -> Proof | None:
    """What the end of a sweep proves; None if it proves nothing."""
    if row.status != "done" or not row.clean or row.dry_run is not False or row.ended_at is None:
        return None
    return Proof(row.ended_at, row.sweep_id, row.evidence)


def is_end_of_consequence(row: SweepRow) -> bool:
    """Whether it ended and was no dry run."""
    return row.status in ("done", "failed") and not row.dry_run and row.ended_at is not None


def _proof_rank(proof: Proof) -> tuple[datetime, str]:
    return (proof.at, proof.sweep_id)


def _end_rank(row: SweepRow) -> tuple[float, str]:
    return (row.ended_at.timestamp() if row.ended_at else 0.0, row.sweep_id)


def _rank(row: ProjectRow) -> tuple[float, str]:
    # The text decides between two of the same moment, so that any order ends with the same.
    return (row.as_of.timestamp() if row.as_of else 0.0, repr(row))


def _sort_key(value: object) -> tuple[bool, Any]:
    return (value is not None, value)


def _is_in_state(row: ProjectRow, state: str, oldest: datetime) -> bool:
    is_in = {
        "ok": row.code is None,
        "attention": row.code is not None or row.is_last_end_clean is False,
        "sweeping": bool(row.running_sweeps),
        "never_proven": row.last_proof_at is None,
        "earlier_keks": bool(row.earlier_keks),
        "old_key": row.key_since is not None and row.key_since < oldest,
        "plaintext": bool(row.plaintext or row.v0),
    }
    return is_in.get(state, True)


def _reported_row(status: ProjectStatus, at: datetime) -> ProjectRow:
    return ProjectRow(
        project=status.project,
        generation=status.generation,
        kek_id=status.kek_id,
        master_key=status.master_key,
        plaintext=status.plaintext,
        v0=status.v0,
        earlier_keks=status.earlier_keks,
        enrolled_at=None if status.enrolled_at is None else parse_time(status.enrolled_at),
        rotated_at=None if status.rotated_at is None else parse_time(status.rotated_at),
        evidence=status.evidence,
        code=status.code,
        detail=status.detail,
        as_of=at,
    )
