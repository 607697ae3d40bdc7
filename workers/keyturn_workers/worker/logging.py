"""Structured logs to standard error, as JSON or for a console; at most one line for each object.

Values are ids, codes, sizes and times. Secrets have types that cannot print themselves, bodies are
never passed to a logger, and tracebacks contain no local variables.
"""

import logging
import sys

import orjson
import structlog

from keyturn_workers.settings import LogFormat

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
# These log every message or request, some with complete headers and URLs.
_QUIET = ("aio_pika", "aiormq", "aiobotocore", "botocore", "aiohttp", "asyncio", "faststream")


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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    _configure_libraries([*shared, structlog.stdlib.add_logger_name], renderers)


def _configure_libraries(
    before: list[structlog.typing.Processor], renderers: list[structlog.typing.Processor]
) -> None:
    """Log what libraries log in the same format as our own lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)


def _dumps(event: object, **_: object) -> str:
    return orjson.dumps(event, default=str).decode()
