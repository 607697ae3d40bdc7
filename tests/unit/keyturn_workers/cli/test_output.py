"""Foreign text in the output, and progress."""

from __future__ import annotations

import io
import re

import pytest

from keyturn_workers.cli.output import object_progress, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain é", "plain é"), ("a\x1b[2Jb", "a\\x1b[2Jb"), ("\ud800", "\\ud800"), ("\n", "\\n")],
)
def test_foreign_text_cannot_control_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_objects_are_shown_with_their_bytes_and_their_number_once_it_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = _Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.stderr", terminal)
    with object_progress() as progress:
        progress.advance(1, 5_000_000)
        progress.advance(0, 5_000_000)
        progress.advance(0, -5_000_000)  # read again
        progress.expect(1200, 20_000_000)
        progress.advance(1, 5_000_000)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "2 of 1,200 objects" in shown
    assert "10.0/20.0 MB" in shown


def test_outside_a_terminal_no_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with object_progress() as progress:
        progress.advance(1, 5)
    assert capsys.readouterr() == ("", "")
