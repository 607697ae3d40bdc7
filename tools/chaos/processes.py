"""Supervises the processes of a run, each behind a breakable proxy: workers, gateway, console.

Each process is the real command with debug logs. A process that was killed or stopped is restarted
at once, whether the broker is available or not. One that exits by itself is restarted too, and
recorded.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import signal
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp

from keyturn import topology
from tools.chaos.plan import CONSOLE, EVERYBODY, GATEWAY, PUBLISHER, WORKERS
from tools.harness.console import Account, write_passwords
from tools.harness.loopback import Proxy, proxy
from tools.harness.process import console, gateway, worker
from tools.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from tools.harness.console import ConsoleDeployment
    from tools.harness.process import WorkerProcess
    from tools.servers import RabbitMQ

LEASE_S = 3
KEYRING_CACHE_S = 0.5
# Small pages and a short lease cause many steps; a low limit causes multipart copies.
SETTINGS = {
    "LEASE_S": str(LEASE_S),
    "KEYRING_CACHE_S": str(KEYRING_CACHE_S),
    "SWEEP_PAGE_KEYS": "100",
    "PART_SIZE_BYTES": str(5 * 1024**2),
    "COPY_LIMIT_BYTES": str(5 * 1024**2),
    "UPLOAD_CONCURRENCY": "24",
    "SHUTDOWN_GRACE_S": "20",
    "LOG_LEVEL": "debug",
}
SERVED = (*WORKERS, GATEWAY, CONSOLE)
"""All processes that are started and ended."""
VIEWER = Account("vera", "view")
"""Who looks at the console."""
_STARTED_S = 180
"""All processes start at once, on a machine that may be busy."""
# The grace period, four responses of a broker that is away (5 s each), and an attempt to connect
# that ends by its timeout (20 s), on a machine that may be busy.
_END_S = 75
_SWEPT_UP_S = 5
_SWEEPS = 4
_METRICS_EVERY_S = 2
_MARKS_READ = timedelta(seconds=10)
_STARTED = ' started"'


@dataclass
class ManagedProcess:
    """A process that is restarted when it exits: its ports, its broker proxy, its logs."""

    name: str
    broker_proxy: Proxy
    env: dict[str, str] = field(repr=False)
    port: int
    running: WorkerProcess | None = None
    logs: list[WorkerProcess] = field(default_factory=list, repr=False)
    stop_requested: bool = False
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def role(self) -> str:
        """`upload`, `control`, `sweep`, `ingest`, `gateway` or `console`."""
        return self.name.partition("-")[0]

    def knows_marks(self) -> bool:
        """Whether the present process, a gateway, has surely read the marks since it started.

        It reads them within ten seconds, unless the broker is away: then its log says so, and says
        when they were read.
        """
        began = self._first_logged(_STARTED)
        if began is None or datetime.now(UTC) - began < _MARKS_READ:
            return False
        failed = self._first_logged('"event":"marks are not current"')
        return (
            failed is None
            or failed - began > _MARKS_READ
            or self._first_logged('"event":"marks are current"') is not None
        )

    def _first_logged(self, text: str) -> datetime | None:
        """When the present process first logged an event with this text."""
        lines = () if self.running is None else self.running.lines
        for line in lines:
            if '"event":"' in line and text in line:
                return datetime.fromisoformat(json.loads(line)["timestamp"])
        return None


@dataclass
class Supervisor:
    """All processes of a run.

    `done` counts the faults by kind; `unexpected_exits` describes exits without a request.
    """

    deployment: ConsoleDeployment
    folder: Path
    processes: dict[str, ManagedProcess] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    unexpected_exits: list[str] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    scrapes: int = 0
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _watching: set[asyncio.Task[None]] = field(default_factory=set)

    def url_of(self, broker_proxy: Proxy) -> str:
        """The broker's URL through one of the proxies."""
        at = urlsplit(self.deployment.amqp_url)
        return at._replace(
            netloc=at.netloc.replace(f":{at.port}", f":{broker_proxy.port}")
        ).geturl()

    async def start_all(
        self,
        storage_url: str,
        master_keys: str,
        customer_keys: Mapping[str, str],
        **settings: str,
    ) -> None:
        """Start all processes; returns once all are ready.

        `settings` are those of all workers, `customer_keys` those of workers and gateway.
        """
        broker_port = urlsplit(self.deployment.amqp_url).port
        assert broker_port is not None
        far = replace(self.deployment.s3, endpoint_url=storage_url)
        for name in (*SERVED, PUBLISHER):
            broker_proxy = await self._stack.enter_async_context(proxy(broker_port))
            through = replace(self.deployment, s3=far, amqp_url=self.url_of(broker_proxy))
            port = free_port()
            if name == GATEWAY:
                more = {"GATEWAY_PORT": str(port), "KEYRING_CACHE_S": str(KEYRING_CACHE_S)}
                more |= customer_keys
                env = through.gateway_env(MASTER_KEYS=master_keys, LOG_LEVEL="debug", **more)
            elif name == CONSOLE:
                more = {"CONSOLE_PORT": str(port), "LOG_LEVEL": "debug"}
                env = through.console_env(self._passwords(), **more)
            else:
                env = through.worker_env(
                    MASTER_KEYS=master_keys,
                    HEALTH_PORT=str(port),
                    **SETTINGS,
                    **settings,
                    **customer_keys,
                )
            self.processes[name] = ManagedProcess(name, broker_proxy, env, port)
        await asyncio.gather(*(self.start(name) for name in SERVED))
        for name in SERVED:
            running = self.processes[name].running
            assert running is not None
            await running.logged(" started", timeout_s=_STARTED_S)

    def _passwords(self) -> Path:
        """The file of the only person who may sign in."""
        path = self.folder / "passwords"
        write_passwords(path, [VIEWER])
        return path

    async def start(self, name: str) -> None:
        """Start a process, without waiting until it is ready."""
        process = self.processes[name]
        if process.role in ("gateway", "console"):
            serve = gateway if process.role == "gateway" else console
            served = serve(process.env, ready=False)
            running: WorkerProcess = await self._stack.enter_async_context(served)
        else:
            started = worker(process.env, process.role, ready=False)
            running = await self._stack.enter_async_context(started)
        process.running, process.stop_requested = running, False
        process.logs.append(running)
        task = asyncio.create_task(self._watch(process, running))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def _watch(self, process: ManagedProcess, running: WorkerProcess) -> None:
        status = await running.process.wait()
        if process.stop_requested or process.running is not running:
            return
        self.unexpected_exits.append(
            f"{process.name} exited by itself, status {status}: {running.lines[-3:]}"
        )
        async with process.changing:
            await self.start(process.name)

    async def stop_watching(self) -> None:
        """Stop restarting processes that exit."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)

    async def kill(self, name: str) -> None:
        """Kill a process with SIGKILL, and restart it."""
        process = self.processes[name]
        async with process.changing:
            assert process.running is not None
            process.stop_requested = True
            await process.running.kill()
            self.done[f"kill -9 of {process.role}"] += 1
            await self.start(name)

    async def terminate(self, name: str, *, successor: bool = True) -> None:
        """Send SIGTERM, wait for the exit, and start a successor."""
        process = self.processes[name]
        async with process.changing:
            assert process.running is not None
            process.stop_requested = True
            was_ready = _has_started(process.running.lines)
            with suppress(ProcessLookupError):
                process.running.process.terminate()
            try:
                status: int | None = await process.running.ended(timeout_s=_END_S)
            except TimeoutError:
                status = None
                await process.running.kill()
            self.done[f"SIGTERM of {process.role}"] += 1
            was_ready = was_ready and not _starts_again(process.running.lines)
            if status != 0 and (was_ready or status != -signal.SIGTERM):
                self.statuses.append(f"{name} exited with {status} within {_END_S} s of SIGTERM")
            if successor:
                await self.start(name)

    def cut(self, name: str) -> None:
        """Drop the broker connections of one process, or of all."""
        processes = self.processes.values() if name == EVERYBODY else (self.processes[name],)
        cut = sum(process.broker_proxy.cut() for process in processes)
        self.done["broker connections cut"] += cut // 2

    async def deploy(self, **settings: str) -> None:
        """Restart all workers and the gateway one by one with other settings."""
        for name in (*WORKERS, GATEWAY):
            process = self.processes[name]
            process.env |= {f"KEYTURN_{setting}": value for setting, value in settings.items()}
            await self.terminate(name)

    async def end(self) -> None:
        """Send SIGTERM to all processes, without successors."""
        ends = [self.terminate(name, successor=False) for name in SERVED]
        await asyncio.gather(*ends)

    async def clean_staging(self, is_clean: Callable[[], bool]) -> None:
        """Run one more worker that removes abandoned staged bodies at once, not after 8 days."""
        env = {
            **self.processes[WORKERS[0]].env,
            "KEYTURN_REQUEST_MAX_AGE_S": "1",
            "KEYTURN_STAGING_GRACE_S": "0",
            "KEYTURN_STAGING_SWEEP_INTERVAL_S": "1",
        }
        async with worker(env, "upload") as running:
            for _ in range(_SWEEPS):
                seen = len(running.lines)
                with suppress(TimeoutError):
                    await running.logged("staging cleaned", after=seen, timeout_s=_SWEPT_UP_S)
                if await asyncio.to_thread(is_clean):
                    break
            self.processes[WORKERS[0]].logs.append(running)
            await running.terminate()

    async def keep_scraping(self) -> None:
        """Save the `/metrics` of every process periodically, until canceled."""
        while True:
            await self.scrape()
            await asyncio.sleep(_METRICS_EVERY_S)

    async def scrape(self) -> None:
        """Save the present `/metrics` of every process that responds."""
        limits = aiohttp.ClientTimeout(total=2)
        async with aiohttp.ClientSession(timeout=limits) as session:
            for name in (*WORKERS, GATEWAY):
                with suppress(aiohttp.ClientError, TimeoutError):
                    url = f"http://127.0.0.1:{self.processes[name].port}/metrics"
                    async with session.get(url) as answer:
                        text = await answer.text()
                    self.scrapes += 1
                    path = self.folder / "metrics" / f"{name}-{self.scrapes:05}.txt"
                    path.write_text(text)

    def keep_logs(self) -> None:
        """Write each process's log to its own file."""
        for process in self.processes.values():
            for number, running in enumerate(process.logs, start=1):
                path = self.folder / "logs" / f"{process.name}.{number}.log"
                path.write_text("".join(f"{line}\n" for line in running.lines))


