"""A broker and an S3 server for the duration of a block, given or private.

Used by the demo, the bench and the tests (SPEC 6, 10, 11). A server that the environment names is
used as it is and never stopped. A missing one is started here and ended on exit, or by its reaper
if this process is killed.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Literal, Self

from tools.servers import packages
from tools.servers.ceph import CephRgw
from tools.servers.moto import MotoServer
from tools.servers.rabbitmq import RabbitMQ
from tools.servers.s3 import S3Server, new_bucket
from tools.servers.seaweedfs import SeaweedFS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future
    from types import TracebackType

    from tools.servers.certificates import Certificate

StorageKind = Literal["ceph", "moto", "seaweedfs", "none"]


class Servers:
    """Context manager over a broker and a storage server.

    Args:
        storage: Which S3 server to start if none is given.
        broker: Whether a broker is needed.
        ceph_tls: A certificate with which Ceph listens for TLS, too.
        environ: Where `KEYTURN_AMQP_URL` and `KEYTURN_S3_…` are looked up; the process's
            environment by default.
    """

    def __init__(
        self,
        storage: StorageKind,
        *,
        broker: bool = True,
        ceph_tls: Certificate | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        self._given_url = environ.get("KEYTURN_AMQP_URL") or None
        self._given_s3 = S3Server.from_environment(environ)
        self._storage = storage
        self._broker = broker
        self._ceph_tls = ceph_tls
        self._stack = ExitStack()
        self._s3: S3Server | None = None
        self._amqp_url: str | None = None
        self.rabbitmq: RabbitMQ | None = None
        """The private broker, if there is one: for restarts and kills."""

    @property
    def amqp_url(self) -> str:
        """The broker's address.

        Raises:
            RuntimeError: no broker was requested, or the block was not entered.
        """
        if self._amqp_url is None:
            raise RuntimeError("there is no broker")
        return self._amqp_url

    @property
    def s3(self) -> S3Server:
        """The storage server.

        Raises:
            RuntimeError: no storage was requested, or the block was not entered.
        """
        if self._s3 is None:
            raise RuntimeError("there is no storage server")
        return self._s3

    def new_bucket(self) -> str:
        """Create an empty bucket with a random name, and return the name."""
        return new_bucket(self.s3)

    def __enter__(self) -> Self:
        own_broker = self._broker and self._given_url is None
        own_storage = self._storage if self._given_s3 is None else "none"
        packages.ensure(packages.needed(own_storage, broker=own_broker))
        with self._stack:
            self._start(own_storage, own_broker=own_broker)
            # All servers run: from now on they are stopped at the end of the block.
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        self._s3 = self._amqp_url = self.rabbitmq = None

    def _start(self, storage: StorageKind, *, own_broker: bool) -> None:
        """Start both concurrently: each mostly waits for its own processes."""
        makers: dict[StorageKind, Callable[[], CephRgw | MotoServer | SeaweedFS]] = {
            "ceph": partial(CephRgw, tls=self._ceph_tls),
            "moto": MotoServer,
            "seaweedfs": SeaweedFS,
        }
        server = makers.get(storage)
        self._s3 = self._given_s3
        self._amqp_url = self._given_url if self._broker else None
        with ThreadPoolExecutor(max_workers=2) as pool:
            starting: list[Future[object]] = []
            if own_broker:
                self.rabbitmq = RabbitMQ()
                self._stack.callback(self.rabbitmq.stop)
                starting.append(pool.submit(self.rabbitmq.start))
            if server is not None:
                private = server()
                self._stack.callback(private.close)
                starting.append(pool.submit(private.start))
            for done in starting:
                done.result()
        if self.rabbitmq is not None:
            self._amqp_url = self.rabbitmq.url
        if server is not None:
            self._s3 = private.server
