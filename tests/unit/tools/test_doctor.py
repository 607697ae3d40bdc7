"""`make doctor`: its committed results, and what it does without a server (SPEC 10)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyturn_workers.storage.probe.runner import ProbeReport, Row, probe
from tools.doctor import __main__ as doctor
from tools.doctor.results import (
    HOLDS,
    Column,
    ServerResults,
    cells,
    document,
    needs,
    placed,
    verdicts,
    with_decided_rows,
)
from tools.doctor.server_kinds import Kind
from tools.harness.memory_storage import MemoryStorage
from tools.servers.packages import MissingPackagesError

NEEDED = {"a": "required", "a, many at once": "required", "b": "wanted", "c": "info"}


def column(server: str, bucket: str = "plain", **found: str) -> Column:
    rows = dict.fromkeys(NEEDED, HOLDS) | {
        name.replace("_race", ", many at once"): detail for name, detail in found.items()
    }
    return Column(server, "1.0", bucket, "2026-11-25", rows)  # type: ignore[arg-type]


def test_the_page_shows_what_is_committed() -> None:
    page, text = document(ServerResults.read())
    assert page.read_text() == text, "run `make doctor ARGS=--write`"


async def test_every_row_of_the_probe_has_its_cell() -> None:
    """A row that is added, renamed or needed otherwise asks for a new look at every server."""
    seen = ServerResults.read()
    report = await probe(MemoryStorage())
    assert dict(seen.needed) == dict(needs(report))
    for each in seen.columns:
        assert list(each.rows) == [row.name for row in report.rows], each.name


def test_a_row_has_a_short_and_stable_text() -> None:
    details = {
        "3 of 8 writers succeeded",
        "8 of 8 writers succeeded",
    }
    assert {_cell(words) for words in details} == {"several stored"}
    assert _cell("failed: put: NotImplemented") == "failed: put: NotImplemented"
    assert _cell("not refused") == "ignored"
    assert _cell("whatever it was", ok=True) == HOLDS


def _cell(detail: str, *, ok: bool = False) -> str:
    return cells(ProbeReport([Row("a", "required", ok, detail, "")]))["a"]


def test_a_row_whose_requests_failed_is_decided_by_a_second_probe() -> None:
    failed = Row("a", "required", ok=False, detail="failed", consequence="", undecided=True)
    yes, no = replace(failed, ok=True, undecided=False), replace(failed, undecided=False)

    def decided(first: Row, again: Row) -> Row:
        return with_decided_rows(ProbeReport([first]), ProbeReport([again])).rows[0]

    assert decided(failed, yes) == yes
    assert decided(failed, no) == no
    assert decided(failed, failed) == failed
    assert decided(no, yes) == no
    assert decided(yes, failed) == yes


def test_a_required_row_that_fails_is_a_refusal() -> None:
    seen = ServerResults(
        NEEDED, [column("good", c="changed"), column("bad", a="ignored", a_race="x", b="y")]
    )
    assert "| good 1.0 | 2026-11-25 | safe |" in verdicts(seen)
    assert "| bad 1.0 | 2026-11-25 | **refused** for: a (ignored) |" in verdicts(seen)


def test_workarounds_are_reported() -> None:
    fair = ServerResults(NEEDED, [column("fair", b="ignored")])
    assert "| fair 1.0 | 2026-11-25 | safe, without: b (ignored) |" in verdicts(fair)
    raced = ServerResults(NEEDED, [column("raced", a_race="several stored")])
    assert "**refused** for: a, many at once (several stored)" in verdicts(raced)


def test_buckets_of_one_server_that_are_alike_share_a_line() -> None:
    alike = [column("s"), column("s", "versioned", c="x"), column("s", "locked", c="x")]
    lines = verdicts(ServerResults(NEEDED, alike)).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [
        *("| s 1.0", "| s 1.0, versioned or object lock"),
    ]


def test_a_column_measured_again_keeps_its_place() -> None:
    seen = ServerResults(NEEDED, [column("one"), column("two")])
    renewed = seen.renewed([column("one", a="ignored"), column("three")])
    assert [each.server for each in renewed.columns] == ["one", "two", "three"]
    assert renewed.column("one", "plain").rows["a"] == "ignored"
    with pytest.raises(LookupError):
        renewed.column("one", "locked")


def test_columns_are_in_the_order_of_the_servers() -> None:
    seen = ServerResults(NEEDED, [column("z"), column("b"), column("a"), column("a", "locked")])
    assert [each.name for each in seen.ordered(["a", "b"]).columns] == [
        *("a 1.0", "a 1.0, object lock", "b 1.0", "z 1.0"),
    ]


def test_a_release_line_in_a_servers_name_is_not_repeated_in_its_heading() -> None:
    newer = replace(column("Ceph RGW 20"), version="20.2.4")
    assert newer.name == "Ceph RGW 20.2.4"
    assert newer.place == ("Ceph RGW 20", "plain")
    assert replace(newer, version="21.1.0").name == "Ceph RGW 20 21.1.0"
    assert column("Swift s3api").name == "Swift s3api 1.0"


@pytest.mark.parametrize("text", ["no place", "<!-- doctor: begin -->\n<!-- doctor: end -->" * 2])
def test_a_document_has_one_place_for_its_table(text: str) -> None:
    with pytest.raises(ValueError, match="places for the table"):
        placed(text, "lines")


def _missing() -> None:
    raise MissingPackagesError("apt has no archive of it here")


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Kind("absent", _missing, lambda: "1.0", ("plain",))  # type: ignore[arg-type]
    monkeypatch.setattr(doctor, "KINDS", (kind,))


@pytest.mark.usefixtures("kinds")
def test_a_server_that_cannot_be_installed_is_skipped_with_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(doctor._started(["absent"], skip=True)) == []
    assert "absent is skipped: apt has no archive of it here" in capsys.readouterr().err


@pytest.mark.usefixtures("kinds")
def test_a_server_that_was_asked_for_is_not_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["doctor", "--only", "absent"])
    assert doctor.main() == 1
    assert "apt has no archive of it here" in capsys.readouterr().err


def test_a_column_without_a_committed_one_differs(capsys: pytest.CaptureFixture[str]) -> None:
    known = Column("a", "1.0", "plain", "2026-11-25", {"row": HOLDS})
    committed = ServerResults({"row": "required"}, [known])
    assert doctor._compare(committed, [known]) == 0
    new = Column("b", "1.0", "plain", "2026-11-25", {"row": HOLDS})
    assert doctor._compare(committed, [known, new]) == 1
    assert "b 1.0: row: yes, was: None" in capsys.readouterr().err
