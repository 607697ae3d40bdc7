"""The root of the command line: its commands, environment files and exit status.

What a command needs is imported when it runs: all of them take more than a second to import, and
`keyturn --help` and a shell's completion show every name.
"""

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from keyturn_workers.cli import errors
from keyturn_workers.worker.runtime import disable_core_dumps

_PROCESSES: Final = ("worker", "gateway", "console")


class Entry(NamedTuple):
    """A command before it is imported: where it is, and the first line of its help.

    `target` is a module and what is in it: a function, or an app with commands of its own.
    """

    target: str
    summary: str


GROUPS: Final = {
    "Files": {
        "upload": Entry("upload:upload", "Upload files and folders."),
        "download": Entry("download:download", "Download and decrypt one object."),
        "ls": Entry("objects:ls", "List a project's objects."),
        "inspect": Entry("objects:inspect", "Show an object's metadata."),
        "link": Entry("download:link", "Print a link to one object, for use without the API key."),
        "delete": Entry("delete:delete", "Delete objects permanently."),
        "import": Entry("sources:import_source", "Take in all objects of a source."),
        "export": Entry(
            "export:export", "Decrypt all objects of a project into a folder or another bucket."
        ),
    },
    "Projects": {
        "enroll": Entry("projects:enroll", "Enroll a project: create its keyring."),
        "rotate": Entry("projects:rotate", "Rotate a project to a new API key."),
        "verify": Entry(
            "verify:verify", "Check with one key that it opens every object of a project."
        ),
        "evidence": Entry("evidence:app", "List, show, export or verify evidence."),
    },
    "Keys": {
        "init": Entry("init:init", "Create development secrets and settings."),
        "keygen": Entry("init:app", "Generate a key."),
        "keys": Entry("keys:app", "Manage master keys, and export one project's admin KEK."),
    },
    "Operate": {
        "doctor": Entry(
            "doctor:doctor", "Check what the bucket, the broker and the sources can do."
        ),
        "status": Entry(
            "status:status", "Show keyrings, sweeps, and which master keys are in use."
        ),
        "sources": Entry(
            "sources:sources", "Show the sources, and the objects in them that were refused."
        ),
        "sweep": Entry("projects:sweep", "Bring every object to the desired state, and prove it."),
        "dead": Entry("dead:app", "Inspect, replay or discard dead letters."),
        "audit": Entry("audit:app", "Follow, export or verify the audit trail."),
        "recover": Entry(
            "recover:recover", "Accept a keyring that came from a backup, or that lost its mark."
        ),
    },
    "Serve": {
        "worker": Entry("serve:app", "Run a worker process."),
        "gateway": Entry(
            "serve:gateway", "Run the HTTP gateway, which serves objects to holders of API keys."
        ),
        "console": Entry("console:app", "Run the operator's console, or change its users."),
    },
}
_COMMANDS: Final = {name: entry for group in GROUPS.values() for name, entry in group.items()}
# Names of other tools.
_MEANT: Final = {
    "cat": "'download'",
    "cp": "'upload' or 'download'",
    "get": "'download'",
    "list": "'ls'",
    "put": "'upload'",
    "rm": "'delete'",
}


def load(name: str) -> Any:
    """Import a command's module and build the command as part of `keyturn`."""
    from keyturn_workers.cli.output import add_wide_option  # noqa: PLC0415

    module, _, attribute = _COMMANDS[name].target.partition(":")
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

    It holds a name and a summary for each command, which is imported once it is called.
    """

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, entry in _COMMANDS.items():
            self.add_command(TyperCommand(name, help=entry.summary))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is called, imported now."""
        if (meant := _MEANT.get(args[0])) is not None:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {meant}?")
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else load(name), rest

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Print the commands in groups."""
        del ctx
        for title, group in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:8}", entry.summary) for name, entry in group.items()])

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
    epilog="To complete commands and options with the Tab key in bash, zsh or fish, run "
    "`keyturn --install-completion` once. For one session of bash: "
    'eval "$(keyturn --show-completion)"',
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _load_env_files(paths: list[Path]) -> None:
    from dotenv import dotenv_values  # noqa: PLC0415

    from keyturn.settings import PREFIX  # noqa: PLC0415

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
    _load_env_files(env_file or [])
    from keyturn_workers.amqp.property_tolerance import tolerate_odd_properties  # noqa: PLC0415

    tolerate_odd_properties()
    if context.invoked_subcommand not in _PROCESSES:  # which configure their own logs
        _silence_libraries()


def main() -> None:
    """Run the command line."""
    disable_core_dumps()  # before the first secret is read
    app(prog_name="keyturn")
