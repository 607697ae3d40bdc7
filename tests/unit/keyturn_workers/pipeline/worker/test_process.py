"""A worker's start and end, and the runtime of a process that holds keys (SPEC 13)."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import math
import os
import resource
import subprocess
import sys
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import AsyncMock, Mock

import aio_pika
import pytest
import stamina
from faststream.rabbit import RabbitBroker

from keyturn.errors import StorageUnavailableError
from keyturn_workers.cli import app as app_module
from keyturn_workers.core.errors import ClockSkewError, UnsafeStorageError
from keyturn_workers.core.storage_values import Capabilities
from keyturn_workers.pipeline.worker import process
from keyturn_workers.pipeline.worker.reporter import WorkerReporter
from keyturn_workers.process import runtime
from tests.unit.keyturn_workers.storage.probe.broken_storages import ResumesLate
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from typing import Self

    from keyturn_workers.core.storage_values import Headers, WriteResult
    from keyturn_workers.process.settings import WorkerSettings


class _SilentBroker:
    """Accepts connections, and says nothing."""

    def __init__(self) -> None:
        self.called = asyncio.Event()
        self.url = ""
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"amqp://guest:guest@127.0.0.1:{port}/?reconnect_interval=1"
        return self

    async def __aexit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.close()
        assert self._server is not None
        self._server.close()

    def _accept(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self.called.set()


def _new_run(url: str, **how: Any) -> process._Run:
    reporter = WorkerReporter(cast("Any", None), cast("Any", None))
    broker = RabbitBroker(url, logger=None, **how)
    return process._Run(broker, [], reporter, lambda: None, 0.05, asyncio.Event())


async def test_aio_pika_swallows_a_cancellation_while_it_connects() -> None:
    """Why `_Run` never cancels an attempt. If this fails, FastStream can connect by itself."""
    before = asyncio.all_tasks()
    async with _SilentBroker() as broker, asyncio.timeout(10):
        connecting = asyncio.create_task(aio_pika.connect_robust(broker.url))
        await broker.called.wait()
        left = asyncio.all_tasks() - before - {connecting}
        for task in (connecting, *left):
            task.cancel()
        _, pending = await asyncio.wait({connecting, *left}, timeout=0.1)
        assert connecting.cancelled()
        assert pending
        for task in pending:  # it waits for the next attempt now
            task.cancel()
        await asyncio.wait(pending)


@pytest.mark.parametrize("how", ["exit", "cancel"])
async def test_a_start_that_ends_while_it_connects_leaves_no_connection_behind(how: str) -> None:
    before = asyncio.all_tasks()
    async with _SilentBroker() as broker, asyncio.timeout(10):
        run = _new_run(broker.url, timeout=0.5)
        running = asyncio.create_task(run())
        await broker.called.wait()
        if how == "exit":
            run._exit()
        else:
            running.cancel()
        await asyncio.wait({running})
        assert running.cancelled() or running.exception() is None
        assert asyncio.all_tasks() == before


async def test_a_broker_that_cannot_be_reached_is_a_failed_start() -> None:
    before = asyncio.all_tasks()
    with pytest.raises(process._StartFailedError, match="Connection"):
        await _new_run("amqp://guest:guest@127.0.0.1:1/")()
    assert asyncio.all_tasks() == before


async def test_a_broker_that_never_answers_does_not_keep_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Out of memory or disk, it reads nothing from a connection that has published."""

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    connection = AsyncMock()
    monkeypatch.setattr(RabbitBroker, "connect", AsyncMock(return_value=connection))
    monkeypatch.setattr(RabbitBroker, "start", AsyncMock())
    monkeypatch.setattr(RabbitBroker, "stop", never)
    monkeypatch.setattr(process, "_BROKER_TIMEOUT_S", 0.01)
    run = _new_run("amqp://127.0.0.1:1/")
    run.reporter = Mock(stop=AsyncMock())
    async with asyncio.timeout(5):
        running = asyncio.create_task(run())
        while not run._has_started:  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0.01)
        run._exit()
        await running
    assert "the broker did not respond" in capsys.readouterr().out
    connection.close.assert_awaited_once()