class LogReader:
    """What the processes log from now on, as far as `is_wanted` says of a line."""

    def __init__(self, supervisor: Supervisor, is_wanted: Callable[[str], bool]) -> None:
        self._supervisor = supervisor
        self._is_wanted = is_wanted
        self._read = {id(one): len(one.lines) for _, one in self._logs()}
        self._found: Counter[str] = Counter()

    def _logs(self) -> list[tuple[str, WorkerProcess]]:
        processes = self._supervisor.processes.values()
        return [(process.role, one) for process in processes for one in process.logs[-2:]]

    def found(self) -> Counter[str]:
        """The number of wanted lines since the start, by the kind of process."""
        for role, one in self._logs():
            lines = one.lines[self._read.get(id(one), 0) :]
            self._read[id(one)] = self._read.get(id(one), 0) + len(lines)
            self._found[role] += sum(self._is_wanted(line) for line in lines)
        return +self._found


def _has_started(lines: list[str]) -> bool:
    """Whether it handles signals; a process that is still starting is killed by them."""
    return any(" started" in line for line in lines)


def _starts_again(lines: list[str]) -> bool:
    """Whether it lost the broker while its consumers started: between two starts, signals kill it.

    It logs each reason only once, so that a second failure for the same reason leaves no line.
    """
    after = itertools.dropwhile(lambda line: " started" not in line, lines)
    # The client's own line about a lost connection has no address.
    return any("the broker cannot be reached" in line and "address" in line for line in after)


