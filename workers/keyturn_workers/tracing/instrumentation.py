"""The parts of a process that traces concern: here, the plain ones."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime

from faststream.rabbit import RabbitBroker
from starlette.types import ASGIApp

from keyturn.crypto import SigningKey
from keyturn.settings import S3Settings
from keyturn_workers.amqp.consumer import Handle
from keyturn_workers.amqp.publisher import WorkerPublisher
from keyturn_workers.storage import Capabilities
from keyturn_workers.storage.port import BASELINE
from keyturn_workers.storage.s3 import S3Storage, open_storage
from keyturn_workers.worker.metrics import WorkerMetrics


class Instrumentation:
    """Makes the parts of a process without traces."""

    def metrics(self) -> WorkerMetrics:
        """The process's metrics."""
        return WorkerMetrics()

    def worker_publisher(
        self,
        broker: RabbitBroker,
        deployment: str,
        event_keys: Sequence[SigningKey],
        now: Callable[[], datetime],
    ) -> WorkerPublisher:
        """What publishes on the worker's behalf."""
        return WorkerPublisher(broker, deployment, event_keys, now)

    def handle(self, queue: str, handle: Handle) -> Handle:
        """What handles the deliveries of a queue."""
        del queue
        return handle

    def open_storage(
        self,
        settings: S3Settings,
        *,
        capabilities: Capabilities = BASELINE,
        max_connections: int = 128,
    ) -> AbstractAsyncContextManager[S3Storage]:
        """The bucket; arguments and errors are those of `open_storage`."""
        return open_storage(settings, capabilities=capabilities, max_connections=max_connections)

    def application(self, app: ASGIApp) -> ASGIApp:
        """What serves HTTP."""
        return app
