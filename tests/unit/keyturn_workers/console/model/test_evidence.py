"""Evidence is held by project, and bounded."""

from __future__ import annotations

from keyturn.messages import EvidenceStatus
from keyturn_workers.console.model.evidence import MAX_PROJECTS, EvidenceBook
from tests.unit.keyturn_workers.console.model.messages import DIGEST, at, report, text, uid


def file(project: str) -> EvidenceStatus:
    return EvidenceStatus(
        project=project, generation=1, sweep_id=uid(1), at=text(0), digest=DIGEST, envelope="{}"
    )


def test_evidence_is_that_of_one_project() -> None:
    book = EvidenceBook()
    book.apply(report(1, "evidence", project="acme", evidence_files=(file("acme"),)))
    view = book.view("acme")
    assert (view.files, view.as_of, view.is_complete) == ((file("acme"),), at(1), True)
    assert book.view("other").files == ()


def test_what_was_read_longest_ago_is_dropped() -> None:
    book = EvidenceBook()
    for number in range(MAX_PROJECTS + 1):
        name = f"p{number}"
        book.apply(report(number, "evidence", project=name, evidence_files=(file(name),)))
    assert book.view("p0").as_of is None
    assert book.view("p1").as_of == at(1)
