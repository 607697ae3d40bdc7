"""The root of the command line: its commands, environment files and exit status.

Commands are imported when they run: importing everything takes more than a second, and
`keyturn --help` and a shell's completion need only names and summaries.
"""

import logging
import os
import sys
from collections.abc import Sequence
from contextvars import copy_context
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from keyturn_workers.cli import errors
from keyturn_workers.process.runtime import disable_core_dumps

_PROCESSES: Final = ("worker", "gateway", "console")
# The commands, and the first sentence of the help of each.
GROUPS: Final = {
    "Files": {
        "upload": "Upload files and folders.",
        "download": "Download and decrypt one object.",
        "ls": "List a project's objects.",
        "inspect": "Show an object's metadata.",
        "link": "Print a link to one object, for use without the API key.",
        "delete": "Delete objects permanently.",
        "import": "Import all objects of a source.",
        "export": "Decrypt all objects of a project into a folder or another bucket.",
        "copy": "Copy all objects of a project to another one, under new data keys.",
    },
    "Projects": {
        "enroll": "Enroll a project: create its keyring.",
        "rotate": "Rotate a project to a new API key, to a customer key, or to both.",
        "erase": "Erase a project whose customer keys are gone.",
        "verify": "Check that one key opens every object of a project.",
        "evidence": "List, show, export or verify evidence.",
    },
    "Keys": {
        "init": "Create development secrets and settings.",
        "keygen": "Generate a key.",
        "keys": "Manage master keys, and export one project's admin KEK.",
    },
    "Operate": {
        "broker-users": "Print the broker's users and permissions.",
        "doctor": "Check what the bucket, the broker and the sources can do.",
        "status": "Show keyrings, sweeps, and which master keys are in use.",
        "sources": "Show the sources, or the refused objects of one.",
        "sweep": "Bring every object to the desired state, and prove it.",
        "dead": "Inspect, replay or discard dead letters.",
        "audit": "Follow, export or verify the audit trail.",
        "recover": "Accept a keyring from a backup, or one that lost its mark.",
    },
    "Serve": {
        "worker": "Run a worker process.",
        "gateway": "Run the HTTP gateway, which serves objects to holders of API keys.",
        "console": "Run the operator's console, or change its users.",
    },
}
# The module and object of a command, if not `name:name`: its function, or its app with commands.
_TARGETS: Final = {
    "ls": "objects:ls",
    "inspect": "objects:inspect",
    "link": "download:link",
    "import": "sources:import_source",
    "copy": "copying:copy",
    "enroll": "projects:enroll",
    "rotate": "projects:rotate",
    "evidence": "evidence:app",
    "keygen": "init:app",
    "keys": "keys:app",
    "sweep": "projects:sweep",
    "dead": "dead:app",
    "audit": "audit:app",
    "broker-users": "broker_users:broker_users",
    "worker": "serve:app",
    "gateway": "serve:gateway",
    "console": "console:app",
}
_SUMMARIES: Final = {name: text for group in GROUPS.values() for name, text in group.items()}
# Commands of other tools, and their names here.
_MEANT: Final = {
    "get": ["download"],
    "put": ["upload"],
    "rm": ["delete"],
    "cp": ["upload", "download", "copy"],
}


def load(name: str) -> Any:
    """Import a command's module and build the command as part of `keyturn`."""
    from keyturn_workers.cli.output import add_wide_option  # noqa: PLC0415

    module, _, attribute = _TARGETS.get(name, f"{name}:{name}").partition(":")
    found = getattr(import_module(f"keyturn_workers.cli.{module}"), attribute)
    part = typer.Typer(rich_markup_mode=None)
    if isinstance(found, typer.Typer):
        part.add_typer(found)
    else:
        part.command(name)(found)
    command = get_group(part).commands[name]
    add_wide_option(command)
    return command


class RootGroup(TyperGroup):
    """Gives every command, from a shell or a test, the same errors and exit statuses.

    It has a name and a summary for each command, which is imported once it is called.
    """

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, summary in _SUMMARIES.items():
            self.add_command(TyperCommand(name, help=summary))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import and return the called command."""
        if args[0] in _MEANT and not ctx.resilient_parsing:
            meant = " or ".join(map(repr, _MEANT[args[0]]))
            ctx.fail(f"No such command {args[0]!r}. Did you mean {meant}?")
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else load(name), rest

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Print the commands in groups."""
        del ctx
        for title, group in GROUPS.items():
            with formatter.section(title):
                width = max(8, *map(len, group))
                formatter.write_dl([(name.ljust(width), text) for name, text in group.items()])

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
        # In a context of its own: one command's options do not stay for the next.
        status = copy_context().run(
            errors.run,
            lambda: run(
                args,
                prog_name,
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            ),
        )
        sys.exit(status)


app = typer.Typer(
    name="keyturn",
    cls=RootGroup,
    help="Encrypt many customers' files in one S3 bucket, and rotate their keys.",
    epilog="To complete commands and options with the Tab key in bash, zsh or fish, run "
    "`keyturn --install-completion` once. For one session of bash: "
    'eval "$(keyturn --show-completion)"',
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    invoke_without_command=True,
)


def _load_env_files(paths: list[Path]) -> None:
    from keyturn.settings import read_env_files  # noqa: PLC0415

    # Not only settings: an option of a command may read a variable, too.
    for name, value in read_env_files(paths).items():
        os.environ.setdefault(name, value)


def _silence_libraries() -> None:
    """Drop the logs of libraries: a failure is reported in one line.

    Without a handler, Python writes their warnings to standard error.
    """
    import stamina  # noqa: PLC0415

    stamina.instrumentation.set_on_retry_hooks([])
    logger = logging.getLogger()
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415

        print(f"keyturn {version('keyturn-workers')}")  # noqa: T201  # its purpose
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    env_file: Annotated[
        list[Path] | None,
        typer.Option(
            envvar="KEYTURN_ENV_FILE",
            metavar="PATH",
            help="Also read KEYTURN_ variables from this file. The environment takes precedence, "
            "then earlier files.",
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Encrypt many customers' files in one S3 bucket, and rotate their keys."""
    del version
    if context.invoked_subcommand is None:
        print(context.get_help())  # noqa: T201  # its purpose
        raise typer.Exit(errors.WRONG_USAGE)
    if env_file:
        _load_env_files(env_file)
    source = context.get_parameter_source("env_file")
    if source is not None and source.name == "COMMANDLINE":
        errors.set_env_files(env_file or [])
    from keyturn_workers.process.property_tolerance import tolerate_odd_properties  # noqa: PLC0415

    tolerate_odd_properties()
    if context.invoked_subcommand not in _PROCESSES:  # which configure their own logs
        _silence_libraries()


def main() -> None:
    """Run the command line."""
    disable_core_dumps()  # before the first secret is read
    app(prog_name="keyturn")
