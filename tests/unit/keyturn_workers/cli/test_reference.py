"""The reference of the command line is generated from the help of the commands.

To regenerate it: `python -m tests.unit.keyturn_workers.cli.test_reference`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from typer.cli import get_docs_for_click
from typer.core import TyperGroup
from typer.main import get_command

from keyturn_workers.cli.app import GROUPS, app, load

_ROOT = Path(__file__).parents[4]
_REFERENCE = _ROOT / "docs" / "reference" / "cli.md"
_HELP = "* `--help`: Show this message and exit.\n"
_WIDE = 100
_OPTION_WITH_PYTHONS_TYPE = re.compile(r"^\* `-[^`]*<list", re.MULTILINE)
_COMMANDS = re.compile(r"\*\*Commands\*\*:\n\n(\* .*\n)+")


def generate() -> str:
    """The reference in Markdown, by typer's own generator, without `--help`, which all have."""
    root = get_command(app)
    assert isinstance(root, TyperGroup)
    for name in list(root.commands):
        root.add_command(load(name), name)
    written = get_docs_for_click(
        obj=root, ctx=typer.Context(root, info_name="keyturn"), name="keyturn"
    )
    lines = [line.rstrip() for line in written.strip().splitlines()]
    text = ("\n".join(lines) + "\n").replace(f"**Options**:\n\n{_HELP}\n", "")
    text = _COMMANDS.sub(_groups(), text.replace(_HELP, ""), count=1)
    for group in root.commands.values():
        for each in group.commands.values() if isinstance(group, TyperGroup) else ():
            text = text.replace(each.get_short_help_str(), each.get_short_help_str(_WIDE))
    return text


def _groups() -> str:
    """The list of all commands as `keyturn --help` groups it, each with a link."""
    parts = []
    for title, group in GROUPS.items():
        rows = [f"* [`{name}`](#keyturn-{name}): {summary}" for name, summary in group.items()]
        parts.append("\n".join([f"**{title}**:", "", *rows, ""]))
    return "\n".join(parts)


def test_no_option_shows_a_type_of_python() -> None:
    assert _OPTION_WITH_PYTHONS_TYPE.findall(_REFERENCE.read_text()) == []


@pytest.mark.slow
def test_the_reference_matches_the_help_of_the_commands() -> None:
    assert _REFERENCE.read_text() == generate(), (
        "run `python -m tests.unit.keyturn_workers.cli.test_reference`"
    )


if __name__ == "__main__":
    _REFERENCE.write_text(generate())
