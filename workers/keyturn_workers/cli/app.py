"""The root of the command line: its commands, environment files and exit status."""

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import stamina
import typer
from dotenv import dotenv_values
from typer.core import TyperGroup
from typer.main import get_group

from keyturn.settings import PREFIX
from keyturn_workers.amqp.property_tolerance import tolerate_odd_properties
from keyturn_workers.cli import errors
from keyturn_workers.worker.runtime import disable_core_dumps

_PROCESSES: Final = ("worker", "gateway", "console")


# Each command's module and what is in it: a function, or an app with commands of its own. Only the
# module of the command that runs is imported, since all of them take most of a second.
_COMMANDS: Final = {
    "init": "init:init",
    "gateway": "serve:gateway",
    "enroll": "projects:enroll",
    "upload": "upload:upload",
    "sources": "sources:sources",
    "import": "sources:import_source",
    "ls": "objects:ls",
    "download": "download:download",
    "link": "download:link",
    "export": "export:export",
    "rotate": "projects:rotate",
    "sweep": "projects:sweep",
    "recover": "recover:recover",
    "delete": "delete:delete",
    "inspect": "objects:inspect",
    "status": "status:status",
    "verify": "verify:verify",
    "doctor": "doctor:doctor",
    "keygen": "init:app",
    "keys": "keys:app",
    "worker": "serve:app",
    "console": "console:app",
    "evidence": "evidence:app",
    "dead": "dead:app",
    "audit": "audit:app",
}


def _load(name: str) -> Any:
    """Import a command's module and build the command as part of `keyturn`."""
    module, _, attribute = _COMMANDS[name].partition(":")
    found = getattr(import_module(f"keyturn_workers.cli.{module}"), attribute)
    part = typer.Typer(rich_markup_mode=None)
    if isinstance(found, typer.Typer):
        part.add_typer(found)
    else:
        part.command(name)(found)
    return get_group(part).commands[name]


class RootGroup(TyperGroup):
    """Gives every command, from a shell or a test, the same errors and exit statuses."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order of `--help`."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, imported now."""
        if cmd_name not in _COMMANDS:
            # The error suggests similar names from among those that are there.
            for name in _COMMANDS:
                self.get_command(ctx, name)
        elif cmd_name not in self.commands:
            self.add_command(_load(cmd_name), cmd_name)
        return super().get_command(ctx, cmd_name)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, print a failure as one line, and exit with the status."""
        del standalone_mode  # typer's own mode prints errors in boxes
        run = super().main
        status = errors.run(
            lambda: run(
                args,
                prog_name,
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
        )
        sys.exit(status)


app = typer.Typer(
    name="keyturn",
    cls=RootGroup,
    help="Encrypt many customers' files in one S3 bucket, and rotate their keys.",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


def _load_env_files(paths: list[Path]) -> None:
    for path in paths:
        try:
            with path.open(encoding="utf-8") as file:
                values = dotenv_values(stream=file, interpolate=False)
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
            raise typer.BadParameter(f"{path}: {reason}") from None
        for name, value in values.items():
            if name.startswith(PREFIX) and value is not None:
                os.environ.setdefault(name, value)


def _silence_libraries() -> None:
    """Drop the logs of libraries: a failure is reported in one line.

    Without a handler, Python writes their warnings to standard error.
    """
    stamina.instrumentation.set_on_retry_hooks([])
    logger = logging.getLogger()
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


@app.callback()
def root(
    context: typer.Context,
    env_file: Annotated[
        list[Path] | None,
        typer.Option(
            envvar="KEYTURN_ENV_FILE",
            help="Also read KEYTURN_ variables from this file. The environment takes precedence, "
            "then earlier files.",
        ),
    ] = None,
) -> None:
    """Encrypt many customers' files in one S3 bucket, and rotate their keys."""
    _load_env_files(env_file or [])
    tolerate_odd_properties()
    if context.invoked_subcommand not in _PROCESSES:  # which configure their own logs
        _silence_libraries()


def main() -> None:
    """Run the command line."""
    disable_core_dumps()  # before the first secret is read
    app(prog_name="keyturn")
