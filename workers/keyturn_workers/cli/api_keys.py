"""The API key that a project gets, for `enroll` and `rotate`: read, or made and kept first.

A generated one is saved or shown before anything is published (SPEC 14), since a project
under a key that nobody has is lost to its users.
"""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr

from keyturn.crypto import new_api_key
from keyturn_workers.cli.arguments import read_api_key
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.output import print_line
from keyturn_workers.cli.secret_files import write_secret

Generate = Annotated[
    bool, typer.Option("--generate", help="Make a fresh API key, and save or show it first.")
]
SaveTo = Annotated[
    Path | None,
    typer.Option(help="New file (mode 0600) for the generated API key, instead of showing it."),
]


def given_or_generated(
    project: str,
    file: Path | None,
    save_to: Path | None,
    *,
    generate: bool,
    as_json: bool,
    rotated: bool = False,
) -> SecretStr:
    """The API key that the options ask for; a generated one is saved or shown by now.

    Args:
        project: Whose key it becomes.
        file: A file that holds it.
        save_to: A new file for a generated one.
        generate: Whether to make one.
        as_json: Whether standard output belongs to a JSON document.
        rotated: Whether it takes the place of another one.

    Raises:
        typer.BadParameter: the options do not go together, or what is given is no API key.
        OSError: the new file cannot be written; nothing has been published.
    """
    if not generate:
        if save_to is not None:
            raise typer.BadParameter("--save-to goes with --generate")
        return read_api_key(file, project, twice=True, rotated=rotated)
    if file is not None:
        raise typer.BadParameter("--generate and --api-key-file exclude each other")
    if as_json and save_to is None:
        raise typer.BadParameter("--generate with --json needs --save-to")
    key = new_api_key()
    if save_to is not None:
        write_secret(save_to, key + "\n")
        note(f"API key written to {save_to}")
    else:
        print_line(f"API key (shown this once): {key}")
    return SecretStr(key)
