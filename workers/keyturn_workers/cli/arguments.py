"""Arguments that several commands take, and the reading of API keys (SPEC 1, 14).

An API key comes from a file, the environment or a prompt, never from an argument, which
every process list would show.
"""

import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import SecretStr

from keyturn.crypto import user_kek
from keyturn.identifiers import check_object_key, is_project
from keyturn_workers.cli.settings import ApiKeySettings

_MAX_FILE_BYTES: Final = 4096


def _checked_project(value: str | None) -> str | None:
    if value is not None and not is_project(value):
        raise typer.BadParameter(
            "malformed_request: a project id has 1 to 63 characters of a-z, 0-9 and -"
        )
    return value


def checked_key(value: str) -> str:
    """An object's key where SPEC 1 allows it.

    Raises:
        typer.BadParameter: it does not.
    """
    try:
        return check_object_key(value)
    except ValueError as exc:
        raise typer.BadParameter(f"malformed_request: {exc}") from exc


Project = Annotated[str, typer.Argument(help="The project's id.", callback=_checked_project)]
OptionalProject = Annotated[
    str | None, typer.Argument(help="The project's id.", callback=_checked_project)
]
Key = Annotated[
    str, typer.Argument(help="The object's key, without its project.", callback=checked_key)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        help="File that holds the project's API key. Without it: KEYTURN_API_KEY, then a prompt."
    ),
]

NewApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        help="File that holds the new API key. Without it: KEYTURN_NEW_API_KEY, then a prompt.",
    ),
]
TimeoutS = Annotated[float, typer.Option(min=0.1, help="Seconds to wait at most.")]


def read_api_key(
    file: Path | None, project: str, *, twice: bool, rotated: bool = False
) -> SecretStr:
    """The project's API key from the file, else the environment, else a hidden prompt.

    Args:
        file: What the option named.
        project: Whose key it is.
        twice: Whether a prompt asks again, to catch a slip.
        rotated: Whether it is the one that a rotation turns to.

    Raises:
        typer.BadParameter: there is none, or it is not of the form of SPEC 1.
    """
    if file is not None:
        key: SecretStr | None = _from_file(file)
    else:
        settings = ApiKeySettings.read()
        key = settings.new_api_key if rotated else settings.api_key
    if key is None:
        key = _prompted(twice=twice, rotated=rotated)
    try:
        user_kek(key.get_secret_value(), project)
    except ValueError as exc:  # its text names the rule, never the key
        raise typer.BadParameter(str(exc)) from None
    return key


def read_v0_api_key(file: Path) -> SecretStr:
    """The API key of the earlier system's objects: the file's text without its line's end.

    Nothing can tell a wrong one (SPEC 4.6 gives these keys no form), and it would show only
    when the users' wraps do not open: so no other character is taken off, and none cut off.

    Raises:
        typer.BadParameter: the file cannot be read, is empty, or is too long to be one.
    """
    text = _text_of(file).rstrip("\r\n")
    if not text:
        raise typer.BadParameter(f"{file}: empty")
    return SecretStr(text)


def _from_file(path: Path) -> SecretStr:
    return SecretStr(_text_of(path).strip())


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise typer.BadParameter(f"{path}: longer than {_MAX_FILE_BYTES} bytes")
        return data.decode()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not text"
        raise typer.BadParameter(f"{path}: {reason}") from None


def _prompted(*, twice: bool, rotated: bool) -> SecretStr:
    name, setting = ("new API key", "NEW_API_KEY") if rotated else ("API key", "API_KEY")
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            f"no {name}: name a file with --api-key-file, set KEYTURN_{setting}, or use a terminal"
        )
    asked = name[0].upper() + name[1:]
    typed: str = typer.prompt(asked, hide_input=True, confirmation_prompt=twice, err=True)
    return SecretStr(typed)
