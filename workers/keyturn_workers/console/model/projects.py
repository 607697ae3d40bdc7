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
from keyturn_workers.console.model.paged_reports import HeldPage, PagedReport
from keyturn_workers.console.model.paging import page_of
from keyturn_workers.console.model.rows import Page, ProjectQuery, ProjectRow, SweepRow
from keyturn_workers.console.model.sorted_index import SortedIndex
from keyturn_workers.console.model.sweep_facts import REPORT_SLACK

MAX_PROJECTS: Final = 100_000
OLD_KEY: Final = timedelta(days=365)
NOT_FOUND: Final = "not_found"


@dataclass(frozen=True, slots=True)
class Proof:
    """A clean end of a sweep."""

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
        self._changed: dict[str, None] = {}  # whose rows are to be computed anew
        self._indexes: dict[str, SortedIndex[str]] = {}
        self._pages: dict[str, HeldPage[str]] | None = None
        self.inventory = PagedReport[str](MAX_PROJECTS)
        self._are_too_many = False

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
            # Published again where the request is repeated: the earliest one counts.
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
        return changed

    def _apply_status(self, status: ProjectStatus, at: datetime) -> bool:
        facts = self._find(status.project)
        if facts is None:
            return False
        held = facts.report
        if held is not None and held.as_of is not None and held.as_of > at:
            return False
        row = _reported_row(status, at)
        if held == row:  # a report arrives twice: in answer to its request, and on the stream
            return False
        # The text decides between two of the same moment, so that any order ends with the same.
        if held is not None and held.as_of == at and repr(held) >= repr(row):
            return False
        facts.report = row
        self.touch(status.project)
        return True

    def _find(self, project: str) -> _Facts | None:
        facts = self._facts.get(project)
        if facts is None:
            if len(self._facts) >= MAX_PROJECTS:
                self._are_too_many = True
                return None
            facts = self._facts[project] = _Facts()
            insort(self._names, project)
        return facts

    @property
    def is_truncated(self) -> bool:
        """Whether projects are left out, to bound the memory."""
        return self._are_too_many or self.inventory.is_truncated

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
        if project in self._facts:
            self._changed[project] = None

    def _touch_page(self, before: HeldPage[str] | None, now: HeldPage[str] | None) -> None:
        """Compute the rows of one page anew, and those that no page lists any more."""
        self._pages = None
        listed = (*(before.rows if before else ()), *(now.rows if now else ()))
        for project in (*listed, *(self._facts.keys() - self._listed().keys())):
            self.touch(project)

    def _listed(self) -> dict[str, HeldPage[str]]:
        """The page that lists each project."""
        if self._pages is None:
            chain = self.inventory.chain()
            self._pages = {name: page for page in chain.pages for name in page.rows}
        return self._pages

    # What pages ask.

    def row(self, project: str) -> ProjectRow | None:
        """One project; None if it is not known."""
        if project in self._changed:
            self._renew(project)
        return self._rows.get(project)

    def renew(self, most: int | None = None) -> bool:
        """Compute the rows anew that changed, or so many of them; whether more are left."""
        while self._changed and most != 0:
            self._renew(next(iter(self._changed)))
            most = None if most is None else most - 1
        return bool(self._changed)

    def _renew(self, project: str) -> None:
        del self._changed[project]
        row = self._rows[project] = self._build(project, self._facts[project])
        for sort, index in self._indexes.items():
            index.put(project, _sort_key(getattr(row, sort)))

    def _build(self, project: str, facts: _Facts) -> ProjectRow:
        values = self._keyring(project, facts)
        proof, last_end, running = facts.proof, None, []
        for sweep in self._sweeps_of(project):
            found = proof_of(sweep)
            if found is not None and (proof is None or _proof_rank(found) > _proof_rank(proof)):
                proof = found
            if sweep.is_running:
                running.append(sweep.ref)
            elif has_ended(sweep) and (last_end is None or _end_rank(sweep) > _end_rank(last_end)):
                last_end = sweep
        if proof is not None:
            values["last_proof_at"] = proof.at
            values["last_proof_sweep"] = proof.sweep_id
            values["last_proof_evidence"] = proof.evidence
        if last_end is not None:
            values["last_end"] = last_end.ref
            values["is_last_end_clean"] = bool(last_end.clean)
        if running:
            values["running_sweeps"] = tuple(running)
        said = facts.report or ProjectRow(project)
        return replace(said, **values) if values else said

    def _keyring(self, project: str, facts: _Facts) -> dict[str, Any]:
        """What differs from the newest report of the keyring: by newer events or inventories."""
        said, values = facts.report, dict[str, Any]()
        at = None if said is None else said.as_of
        generation = 0 if said is None else said.generation or 0
        rotated_at = None if said is None else said.rotated_at
        enrolled_at = None if said is None else said.enrolled_at
        confirmed = self._confirmed_at(project, said)
        if confirmed is not None and (at is None or confirmed > at):
            values["as_of"] = at = confirmed
        if enrolled_at is None and facts.enrolled is not None:
            values["enrolled_at"] = enrolled_at = facts.enrolled[0]
        begun = facts.accepted or (facts.enrolled and (facts.enrolled[1], facts.enrolled[0]))
        if begun is not None and begun[0] > generation:
            began_at = begun[1]
            if at is None or began_at + REPORT_SLACK > at:
                rotated_at = began_at if facts.accepted else None
                values |= {"generation": begun[0], "kek_id": None, "rotated_at": rotated_at}
                values |= {"code": None, "detail": None, "mark": None}
                values["as_of"] = at = max(began_at, at) if at else began_at
        values["key_since"] = rotated_at or enrolled_at
        if self._is_gone(project, at):
            values["code"] = NOT_FOUND
            values["detail"] = "an inventory no longer lists its keyring"
        return values

    def _confirmed_at(self, project: str, said: ProjectRow | None) -> datetime | None:
        """When an inventory last said that the keyring is as it was reported."""
        page = self._listed().get(project)
        if said is None or said.as_of is None or page is None:
            return None
        return page.at if page.read_at <= said.as_of else None

    def _is_gone(self, project: str, as_of: datetime | None) -> bool:
        """Whether a whole inventory that is newer than all that is known does not list it."""
        if project in self._listed():
            return False
        chain = self.inventory.chain()
        if not chain.is_complete or chain.as_of is None:
            return False
        return as_of is None or chain.as_of > as_of + REPORT_SLACK

    def names(self) -> Sequence[str]:
        """All projects, in order."""
        return self._names

    def rows(self) -> list[ProjectRow]:
        """All projects, in order of their names."""
        self.renew()
        return [self._rows[name] for name in self._names]

    def query(self, query: ProjectQuery) -> Page[ProjectRow]:
        """One page of the projects that match."""
        self.renew()
        matching = self._matching(query)
        chain = self.inventory.chain()
        page = page_of(
            matching,
            query.page,
            query.size,
            total=len(self._names),
            as_of=chain.as_of,
            is_complete=chain.is_complete and not self.is_truncated,
        )
        rows = tuple(self._rows[name] for name in page.rows)
        return Page(
            rows, page.total, page.matching, page.page, page.pages, page.as_of, page.is_complete
        )

    def _matching(self, query: ProjectQuery) -> list[str]:
        """The names of all that match, in the order that is asked for."""
        names = self._ordered(query.sort, descending=query.descending)
        for word in query.text.casefold().split():
            names = [name for name in names if word in name]
        rows, key = self._rows, query.master_key
        if key is not None:
            names = [name for name in names if rows[name].master_key == key]
        if query.state != "any":
            keep, oldest = _STATES[query.state], self._now() - OLD_KEY
            names = [name for name in names if keep(rows[name], oldest)]
        return names

    def _ordered(self, sort: str, *, descending: bool) -> list[str]:
        """All names in this order."""
        if sort == "project":
            return self._names[::-1] if descending else self._names
        index = self._indexes.get(sort)
        if index is None:
            keys = ((name, _sort_key(getattr(row, sort))) for name, row in self._rows.items())
            index = self._indexes[sort] = SortedIndex(keys)
        return index.names(descending=descending)

    def __len__(self) -> int:
        return len(self._names)


