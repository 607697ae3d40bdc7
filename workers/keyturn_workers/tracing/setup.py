"""Chooses the parts of a process: those with traces, or the plain ones (SPEC 6.11, 11)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from pydantic import SecretStr

from keyturn_workers.errors import MissingExtraError
from keyturn_workers.tracing.environment import check_environment, is_disabled
from keyturn_workers.tracing.instrumentation import Instrumentation

_MISSING: Final = (
    "KEYTURN_TRACING is on, but OpenTelemetry is not installed: pip install 'keyturn-workers[otel]'"
)
# What the extra installs; of anything else, a missing module is a mistake of ours.
_PACKAGES: Final = frozenset({"opentelemetry", "google", "requests"})


class TracedSettings(Protocol):
    """What the settings of a process with traces have."""

    @property
    def tracing(self) -> bool:
        """Whether the process records traces."""
        ...

    @property
    def deployment(self) -> str:
        """The deployment's name."""
        ...

    @property
    def amqp_url(self) -> SecretStr:
        """The broker's address."""
        ...


@contextmanager
def open_tracing(settings: TracedSettings, service: str) -> Iterator[Instrumentation]:
    """The parts for a process that lives as long as the block.

    Args:
        settings: Of the process.
        service: Its name in traces, unless `OTEL_SERVICE_NAME` gives one.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
        SettingsError: one of its variables is malformed.
    """
    if not settings.tracing or is_disabled(os.environ):
        yield Instrumentation()
        return
    try:
        from opentelemetry import trace  # noqa: PLC0415  # an extra of its own

        from keyturn_workers.tracing.provider import running_provider  # noqa: PLC0415
        from keyturn_workers.tracing.traced import TracedInstrumentation  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] in _PACKAGES:
            raise MissingExtraError(_MISSING) from exc
        raise
    check_environment(os.environ)
    with running_provider(service, settings.deployment) as running:
        # The gateway's publisher uses it too.
        trace.set_tracer_provider(running.provider)
        yield TracedInstrumentation(running.sampling, settings.amqp_url.get_secret_value())
