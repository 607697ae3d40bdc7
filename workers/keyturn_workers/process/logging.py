"""Structured logs to standard error, as JSON or for a console; at most one line for each object.

Values are ids, codes, sizes and times. Secrets have types that cannot print themselves, bodies are
never passed to a logger, and tracebacks contain no local variables.
"""

import logging
import sys

import orjson
import stamina
import structlog

from keyturn.publisher.connection import describe_broker_problem
from keyturn_workers.process.settings import LogFormat

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_PRINTABLE = (str, int, float, OSError, type(None))
# These log every message or request, some with complete headers and URLs.
_QUIET = ("aio_pika", "aiormq", "aiobotocore", "botocore", "aiohttp", "asyncio", "faststream")
# These log each failure to connect or to send. Their callers log it once, in our words: the
# code that connects, and `pipeline.tracing.export`. aio-pika also tries to reopen each channel
# of a connection that the broker has just closed.
_SILENT = ("aiormq.connection", "aio_pika.tools", "opentelemetry")
_RENEWALS = "keyturn.tls"
# Reconnects after a lost connection.
_RECONNECTING = "aio_pika.robust_connection"


def configure(log_format: LogFormat, level: str) -> None:
    """Configure logging for the process, once, at its start."""
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderers: list[structlog.typing.Processor]
    if log_format == "json":
        renderers = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_dumps),
        ]
    else:
        renderers = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    _configure_libraries([*shared, structlog.stdlib.add_logger_name], renderers)
    # A logger of the package `keyturn`, whose other lines are for developers, not for operators.
    logging.getLogger(_RENEWALS).setLevel(max(_LEVELS[level], logging.INFO))


def _configure_libraries(
    before: list[structlog.typing.Processor], renderers: list[structlog.typing.Processor]
) -> None:
    """Format the libraries' log lines like our own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    handler.addFilter(_without_messages)
    handler.addFilter(_with_broker_problem)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger(_RECONNECTING).setLevel(logging.WARNING)
    for name in _SILENT:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # The retrying code logs the reason, if it matters.
    stamina.instrumentation.set_on_retry_hooks([])


def _without_messages(record: logging.LogRecord) -> bool:
    """Log the types of aiormq's values instead, except text, numbers and network errors.

    aiormq logs the whole of a message that the broker returns late, and unexpected frames.
    """
    if record.name.partition(".")[0] == "aiormq" and record.args:
        args = record.args if isinstance(record.args, tuple) else (record.args,)
        record.args = tuple(
            arg if isinstance(arg, _PRINTABLE) else type(arg).__name__ for arg in args
        )
    return True


def _with_broker_problem(record: logging.LogRecord) -> bool:
    """Replace the libraries' text about a refused connection, which names no setting.

    A worker keeps reconnecting, and nothing else logs the reason. If the broker is merely
    unreachable, the code that needs it logs that.
    """
    is_reconnecting = record.name == _RECONNECTING
    if isinstance(record.args, tuple) and (
        is_reconnecting or record.name.partition(".")[0] == "aiormq"
    ):
        for arg in record.args:
            if isinstance(arg, Exception) and (problem := describe_broker_problem(arg)):
                record.msg, record.args = "the broker cannot be reached (%s)", (problem,)
                return True
    return not is_reconnecting or record.levelno >= logging.ERROR


def _dumps(event: object, **_: object) -> str:
    return orjson.dumps(event, default=str).decode()
