"""Foreign text in the output."""

from __future__ import annotations

import pytest

from keyturn_workers.cli.output import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain é", "plain é"), ("a\x1b[2Jb", "a\\x1b[2Jb"), ("\ud800", "\\ud800"), ("\n", "\\n")],
)
def test_foreign_text_cannot_control_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
