"""The parts of a process that make spans."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

from faststream.rabbit import RabbitBroker
from starlette.types import ASGIApp

from keyturn.crypto import SigningKey
from keyturn.settings import S3Settings
from keyturn_workers.amqp.consumer import Handle
from keyturn_workers.amqp.publisher import WorkerPublisher
from keyturn_workers.storage import Capabilities
from keyturn_workers.storage.port import BASELINE
from keyturn_workers.storage.s3 import S3Storage, open_storage
from keyturn_workers.tracing.deliveries import TracedHandle
from keyturn_workers.tracing.http import TracedApplication
from keyturn_workers.tracing.instrumentation import Instrumentation
from keyturn_workers.tracing.publishing import TracedWorkerPublisher
from keyturn_workers.tracing.s3 import TracedS3HttpClient
from keyturn_workers.tracing.sampling import RootSampling
from keyturn_workers.tracing.scope import Value
from keyturn_workers.tracing.stages import TracedMetrics
from keyturn_workers.worker.metrics import WorkerMetrics

_PORTS: Final = {"amqp": 5672, "amqps": 5671}


def broker_attributes(amqp_url: str) -> dict[str, Value]:
    """Host and port of the broker: never its user, password or vhost."""
    url = urlsplit(amqp_url)
    port = url.port or _PORTS.get(url.scheme, 0)
    return {"server.address": url.hostname or "localhost", "server.port": port}


class TracedInstrumentation(Instrumentation):
    """Makes the parts of a process with traces.

    Args:
        sampling: Begins the traces.
        amqp_url: The broker's address.
    """

    def __init__(self, sampling: RootSampling, amqp_url: str) -> None:
        self._sampling = sampling
        self._broker = broker_attributes(amqp_url)

    def metrics(self) -> WorkerMetrics:
        """See `Instrumentation.metrics`."""
        return TracedMetrics()

    def worker_publisher(
        self,
        broker: RabbitBroker,
        deployment: str,
        event_keys: Sequence[SigningKey],
        now: Callable[[], datetime],
    ) -> WorkerPublisher:
        """See `Instrumentation.worker_publisher`."""
        return TracedWorkerPublisher(broker, deployment, event_keys, now, server=self._broker)

    def handle(self, queue: str, handle: Handle) -> Handle:
        """See `Instrumentation.handle`."""
        return TracedHandle(queue, handle, self._sampling, self._broker)

    def open_storage(
        self,
        settings: S3Settings,
        *,
        capabilities: Capabilities = BASELINE,
        max_connections: int = 128,
    ) -> AbstractAsyncContextManager[S3Storage]:
        """See `Instrumentation.open_storage`."""
        return open_storage(
            settings,
            capabilities=capabilities,
            max_connections=max_connections,
            http_client=TracedS3HttpClient,
        )

    def application(self, app: ASGIApp) -> ASGIApp:
        """See `Instrumentation.application`."""
        return TracedApplication(app, self._sampling.tracer)
