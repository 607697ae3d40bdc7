"""`keyturn console`: the operator's console, and the people in its password file (SPEC 14, 16).

A password comes from a prompt or standard input, never from an argument, which every process list
would show.
"""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer
import uvloop

from keyturn.errors import SettingsError
from keyturn_workers.cli.errors import CommandError
from keyturn_workers.cli.output import print_line
from keyturn_workers.cli.secrets import write_secret
from keyturn_workers.console.settings import ConsoleSettings, is_loopback
from keyturn_workers.process.logging import configure

if TYPE_CHECKING:
    from keyturn_workers.console.auth.passwords import User

_EXTRA: Final = "keyturn console needs its extra: pip install 'keyturn-workers[console]'"
# From the extra; if one is missing, all of them are.
_PACKAGES: Final = frozenset(
    {
        "argon2",
        "authlib",
        "httpx2",
        "itsdangerous",
        "jinja2",
        "joserfc",
        "python_multipart",
    }
)
_FileOption = Annotated[
    Path, typer.Option("--file", help="The password file, as in KEYTURN_CONSOLE_PASSWORD_FILE.")
]

app = typer.Typer(name="console", help="Run the operator's console, or change its users.")


@contextmanager
def _needs_extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] in _PACKAGES:
            raise SettingsError(_EXTRA) from exc
        raise


@app.callback(invoke_without_command=True)
def console(
    context: typer.Context,
    sign_in_link: Annotated[
        bool,
        typer.Option(
            "--sign-in-link",
            help="Print the link to sign in also if the output is not a terminal, such as in a "
            "container. KEYTURN_CONSOLE_PUBLIC_URL must then be a loopback address, if it is set.",
        ),
    ] = False,
) -> None:
    """Run the operator's console: a web UI to monitor and operate a deployment.

    On a loopback address, and while no one has an account, it prints a link to the terminal that
    signs in once, within an hour.
    """
    if context.invoked_subcommand is not None:
        return
    settings = ConsoleSettings.read()
    if sign_in_link and not settings.is_local:
        raise typer.BadParameter(
            "--sign-in-link works only if browsers use the console at a loopback address"
        )
    # Output that is not a terminal is usually kept in a log, where a token has no place.
    is_seen = is_loopback(settings.console_host) and _is_terminal()
    has_link = settings.is_local and (sign_in_link or is_seen)
    configure(settings.log_format, settings.log_level)
    # Starlette, Jinja and Authlib are slow to import, and no other command needs them.
    with _needs_extra():
        from keyturn_workers.console.server import run_console  # noqa: PLC0415
    uvloop.run(run_console(settings, _print_link if has_link else None))


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _print_link(url: str) -> None:
    print_line(f"Sign in, once and within an hour: {url}")
    sys.stdout.flush()


@app.command("add-user")
def add_user(
    name: Annotated[str, typer.Argument(help="The name to sign in with.")],
    role: Annotated[
        Literal["view", "operate"],
        typer.Option("--role", help="`view` reads every page; `operate` also uses the actions."),
    ],
    file: _FileOption,
) -> None:
    """Add a person, or change their password and role.

    Writes the password file. Asks for the password twice, or reads it from standard input if that
    is not a terminal. A running console reads the file again, and ends the sessions of a person
    whose line changed.
    """
    with _needs_extra():
        from keyturn_workers.console.auth import passwords  # noqa: PLC0415
    if not passwords.is_user_name(name):
        raise typer.BadParameter("a name has 1 to 64 characters of a-z, A-Z, 0-9 and . _ @ + -")
    _read(file)  # one that cannot be used is said before anything is typed
    password = _read_password()
    if not passwords.MIN_CHARACTERS <= len(password) <= passwords.MAX_CHARACTERS:
        raise typer.BadParameter(
            f"a password has {passwords.MIN_CHARACTERS} to {passwords.MAX_CHARACTERS} characters"
        )
    digest = passwords.hash_password(password)
    with _locked(file) as target:
        users = _read(target)
        action = "changed" if name in users else "added"
        users[name] = passwords.User(name, role, digest)
        write_secret(target, passwords.format_users(users), force=True, keep_mode=True)
    print_line(f"{action} {name} with the role {role} in {file}")


@app.command("remove-user")
def remove_user(
    name: Annotated[str, typer.Argument(help="The name to remove.")], file: _FileOption
) -> None:
    """Remove a person from the password file. A running console ends their sessions."""
    with _needs_extra():
        from keyturn_workers.console.auth import passwords  # noqa: PLC0415
    with _locked(file) as target:
        users = _read(target)
        if name not in users:
            raise CommandError(f"{file} has no user of this name")
        del users[name]
        write_secret(target, passwords.format_users(users), force=True, keep_mode=True)
    print_line(f"removed {name} from {file}")


@contextmanager
def _locked(file: Path) -> Iterator[Path]:
    """Lock the file's folder, so that no other command's write brings a removed person back.

    The file itself is replaced, so it cannot be locked. Yields the target of a symbolic link:
    replacing the link would make a copy that no console reads.
    """
    target = file.resolve()
    try:
        folder = os.open(target.parent, os.O_RDONLY)
    except OSError as exc:
        raise CommandError(f"{file}: {exc.strerror}") from exc
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield target
    finally:
        os.close(folder)


def _read(file: Path) -> "dict[str, User]":
    from keyturn_workers.console.auth.passwords import parse_users  # noqa: PLC0415

    try:
        return parse_users(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except UnicodeError as exc:
        raise CommandError(f"{file}: not UTF-8 text") from exc
    except ValueError as exc:
        raise CommandError(f"{file}: {exc}") from exc


def _read_password() -> str:
    if sys.stdin.isatty():
        answer: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
        return answer
    return sys.stdin.readline().rstrip("\r\n")
