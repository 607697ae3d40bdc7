"""The root of the command line: its commands, its environment files, its one way out."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import stamina
import typer
from dotenv import dotenv_values
from typer.core import TyperGroup

from keyturn.settings import PREFIX
from keyturn_workers.amqp.property_tolerance import tolerate_odd_properties
from keyturn_workers.cli import (
    dead,
    delete,
    doctor,
    download,
    enroll,
    errors,
    gateway,
    init,
    keygen,
    objects,
    rotate,
    status,
    sweep,
    upload,
    worker,
)
from keyturn_workers.worker.core_dumps import forbid_core_dumps


class Door(TyperGroup):
    """Every command ends here, whoever started it (a shell, a test)."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, tell what failed in one line, and exit with its status."""
        del standalone_mode  # typer's own way out prints boxes
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
    cls=Door,
    help="Envelope encryption for files in S3, with two keys an object.",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


def _load(paths: list[Path]) -> None:
    for path in paths:
        try:
            with path.open(encoding="utf-8") as file:
                values = dotenv_values(stream=file, interpolate=False)
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "not text"
            raise typer.BadParameter(f"{path}: {reason}") from None
        for name, value in values.items():
            if name.startswith(PREFIX) and value is not None:
                os.environ.setdefault(name, value)


def _hush() -> None:
    """Let no library speak: what a person needs is in the one line that a failure tells.

    Without a handler, Python itself writes their warnings to standard error.
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
            help="Read KEYTURN_ variables from this file too; those of the environment win, "
            "and earlier files over later ones.",
        ),
    ] = None,
) -> None:
    """Envelope encryption for files in S3, with two keys an object."""
    _load(env_file or [])
    tolerate_odd_properties()
    if context.invoked_subcommand not in ("worker", "gateway"):  # which sets up logs of its own
        _hush()


app.command("init")(init.init)
app.add_typer(keygen.app)
app.add_typer(worker.app)
app.command("gateway")(gateway.gateway)
app.command("enroll")(enroll.enroll)
app.command("upload")(upload.upload)
app.command("ls")(objects.ls)
app.command("download")(download.download)
app.command("rotate")(rotate.rotate)
app.command("sweep")(sweep.sweep)
app.command("delete")(delete.delete)
app.command("inspect")(objects.inspect)
app.command("status")(status.status)
app.command("doctor")(doctor.doctor)
app.add_typer(dead.app)


def main() -> None:
    """The console script."""
    forbid_core_dumps()  # before the first secret is read
    app(prog_name="keyturn")
