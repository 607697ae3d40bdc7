"""The root of the command line: its commands, environment files and exit status."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import stamina
import typer
from dotenv import dotenv_values
from typer.core import TyperGroup

from keyturn.settings import PREFIX
from keyturn_workers.amqp.property_tolerance import tolerate_odd_properties
from keyturn_workers.cli import (
    audit,
    console,
    dead,
    delete,
    doctor,
    download,
    enroll,
    errors,
    evidence,
    gateway,
    init,
    keygen,
    keys,
    link,
    objects,
    rotate,
    status,
    sweep,
    upload,
    verify,
    worker,
)
from keyturn_workers.worker.core_dumps import disable_core_dumps

_PROCESSES: Final = ("worker", "gateway", "console")


class RootGroup(TyperGroup):
    """Gives every command, from a shell or a test, the same errors and exit statuses."""

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
    if context.invoked_subcommand not in (
        "worker",
        "gateway",
        "console",
    ):  # which configure their own logs
        _silence_libraries()


app.command("init")(init.init)
app.add_typer(keygen.app)
app.add_typer(keys.app)
app.add_typer(worker.app)
app.command("gateway")(gateway.gateway)
app.add_typer(console.app)
app.command("enroll")(enroll.enroll)
app.command("upload")(upload.upload)
app.command("ls")(objects.ls)
app.command("download")(download.download)
app.command("link")(link.link)
app.command("rotate")(rotate.rotate)
app.command("sweep")(sweep.sweep)
app.command("delete")(delete.delete)
app.command("inspect")(objects.inspect)
app.command("status")(status.status)
app.command("verify")(verify.verify)
app.command("doctor")(doctor.doctor)
app.add_typer(evidence.app)
app.add_typer(dead.app)
app.add_typer(audit.app)


def main() -> None:
    """Run the command line."""
    disable_core_dumps()  # before the first secret is read
    app(prog_name="keyturn")
