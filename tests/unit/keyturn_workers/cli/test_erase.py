"""`keyturn erase` requests nothing before the project's name was typed (SPEC 8.8, 14)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import typer

from keyturn_workers.cli import erase
from tests.unit.keyturn_workers.cli.fakes import Commands, Terminal, event

if TYPE_CHECKING:
    from typer.testing import Result

_REASON = "contract 4711 has ended"
_EVIDENCE = "3e" * 32


def _run(fake: Commands, *options: str, reason: str = _REASON) -> Result:
    return fake.run("erase", "acme", "--reason", reason, *options)


def _answer(fake: Commands, type_: str, **fields: Any) -> None:
    fake.publisher.script = lambda name: [event(type_, request_id=name, **fields)]


def test_the_outcome_names_the_evidence(fake: Commands) -> None:
    _answer(fake, "project.erased", generation=3, evidence=_EVIDENCE)
    result = _run(fake, "--confirm", "acme", "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert (row["status"], row["generation"], row["evidence"]) == ("erased", 3, _EVIDENCE)
    ((method, given),) = fake.publisher.sent
    assert (method, given["project"], given["reason"]) == ("erase", "acme", _REASON)
    assert given["request_id"] == row["request_id"]


def test_a_refusal_is_a_failure_and_says_why(fake: Commands) -> None:
    _answer(fake, "erase.rejected", code="generation_mismatch", detail="still gives its secret")
    result = _run(fake, "--confirm", "acme")
    assert result.exit_code == 1
    assert "generation_mismatch" in result.output
    assert "still gives its secret" in result.output


@pytest.mark.parametrize(
    ("options", "reason", "problem"),
    [
        ([], _REASON, "--confirm acme"),
        (["--confirm", "acm"], _REASON, "acm"),
        (["--confirm", "Acme"], _REASON, "Acme"),
        (["--confirm", "acme"], " ", "--reason"),
    ],
)
def test_without_the_name_and_a_reason_nothing_is_requested(
    fake: Commands, options: list[str], reason: str, problem: str
) -> None:
    result = _run(fake, *options, reason=reason)
    assert result.exit_code == 2
    assert problem in result.stderr
    assert not fake.publisher.sent


def test_on_a_terminal_the_name_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("acme\n"))
    erase._confirm("acme", None)
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    with pytest.raises(typer.BadParameter):
        erase._confirm("acme", None)