def proof_of(row: SweepRow) -> Proof | None:
    """What the end of a sweep proves; None if it proves nothing."""
    if row.status != "done" or not row.clean or row.ended_at is None:
        return None
    return Proof(row.ended_at, row.sweep_id, row.evidence)


def has_ended(row: SweepRow) -> bool:
    """Whether a worker ended it; a request that was refused ends nothing."""
    return row.status in ("done", "failed") and row.ended_at is not None


def _proof_rank(proof: Proof) -> tuple[datetime, str]:
    return (proof.at, proof.sweep_id)


def _end_rank(row: SweepRow) -> tuple[float, str]:
    return (row.ended_at.timestamp() if row.ended_at else 0.0, row.sweep_id)


def _sort_key(value: object) -> tuple[bool, Any]:
    return (value is not None, value)


def _needs_attention(row: ProjectRow) -> bool:
    return row.code is not None or row.is_contradicted or row.is_last_end_clean is False


_STATES: Final[dict[str, Callable[[ProjectRow, datetime], bool]]] = {
    "ok": lambda row, _: row.code is None and not row.is_contradicted,
    "attention": lambda row, _: _needs_attention(row),
    "sweeping": lambda row, _: bool(row.running_sweeps),
    "never_proven": lambda row, _: row.last_proof_at is None,
    "earlier_keks": lambda row, _: bool(row.earlier_keks),
    "old_key": lambda row, oldest: row.key_since is not None and row.key_since < oldest,
    "plaintext": lambda row, _: bool(row.plaintext or row.v0),
}


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
        mark=status.mark,
        code=status.code,
        detail=status.detail,
        as_of=at,
    )
