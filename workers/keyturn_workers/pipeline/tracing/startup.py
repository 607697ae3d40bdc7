"""Traces for the lifetime of a process; without traces, OpenTelemetry is not even imported."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from keyturn_workers.core.errors import MissingExtraError
from keyturn_workers.process.settings import GatewaySettings, WorkerSettings

if TYPE_CHECKING:
    from keyturn_workers.pipeline.tracing.spans import Tracing

_MISSING: Final = (
    "KEYTURN_TRACING is on, but OpenTelemetry is not installed: pip install 'keyturn-workers[otel]'"
)
# The packages of the extra; any other missing module is a bug.
_PACKAGES: Final = frozenset({"opentelemetry", "google", "requests"})


@contextmanager
def open_tracing(
    settings: WorkerSettings | GatewaySettings, service: str
) -> Iterator["Tracing | None"]:
    """Record the traces of a process during the block; None if they are off.

    `service` is the process's name in traces, unless `OTEL_SERVICE_NAME` gives one.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
        SettingsError: one of its variables is malformed.
    """
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not settings.tracing or is_disabled:
        yield None
        return
    try:
        from keyturn_workers.pipeline.tracing.export import running_provider  # noqa: PLC0415  # an extra
        from keyturn_workers.pipeline.tracing.settings import check_environment  # noqa: PLC0415
        from keyturn_workers.pipeline.tracing.spans import open_spans  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] in _PACKAGES:
            raise MissingExtraError(_MISSING) from exc
        raise
    receiver = check_environment(os.environ)
    with (
        running_provider(service, settings.deployment, receiver) as provider,
        open_spans(provider, settings.amqp_url.get_secret_value()) as tracing,
    ):
        yield tracing
