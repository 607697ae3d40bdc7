"""Options of `keyturn` itself, and the reference that is generated from its commands' help.

To regenerate it: `python -m tests.unit.keyturn_workers.cli.test_app`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.cli import get_docs_for_click
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from keyturn_workers.cli.app import GROUPS, app, load

runner = CliRunner()
_ROOT = Path(__file__).parents[4]
_REFERENCE = _ROOT / "docs" / "reference" / "cli.md"
_HELP = "* `--help`: Show this message and exit.\n"
_WIDE = 100
_OPTION_WITH_PYTHONS_TYPE = re.compile(r"^\* `-[^`]*<list", re.MULTILINE)
_COMMANDS = re.compile(r"\*\*Commands\*\*:\n\n(\* .*\n)+")


def test_an_env_file_never_overrides_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "with space.env"
    file.write_text("KEYTURN_S3_BUCKET='x'\nKEYTURN_DEPLOYMENT='file'\nPATH='/nowhere'\n")
    monkeypatch.setenv("KEYTURN_DEPLOYMENT", "environment")
    path = os.environ["PATH"]
    # A one-character bucket name: the error proves that the setting was read from the file.
    result = runner.invoke(app, ["inspect", "acme", "k"], env={"KEYTURN_ENV_FILE": str(file)})
    assert "KEYTURN_S3_BUCKET is malformed" in result.stderr
    assert os.environ["KEYTURN_DEPLOYMENT"] == "environment"
    assert os.environ["PATH"] == path


_IMPORTED = """
import sys
from keyturn_workers.cli.app import app
try:
    app(sys.argv[1:], prog_name="keyturn")
except SystemExit:
    print(*sorted(sys.modules))
"""


def _imported(*arguments: str, **environment: str) -> set[str]:
    """Every module that the command line has imported once it is done."""
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTED, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.slow
def test_a_command_imports_nothing_of_the_others() -> None:
    imported = _imported("ls", "--help")
    assert "keyturn_workers.cli.objects" in imported
    assert not imported & {
        "faststream",
        "keyturn_workers.cli.serve",
        "keyturn_workers.cli.projects",
    }


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--help"], {}),
        (["--version"], {}),
        ([], {"_KEYTURN_COMPLETE": "complete_bash", "COMP_WORDS": "keyturn ", "COMP_CWORD": "1"}),
    ],
    ids=["help", "version", "completion"],
)
def test_help_version_and_completion_import_no_command(
    arguments: list[str], environment: dict[str, str]
) -> None:
    imported = _imported(*arguments, **environment)
    assert {name for name in imported if name.startswith("keyturn")} <= {
        "keyturn",
        "keyturn.errors",
        "keyturn.lazy",
        "keyturn_workers",
        "keyturn_workers.cli",
        "keyturn_workers.cli.app",
        "keyturn_workers.cli.errors",
        "keyturn_workers.core",
        "keyturn_workers.core.errors",
        "keyturn_workers.process",
        "keyturn_workers.process.runtime",
    }
    assert not imported & {"aio_pika", "botocore", "pydantic_settings", "stamina"}


@pytest.mark.parametrize("name", [name for group in GROUPS.values() for name in group])
def test_the_summary_of_a_command_is_the_first_sentence_of_its_help(name: str) -> None:
    (summary,) = [group[name] for group in GROUPS.values() if name in group]
    assert load(name).get_short_help_str(100) == summary


def test_the_help_fits_80_columns_with_one_line_for_each_command() -> None:
    lines = runner.invoke(app, ["--help"], env={"COLUMNS": "80"}).stdout.splitlines()
    for title, group in GROUPS.items():
        start = lines.index(f"{title}:") + 1
        rows = [line.split(maxsplit=1) for line in lines[start : start + len(group)]]
        assert rows == [[name, summary] for name, summary in group.items()]


@pytest.mark.parametrize(
    "name", ["keygen", "keys", "worker", "console", "dead", "audit", "evidence"]
)
def test_the_help_of_a_group_shows_whole_summaries(name: str) -> None:
    help_text = runner.invoke(app, [name, "--help"], env={"COLUMNS": "80"}).stdout
    assert "..." not in help_text.partition("Commands:")[2]


def test_the_version_is_that_of_the_distribution() -> None:
    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"keyturn {version('keyturn-workers')}\n")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("swep", "'sweep'"),
        ("get", "'download'"),
        ("put", "'upload'"),
        ("rm", "'delete'"),
        ("cp", "'upload' or 'download' or 'copy'"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(name: str, meant: str) -> None:
    result = runner.invoke(app, [name, "acme", "readme.md"])
    assert result.exit_code == 2
    assert f"No such command '{name}'. Did you mean {meant}?" in result.stderr


def test_bash_completes_commands_their_commands_and_their_options() -> None:
    def completed(*words: str) -> list[str]:
        environment = {
            "_KEYTURN_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        }
        result = runner.invoke(app, [], env=environment, prog_name="keyturn")
        assert result.stderr == ""
        return result.stdout.split()

    assert completed("keyturn", "do") == ["download", "doctor"]
    assert completed("keyturn", "dead", "re") == ["replay"]
    assert completed("keyturn", "get", "re") == ["recover"]
    assert completed("keyturn", "dead", "replay", "--re") == ["--resign", "--reason"]


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
        "run `python -m tests.unit.keyturn_workers.cli.test_app`"
    )


if __name__ == "__main__":
    _REFERENCE.write_text(generate())
