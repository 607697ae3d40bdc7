"""How a command ends: one exit status and, where it failed, one line (SPEC 12, 14).

It must never show a traceback or an exception's text that others wrote: the text of a
driver's error can hold an address with its password.
"""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import typer
from aio_pika.exceptions import AMQPException

from keyturn.errors import (
    BrokerUnavailableError,
    CodedError,
    GatewayError,
    PublisherError,
    SettingsError,
)
from keyturn_workers.cli.endpoints import broker_address, first_of
from keyturn_workers.cli.output import printable
from keyturn_workers.errors import StorageAnswerError, UnsafeStorageError

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
INTERRUPTED: Final = 130

# typer keeps a copy of click of its own; by this way its base is found in every version.
UsageError: Final[type[Exception]] = typer.BadParameter.__mro__[1]


class CommandError(Exception):
    """A command could not do what it was asked to; the text is one line for a person."""


_OWN: Final = (CommandError, GatewayError, CodedError, PublisherError, UnsafeStorageError)


def run(command: Callable[[], Any]) -> int:
    """Run a command to its end; gives the exit status and has told what failed."""
    try:
        status = command()
        sys.stdout.flush()  # here, so that a closed pipe is met here
    except BrokenPipeError:
        _drop_output()
        return FAILED
    except (KeyboardInterrupt, typer.Abort) as exc:
        # Abort: the input ended where a prompt waited for it.
        return _say("nothing was entered", FAILED) if isinstance(exc, typer.Abort) else INTERRUPTED
    except Exception as exc:  # noqa: BLE001  # the process's door: whatever it is becomes one line
        return _say(*line_of(exc))
    return status if isinstance(status, int) else DONE


def line_of(exc: BaseException) -> tuple[str, int]:
    """The line to tell for an error, and the exit status."""
    exc = first_of(exc)
    if isinstance(exc, SettingsError):
        return str(exc), WRONG_USAGE
    if isinstance(exc, UsageError):
        return _usage(exc), WRONG_USAGE
    return _failure(exc), FAILED


def _failure(exc: BaseException) -> str:
    # It brings FastStream with it, which takes a second to import.
    from keyturn_workers.amqp.declarations import TopologyError  # noqa: PLC0415

    match exc:
        case BrokerUnavailableError():
            return f"{exc}{_at_broker()}"
        case _ if isinstance(exc, (*_OWN, TopologyError)):
            return str(exc)
        case StorageAnswerError():
            return f"the storage refuses: {exc}"
        case AMQPException() | ConnectionError():
            return f"the broker cannot be reached ({type(exc).__name__}){_at_broker()}"
        case OSError(strerror=reason, filename=name):
            return f"{name or type(exc).__name__}: {reason or 'no reason told'}"
        case _:
            return f"internal error: {type(exc).__name__}{_place(exc)}"


def _at_broker() -> str:
    address = broker_address()
    return "" if address is None else f" at {address}"


def _usage(exc: Exception) -> str:
    told: str = exc.format_message()  # type: ignore[attr-defined]  # click's, see UsageError
    context = getattr(exc, "ctx", None)
    hint = f" (see {context.command_path} --help)" if context is not None else ""
    return f"{told.rstrip('.')}{hint}" if told else ""


def _place(exc: BaseException) -> str:
    """Where it happened, in place of a traceback: what a report of a fault needs first."""
    frames = traceback.extract_tb(exc.__traceback__)
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _say(line: str, status: int) -> int:
    if line:
        note(line)
    return status


def note(line: str) -> None:
    """One line to standard error."""
    print(f"keyturn: {printable(line)}", file=sys.stderr, flush=True)  # noqa: T201  # its purpose


def _drop_output() -> None:
    # Python flushes once more at exit, and would tell of the closed pipe then.
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