@pytest.mark.slow
def test_a_start_without_a_broker_says_so_once_and_names_the_setting() -> None:
    """The libraries would log each attempt, and never the address."""
    env = os.environ | {"URL": "amqp://user:canary@127.0.0.1:1/vhost"}
    done = subprocess.run(
        [sys.executable, "-c", _WAITING], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout == "ended\n"
    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert line["event"].startswith("the broker cannot be reached (connection refused")
    assert "KEYTURN_AMQP_URL" in line["event"]
    assert line["address"] == "amqp://127.0.0.1:1"
    assert "canary" not in done.stderr


_WAITING = """
import asyncio, os
from types import SimpleNamespace
from pydantic import SecretStr
from keyturn_workers.pipeline.amqp.declarations import declare
from keyturn_workers.pipeline.worker import process
from keyturn_workers.process.logging import configure
configure("json", "info")
url = os.environ["URL"]
settings = SimpleNamespace(amqp_url=SecretStr(url), start_timeout_s=2)
try:
    asyncio.run(process._retry_start(settings, lambda: declare(url)))
except OSError:
    print("ended")
"""


class _SlowDown(MemoryStorage):
    """Answers the first `times` puts of one name with 503."""

    def __init__(self, name: str, times: float = 1) -> None:
        super().__init__()
        self.name = name
        self.times = times

    async def put(self, key: str, body: bytes, headers: Headers, **how: Any) -> WriteResult:
        if key.endswith(self.name) and self.times:
            self.times -= 1
            raise StorageUnavailableError("put: SlowDown")
        return await super().put(key, body, headers, **how)


def _use(monkeypatch: pytest.MonkeyPatch, storage: MemoryStorage) -> None:
    @asynccontextmanager
    async def opened(_: object) -> AsyncIterator[MemoryStorage]:
        yield storage

    monkeypatch.setattr(process, "open_storage", opened)


def _settings(*, allow_unsafe: bool = False) -> WorkerSettings:
    fields = {"s3_endpoint_url": None, "allow_unsafe_storage": allow_unsafe, "start_timeout_s": 9}
    return cast("WorkerSettings", SimpleNamespace(**fields))


_DECISIVE = {
    r"/a\b": "backslashes kept in keys",
    "/d/c": "key beside keys below it",
    "/.uploads/a": "listing shows every name",
    "/b.d/1": "listing resumes after each key",
}


@pytest.mark.parametrize("allow_unsafe", [False, True])
@pytest.mark.parametrize("name", _DECISIVE)
async def test_one_failed_request_does_not_decide_which_keys_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, *, allow_unsafe: bool
) -> None:
    """A worker keeps what it learns at its start, so checks whose requests failed are repeated."""
    _use(monkeypatch, _SlowDown(name))
    with stamina.set_testing(True, attempts=2):
        found = await process._measure_storage(_settings(allow_unsafe=allow_unsafe))
    refusing = (found.keys_are_paths, found.unlisted_names, found.lists_by_path)
    assert not any(refusing)


@pytest.mark.parametrize(("name", "row"), _DECISIVE.items())
async def test_a_worker_does_not_start_without_knowing_which_keys_to_refuse(
    monkeypatch: pytest.MonkeyPatch, name: str, row: str
) -> None:
    _use(monkeypatch, _SlowDown(name, math.inf))
    with (
        stamina.set_testing(True, attempts=process._PROBES + 1),
        pytest.raises(StorageUnavailableError, match=f"not be tested: {row} failed: put: Slow"),
    ):
        await process._measure_storage(_settings())


async def test_a_bucket_that_may_be_unsafe_is_used_even_if_a_check_fails_every_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some servers answer these requests with an error forever: the cautious answer holds."""
    storage = _SlowDown("/d/c", math.inf)
    _use(monkeypatch, storage)
    with stamina.set_testing(True, attempts=process._PROBES + 1):
        found = await process._measure_storage(_settings(allow_unsafe=True))
    assert found.keys_are_paths
    output = capsys.readouterr().out
    assert output.count("storage not fully tested") == 1
    assert "key beside keys below it failed: put: SlowDown" in output


class _FailingTags(MemoryStorage):
    """Fails the first `failures` writes of tags."""

    def __init__(self, failures: int) -> None:
        super().__init__(capabilities=Capabilities(copy_keeps_tags=True))
        self.failures = failures
        self.writes = 0

    async def write_tags(self, key: str, tags: Mapping[str, str], **how: Any) -> None:
        self.writes += 1
        if self.failures:
            self.failures -= 1
            raise StorageUnavailableError("write tags: InternalError")
        await super().write_tags(key, tags, **how)


async def test_checks_that_a_worker_can_do_without_are_repeated_a_few_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server may fail them every time and still be safe."""
    _use(monkeypatch, _FailingTags(process._PROBES - 1))
    with stamina.set_testing(True, attempts=99):
        assert (await process._measure_storage(_settings())).copy_keeps_tags
    assert "storage not fully tested" not in capsys.readouterr().out
    storage = _FailingTags(99)
    _use(monkeypatch, storage)
    with stamina.set_testing(True, attempts=99):
        assert not (await process._measure_storage(_settings())).copy_keeps_tags
    assert storage.writes == process._PROBES
    assert "tags kept on self-copy failed: write tags: InternalE" in capsys.readouterr().out


