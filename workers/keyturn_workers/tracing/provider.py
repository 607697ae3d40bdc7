"""The tracer provider of a process: configured by OpenTelemetry's variables, stopped in time."""

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from keyturn_workers.tracing.environment import receiver, root_ratio
from keyturn_workers.tracing.exporter import ReportingExporter
from keyturn_workers.tracing.sampling import DecidedIds, RootSampling

STOP_TIMEOUT_S: Final = 5.0

_log = structlog.get_logger()


def resource_of(service: str, deployment: str) -> Resource:
    """What describes the process; `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` win."""
    own = {
        "service.name": service,
        "service.namespace": "keyturn",
        "service.version": version("keyturn-workers"),
        "service.instance.id": str(uuid.uuid4()),
        "keyturn.deployment": deployment,
    }
    return Resource.create(own).merge(OTELResourceDetector().detect())


@dataclass(frozen=True, slots=True)
class RunningProvider:
    """A provider, and what decides by the same ids which traces it records."""

    provider: TracerProvider
    sampling: RootSampling


@contextmanager
def running_provider(service: str, deployment: str) -> Iterator[RunningProvider]:
    """A provider that exports by OTLP, and sends what it holds at the end, within a bound.

    Args:
        service: The process's name in traces.
        deployment: The deployment's name.
    """
    ids = DecidedIds()
    provider = TracerProvider(
        resource=resource_of(service, deployment),
        id_generator=ids,
        shutdown_on_exit=False,  # its own handler would wait for half a minute
    )
    exporter = ReportingExporter(OTLPSpanExporter(), receiver(os.environ))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("keyturn-workers", version("keyturn-workers"))
    try:
        yield RunningProvider(provider, RootSampling(tracer, ids, root_ratio(os.environ)))
    finally:
        stop(provider, exporter)


def stop(
    provider: TracerProvider, exporter: ReportingExporter, timeout_s: float = STOP_TIMEOUT_S
) -> None:
    """Send what is left, for at most `timeout_s` seconds; not at all if the receiver is away."""
    exporter.give_up()
    # Not to be waited for at exit, whatever the receiver does.
    stopping = threading.Thread(target=provider.shutdown, name="tracing-stop", daemon=True)
    stopping.start()
    stopping.join(timeout_s)
    if stopping.is_alive():
        _log.warning("traces left behind: the receiver does not answer")
