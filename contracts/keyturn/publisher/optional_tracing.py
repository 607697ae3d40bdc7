"""Traces of a publisher, where they are on: OpenTelemetry is an extra (SPEC 6.11, 11)."""

from typing import TYPE_CHECKING

from keyturn.errors import SettingsError
from keyturn.settings import PublisherSettings

if TYPE_CHECKING:
    from keyturn.tracing import PublisherTracing


def publisher_tracing(settings: PublisherSettings) -> "PublisherTracing | None":
    """What records a publisher's traces; None where they are off.

    Raises:
        SettingsError: they are on, and OpenTelemetry is not installed.
    """
    if not settings.tracing:
        return None
    try:
        from keyturn.tracing import PublisherTracing  # noqa: PLC0415  # an extra of its own
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "opentelemetry":
            raise
        raise SettingsError(
            "KEYTURN_TRACING is on, but OpenTelemetry is not installed: pip install 'keyturn[otel]'"
        ) from exc
    return PublisherTracing(settings.publisher_name)