async def test_attempts_before_the_storage_answers_are_no_checks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A storage that has just started is the one that fails a request now and then."""

    class Starting(_FailingTags):
        away = process._PROBES

        async def put(self, key: str, body: bytes, headers: Headers, **how: Any) -> WriteResult:
            if self.away:
                self.away -= 1
                raise StorageUnavailableError("put: connection refused")
            return await super().put(key, body, headers, **how)

    _use(monkeypatch, Starting(1))
    with stamina.set_testing(True, attempts=99):
        assert (await process._measure_storage(_settings())).copy_keeps_tags


async def test_a_worker_waits_for_its_clock_to_be_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a boot, the time service may set it only once the worker has started."""
    storage = MemoryStorage(capabilities=Capabilities(copy_keeps_tags=True))
    storage.fail_next("put", ClockSkewError("put: RequestTimeTooSkewed"))
    _use(monkeypatch, storage)
    with stamina.set_testing(True, attempts=2):
        assert (await process._measure_storage(_settings())).copy_keeps_tags
    output = capsys.readouterr().out
    assert "the storage cannot be used (put: " in output
    assert "this machine's clock" in output


async def test_no_start_fails_for_checks_that_a_worker_can_do_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the time to start is over before they were repeated often enough."""
    _use(monkeypatch, _FailingTags(99))
    with stamina.set_testing(True, attempts=process._PROBES - 1):
        assert not (await process._measure_storage(_settings())).copy_keeps_tags
    assert capsys.readouterr().out.count("storage not fully tested") == 1


async def test_what_an_unsafe_bucket_lacks_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else failed: a retry would not make it safe."""

    class Unsafe(_SlowDown, ResumesLate):
        pass

    _use(monkeypatch, Unsafe("/d/c"))
    with pytest.raises(UnsafeStorageError, match="lacks: listing resumes after each key;"):
        await process._measure_storage(_settings())


# In a separate process: what it sets holds for the rest of that process's life.
_AFTERWARDS = """
import ctypes, os, resource
from keyturn_workers.process.runtime import disable_core_dumps
from keyturn_workers.process.metrics import Registry
if {uid} is not None:
    os.setgroups([])
    os.setgid({uid})
    os.setuid({uid})
disable_core_dumps()
print(resource.getrlimit(resource.RLIMIT_CORE))
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
registry = Registry()
registry.add_process()
print({{sample.name for family in registry.collect() for sample in family.samples}})
"""


def _afterwards(uid: int | None) -> list[str]:
    shown = subprocess.run(
        [sys.executable, "-c", _AFTERWARDS.format(uid=uid)],
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_DUMPABLE is Linux's")
@pytest.mark.parametrize("uid", [None, 65534], ids=["as it is", "as nobody"])
def test_neither_the_kernel_nor_a_process_of_the_same_user_may_copy_the_memory(
    uid: int | None,
) -> None:
    """The owner of `/proc/PID` becomes root; the process still reads its own, for its metrics."""
    if uid is not None and os.getuid() != 0:
        pytest.skip("only root becomes another user")
    limit, dumpable, names = _afterwards(uid)
    assert (limit, dumpable) == ("(0, 0)", "0")
    for name in ("process_open_fds", "process_resident_memory_bytes", "process_cpu_seconds_total"):
        assert f"'{name}'" in names


def test_every_command_forbids_them_before_it_reads_a_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []

    def note(what: str) -> Callable[..., None]:
        return lambda **_: order.append(what)

    monkeypatch.setattr(app_module, "disable_core_dumps", note("forbidden"))
    monkeypatch.setattr(app_module, "app", note("run"))
    app_module.main()
    assert order == ["forbidden", "run"]


def test_a_limit_alone_is_set_where_there_is_no_prctl(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("no prctl there"))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limit: limits.append((which, limit)))
    runtime.disable_core_dumps()
    assert limits == [(resource.RLIMIT_CORE, (0, 0))]


@pytest.fixture
def collector() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


@pytest.mark.slow
@pytest.mark.usefixtures("collector")
def test_what_was_loaded_at_the_start_is_left_out_of_collections() -> None:
    before = gc.get_freeze_count()
    runtime.reduce_garbage_collection()
    assert gc.get_freeze_count() > before + 1000
    assert gc.get_threshold()[0] == 50_000
    assert gc.isenabled()
