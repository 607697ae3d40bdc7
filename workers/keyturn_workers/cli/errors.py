"""Errors of a command: one exit status and one line (SPEC 12, 14).

The line must never contain a traceback, or the text of a foreign exception: a driver's text can
contain an address with its password.

Every command imports this module, and so does `keyturn --help`. The code that describes a failure
is imported only at a failure.
"""

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import typer

from keyturn.errors import (
    BrokerUnavailableError,
    CodedError,
    GatewayError,
    PublisherError,
    SettingsError,
)
from keyturn_workers.core.errors import (
    ExportError,
    MissingExtraError,
    StorageResponseError,
    UnsafeStorageError,
    first_error,
)

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
INTERRUPTED: Final = 130

# typer bundles its own copy of click; this finds its base class in every version.
UsageError: Final[type[Exception]] = typer.BadParameter.__mro__[1]


_env_files: ContextVar[tuple[str, ...]] = ContextVar("env_files", default=())


class CommandError(Exception):
    """A command failed; the text is one line for the user."""


_OWN: Final = (
    CommandError,
    GatewayError,
    CodedError,
    PublisherError,
    UnsafeStorageError,
    MissingExtraError,
    ExportError,
)


def run(command: Callable[[], Any]) -> int:
    """Run a command, print its failure, if any, and return the exit status."""
    try:
        status = command()
        sys.stdout.flush()  # here, so that a closed pipe is noticed here
    except BrokenPipeError:
        _drop_output()
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except typer.Abort:  # a prompt was declined, or its input ended
        return _fail("aborted", FAILED)
    except Exception as exc:  # noqa: BLE001  # the last handler: every error becomes one line
        return _fail(*describe(exc))
    return status if isinstance(status, int) else DONE


def describe(exc: BaseException) -> tuple[str, int]:
    """Return the line to print for an error, and the exit status."""
    exc = first_error(exc)
    if isinstance(exc, SettingsError):
        return str(exc), WRONG_USAGE
    if isinstance(exc, UsageError):
        return _usage(exc), WRONG_USAGE
    return _failure(exc), FAILED


def _failure(exc: BaseException) -> str:
    from aio_pika.exceptions import AMQPException  # noqa: PLC0415

    from keyturn.publisher.connection import describe_broker_failure  # noqa: PLC0415
    from keyturn_workers.pipeline.amqp.declarations import TopologyError  # noqa: PLC0415
    from keyturn_workers.reports.dead_letters.queue import DeadLetterError  # noqa: PLC0415
    from keyturn_workers.storage.setting_hints import with_setting  # noqa: PLC0415

    match exc:
        case BrokerUnavailableError():
            line = f"{exc}{_at_broker()}"
        case _ if isinstance(exc, (*_OWN, TopologyError, DeadLetterError)):
            line = str(exc)
        case StorageResponseError():
            line = f"the storage rejected the request: {with_setting(str(exc))}"
        case AMQPException() | ConnectionError():
            line = f"the broker cannot be reached ({describe_broker_failure(exc)}){_at_broker()}"
        case TimeoutError():
            line = "a server did not respond in time"
        case OSError(strerror=str(reason), filename=name):
            line = f"{name}: {reason}" if name else reason
        case _:
            line = f"internal error: {type(exc).__name__}{_location(exc)}"
    return line


def _at_broker() -> str:
    from keyturn_workers.cli.bucket import broker_endpoint  # noqa: PLC0415

    endpoint = broker_endpoint()
    return "" if endpoint is None else f" at {endpoint}"


def _usage(exc: Exception) -> str:
    message: str = exc.format_message()  # type: ignore[attr-defined]  # click's, see UsageError
    context = getattr(exc, "ctx", None)
    hint = f" (see {context.command_path} --help)" if context is not None else ""
    return f"{message.rstrip('.')}{hint}" if message else ""


def _location(exc: BaseException) -> str:
    """Return file and line, instead of a traceback: a bug report needs them first."""
    frames = traceback.extract_tb(exc.__traceback__)
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _fail(line: str, status: int) -> int:
    if line:
        note(line)
    return status


def set_env_files(paths: Sequence[Path]) -> None:
    """Remember the environment files that this command line names."""
    _env_files.set(tuple(map(str, paths)))


def command_line(*words: str) -> str:
    """Return a command of `keyturn` that works where this one was given, for a note."""
    options = [f"--env-file {shlex.quote(path)}" for path in _env_files.get()]
    return " ".join(("keyturn", *options, *words))


def note(line: str) -> None:
    """Print one line to standard error."""
    from keyturn_workers.cli.output import printable  # noqa: PLC0415

    print(f"keyturn: {printable(line)}", file=sys.stderr, flush=True)  # noqa: T201  # its purpose


def _drop_output() -> None:
    # Python flushes once more at exit, and would report the closed pipe then.
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, descriptor)
    os.close(devnull)
