"""Foreign text in the output, the widths of tables, and progress."""

from __future__ import annotations

import re
from typing import Annotated, Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from keyturn_workers.cli import (
    audit,
    dead,
    delete,
    doctor,
    erase,
    evidence,
    export_source,
    keys,
    objects,
    recover,
    sources,
    sweep_status,
    upload,
    verify,
)
from keyturn_workers.cli.app import app
from keyturn_workers.cli.output import (
    AS_JSON_HELP,
    add_wide_option,
    print_table,
    printable,
    transfer_progress,
)
from tests.unit.keyturn_workers.cli.fakes import Terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain é", "plain é"), ("a\x1b[2Jb", "a\\x1b[2Jb"), ("\ud800", "\\ud800"), ("\n", "\\n")],
)
def test_foreign_text_cannot_control_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


def _terminal_for_errors(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal in place of standard error."""
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.stderr", terminal)
    return terminal


def _without_colors(terminal: Terminal) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())


def test_objects_are_shown_with_their_bytes_and_their_number_once_it_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = _terminal_for_errors(monkeypatch)
    with transfer_progress() as progress:
        progress.advance(1, 5_000_000)
        progress.advance(0, 5_000_000)
        progress.advance(0, -5_000_000)  # read again
        progress.expect(1200, 20_000_000)
        progress.advance(1, 5_000_000)
    shown = _without_colors(terminal)
    assert "2 of 1,200 objects" in shown
    assert "10.0/20.0 MB" in shown


def test_a_known_number_of_objects_is_shown_before_the_first_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = _terminal_for_errors(monkeypatch)
    with transfer_progress() as progress:
        progress.expect(5, 20_000_000)
        progress.advance(0, 5_000_000)
    assert "0 of 5 objects" in _without_colors(terminal)


def test_outside_a_terminal_no_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with transfer_progress() as progress:
        progress.advance(1, 5)
    assert capsys.readouterr() == ("", "")


_UUID = "3195ac47-3caf-4221-8751-c34c82f6bfb6"
_KEK_ID = "227c41c704e3ee17"
_KEY = "acme-industries/reports/2026/third-quarter.pdf"
_TIME = "2026-11-30T03:55:37Z"
_SENTENCE = "a sentence of several words that has no place beside all the other columns"
_USUAL = {
    **dict.fromkeys(("id", "upload_id", "request_id", "answers", "sweep_id"), _UUID),
    **dict.fromkeys(("key", "s3_key", "path"), _KEY),
    **dict.fromkeys(("changed_at", "listed_at", "refused_at", "marked_at", "first", "last"), _TIME),
    **dict.fromkeys(("enrolled_at", "rotated_at", "proven_to", "started_at", "ended_at"), _TIME),
    **dict.fromkeys(("detail", "consequence", "what_to_do"), _SENTENCE),
    "field": "wrap_bytes_admin",
    "value": "c7" * 32,
    "check": "completion If-None-Match: *, many at once",
    "result": "one of 8 stored, 4 rounds",
    "code": "keyring_rolled_back",
    "queue": "keyturn.control.dead",
    "type": "rotation.requested",
    "kek_id": _KEK_ID,
    "digest": _KEK_ID,
    "needed": "required",
    "ok": "yes",
    "age": "3 h",
    "location": "in the settings",
    "from": "s3://a-bucket/with/a/prefix/*.pdf",
    "to": "acme/{name}",
}
"""What columns usually hold; the others hold a short word."""
_STATUS = ("project", "generation", "kek_id", "master_key", "plaintext", "earlier_keks")
_SWEEPS = ("sweep_id", "kind", "project", "status", "clean", "objects", "rewrapped", "failed")
_TABLES = {
    "audit verify": audit._PROCESS_COLUMNS,
    "dead list": dead._COLUMNS,
    "dead replay": ("queue", "id", "status", "code", "detail"),
    "delete": delete._COLUMNS,
    "doctor": doctor._COLUMNS,
    "erase": erase._OUTCOME,
    "evidence list": evidence.COLUMNS,
    "export": export_source._COLUMNS,
    "keys check": keys._CHECK_COLUMNS,
    "keys list": keys._COLUMNS,
    "ls": objects._COLUMNS,
    "ls --long": objects._LONG_COLUMNS,
    "recover": recover._FOUND,
    "sources": sources._COLUMNS,
    "sources NAME": sources._REFUSED_COLUMNS,
    "status, act now": ("project", "state", "what_to_do"),
    "status, keyrings": (*_STATUS, "enrolled_at", "rotated_at"),
    "status, parts": sweep_status.PART_COLUMNS,
    "status, sweeps": (*_SWEEPS, "started_at", "ended_at"),
    "inspect": ("field", "value"),
    "upload": upload._COLUMNS,
    "verify": verify._COLUMNS,
}


def _on_terminal(
    monkeypatch: pytest.MonkeyPatch, columns: int, names: tuple[str, ...], *rows: tuple[Any, ...]
) -> list[str]:
    """The lines of a table on a terminal, without styles."""
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout", terminal)
    print_table(names, rows)
    return re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("table", _TABLES)
def test_every_table_fits_and_wraps_no_id(
    table: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = _TABLES[table]
    row = tuple(_USUAL.get(name, "a-word") for name in names)
    lines = _on_terminal(monkeypatch, columns, names, row)
    assert max(map(len, lines)) <= columns
    shown = lines[0].split()
    for name, value in zip(names, row, strict=True):
        if name in shown and value in (_UUID, _KEK_ID, _TIME, "keyring_rolled_back"):
            assert any(value in line for line in lines[2:])
    assert [name for name in names if name in shown] == shown
    assert {"key", "s3_key", "id", "code", "project", "status", "state"} & {*names} <= {*shown}


def test_cells_are_wrapped_between_words_and_keys_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _on_terminal(monkeypatch, 62, ("key", "detail"), ("k" * 70, _SENTENCE))
    assert [line.split(maxsplit=1)[0] for line in lines[2:4]] == ["k" * 30, "k" * 30]
    assert " ".join(line[32:].strip() for line in lines[2:]).strip() == _SENTENCE


def test_what_cannot_fit_is_longer_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _on_terminal(monkeypatch, 60, ("id", "evidence"), (_UUID, "e" * 64))
    assert lines[2] == f"{_UUID}  {'e' * 64}"


def test_numbers_are_aligned_and_a_table_without_rows_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = _on_terminal(monkeypatch, 60, ("key", "size"), ("a", 5), ("b", None), ("c", 12345))
    assert lines[2:] == ["a        5", "b        -", "c    12345"]
    assert _on_terminal(monkeypatch, 60, ("key", "size")) == ["none"]


def test_wide_prints_all_columns_of_a_row_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("key", "upload_id", "publisher", "detail")
    row = (_KEY, _UUID, "kim", _SENTENCE)

    wide = typer.Typer(add_completion=False)

    @wide.command()
    def command(
        as_json: Annotated[bool, typer.Option("--json", help=AS_JSON_HELP)] = False,
    ) -> None:
        del as_json
        lines.extend(_on_terminal(monkeypatch, 60, names, row))

    lines: list[str] = []
    built = get_command(wide)
    add_wide_option(built)
    built.main(["--wide"], standalone_mode=False)
    assert lines[2] == f"{_KEY}  {_UUID}  kim        {_SENTENCE}"
    lines.clear()
    built.main([], standalone_mode=False)
    assert "upload_id" not in lines[0]


def test_commands_that_print_a_table_have_the_option() -> None:
    for arguments in (["ls"], ["status"], ["dead", "list"], ["doctor"]):
        assert "--wide" in CliRunner().invoke(app, [*arguments, "--help"]).stdout
    for arguments in (["keygen", "api-key"], ["link"], ["worker", "all"]):
        assert "--wide" not in CliRunner().invoke(app, [*arguments, "--help"]).stdout


def test_outside_a_terminal_all_columns_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("key", "upload_id", "publisher", "detail")
    print_table(names, [(_KEY, _UUID, "kim", _SENTENCE)])
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == [*names]
    assert row == f"{_KEY}  {_UUID}  kim        {_SENTENCE}"