@asynccontextmanager
async def run_supervisor(deployment: ConsoleDeployment, folder: Path) -> AsyncIterator[Supervisor]:
    """A supervisor without processes; all that it starts are ended afterwards."""
    for name in ("logs", "metrics", "disk"):
        (folder / name).mkdir(parents=True)
    async with AsyncExitStack() as stack:
        supervisor = Supervisor(deployment, folder, _stack=stack)
        try:
            yield supervisor
        finally:
            for process in supervisor.processes.values():
                process.stop_requested = True
            await supervisor.stop_watching()
            supervisor.keep_logs()


@dataclass
class Broker:
    """The private broker of a run; its disk is copied at each stop, to be searched later."""

    rabbitmq: RabbitMQ
    folder: Path
    done: Counter[str] = field(default_factory=Counter)
    stops: int = 0

    def wait_until_it_survives(self) -> None:
        """Wait until the metadata is on disk without which a killed node does not recover."""
        for queue in topology.queues():
            if not queue.is_stream:
                self.rabbitmq.wait_until_registered(queue.name)
        self.rabbitmq.wait_until_streams_registered()

    def stop(self) -> None:
        """Stop the broker gracefully, and start it again."""
        self.rabbitmq.process.end()
        self._keep_disk()
        self.rabbitmq.start()
        self.done["broker stopped"] += 1

    def kill(self) -> None:
        """Kill the broker with SIGKILL, and start it again."""
        self.rabbitmq.kill()
        self._keep_disk()
        self.rabbitmq.start()
        self.done["broker killed"] += 1

    def end(self) -> None:
        """Stop the broker for good; its disk is copied once more."""
        self.rabbitmq.process.end()
        self._keep_disk()

    def _keep_disk(self) -> None:
        self.stops += 1
        shutil.copytree(self.rabbitmq.data_folder, self.folder / "disk" / f"stop-{self.stops}")
