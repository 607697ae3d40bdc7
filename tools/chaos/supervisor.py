"""The processes of a run: workers and a gateway, each behind ways that can be cut.

Each process is the real command at its most talkative. One that is killed or told to end is
started again at once, as a supervisor would, whether the broker is there or not. One that ends
by itself is started again too, and noted.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp

from tools.chaos.schedule import EVERYBODY, GATEWAY, PUBLISHER, WORKERS
from tools.harness.process import gateway, worker
from tools.harness.tcp_proxy import Proxy, proxy
from tools.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tools.harness.deployment import Deployment
    from tools.harness.process import WorkerProcess

LEASE_S = 3
KEYRING_CACHE_S = 0.5
# Small pages and a short lease make many steps; a low copy limit makes copies in parts.
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
_END_S = 40
_SWEPT_UP_S = 5
_SWEEPS = 4
_METRICS_EVERY_S = 2


@dataclass
class Post:
    """One process's place, whoever stands there: its ports, its way to the broker, its logs."""

    name: str
    way: Proxy
    env: dict[str, str] = field(repr=False)
    port: int
    running: WorkerProcess | None = None
    logs: list[WorkerProcess] = field(default_factory=list, repr=False)
    asked_to_end: bool = False
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def role(self) -> str:
        """`upload`, `control`, `sweep` or `gateway`."""
        return self.name.partition("-")[0]


@dataclass
class Crew:
    """All processes of a run.

    `done` counts what was done to them; `fallen` tells who ended without being asked to.
    """

    deployment: Deployment
    folder: Path
    posts: dict[str, Post] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    fallen: list[str] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    scrapes: int = 0
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _watching: set[asyncio.Task[None]] = field(default_factory=set)

    def url_of(self, way: Proxy) -> str:
        """The broker's address through one of the ways to it."""
        at = urlsplit(self.deployment.amqp_url)
        return at._replace(netloc=at.netloc.replace(f":{at.port}", f":{way.port}")).geturl()

    async def hire(self, storage_url: str, master_keys: str, publishers: str) -> None:
        """Make the posts, and start a process at each; returns once all are ready."""
        broker_port = urlsplit(self.deployment.amqp_url).port
        assert broker_port is not None
        far = replace(self.deployment.s3, endpoint_url=storage_url)
        for name in (*WORKERS, GATEWAY, PUBLISHER):
            way = await self._stack.enter_async_context(proxy(broker_port))
            through = replace(self.deployment, s3=far, amqp_url=self.url_of(way))
            port = free_port()
            if name == GATEWAY:
                more = {"GATEWAY_PORT": str(port), "KEYRING_CACHE_S": str(KEYRING_CACHE_S)}
                env = through.gateway_env(MASTER_KEYS=master_keys, LOG_LEVEL="debug", **more)
            else:
                env = through.worker_env(
                    MASTER_KEYS=master_keys,
                    PUBLISHERS=publishers,
                    HEALTH_PORT=str(port),
                    **SETTINGS,
                )
            self.posts[name] = Post(name, way, env, port)
        await asyncio.gather(*(self.start(name) for name in (*WORKERS, GATEWAY)))
        for name in (*WORKERS, GATEWAY):
            running = self.posts[name].running
            assert running is not None
            await running.logged(" started")

    async def start(self, name: str) -> None:
        """Start the process of a post; it may be far from ready then."""
        post = self.posts[name]
        if post.role == "gateway":
            served = gateway(post.env, ready=False)
            running: WorkerProcess = await self._stack.enter_async_context(served)
        else:
            started = worker(post.env, post.role, ready=False)
            running = await self._stack.enter_async_context(started)
        post.running, post.asked_to_end = running, False
        post.logs.append(running)
        task = asyncio.create_task(self._watch(post, running))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def _watch(self, post: Post, running: WorkerProcess) -> None:
        status = await running.process.wait()
        if post.asked_to_end or post.running is not running:
            return
        self.fallen.append(f"{post.name} ended by itself, status {status}: {running.lines[-3:]}")
        async with post.changing:
            await self.start(post.name)

    async def watch_no_more(self) -> None:
        """Nobody who ends is started again from now on."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)

    async def kill(self, name: str) -> None:
        """SIGKILL, and another one in its place."""
        post = self.posts[name]
        async with post.changing:
            assert post.running is not None
            post.asked_to_end = True
            await post.running.kill()
            self.done[f"kill -9 of {post.role}"] += 1
            await self.start(name)

    async def terminate(self, name: str, *, successor: bool = True) -> None:
        """SIGTERM, the end of it, and another one in its place."""
        post = self.posts[name]
        async with post.changing:
            assert post.running is not None
            post.asked_to_end = True
            was_ready = _has_started(post.running.lines)
            with suppress(ProcessLookupError):
                post.running.process.terminate()
            try:
                status: int | None = await post.running.ended(timeout_s=_END_S)
            except TimeoutError:
                status = None
                await post.running.kill()
            self.done[f"SIGTERM of {post.role}"] += 1
            if status != 0 and (was_ready or status != -signal.SIGTERM):
                self.statuses.append(f"{name} ended with {status} within {_END_S} s of SIGTERM")
            if successor:
                await self.start(name)

    def cut(self, name: str) -> None:
        """Cut the connections of one process to the broker, or everybody's."""
        posts = self.posts.values() if name == EVERYBODY else (self.posts[name],)
        cut = sum(post.way.cut() for post in posts)
        self.done["broker connections cut"] += cut // 2

    async def deploy(self, **settings: str) -> None:
        """A rolling restart of all workers and the gateway with other settings."""
        for name in (*WORKERS, GATEWAY):
            post = self.posts[name]
            post.env |= {f"KEYTURN_{setting}": value for setting, value in settings.items()}
            await self.terminate(name)

    async def end(self) -> None:
        """SIGTERM for all, with nobody in their places."""
        ends = [self.terminate(name, successor=False) for name in (*WORKERS, GATEWAY)]
        await asyncio.gather(*ends)

    async def sweep_up(self, is_clean: Callable[[], bool]) -> None:
        """Let one more worker remove what nobody will come for, at once and not after 8 days."""
        env = {
            **self.posts[WORKERS[0]].env,
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
            self.posts[WORKERS[0]].logs.append(running)
            await running.terminate()

    async def keep_scraping(self) -> None:
        """Keep what `/metrics` of every process shows, until cancelled."""
        while True:
            await self.scrape()
            await asyncio.sleep(_METRICS_EVERY_S)

    async def scrape(self) -> None:
        """Keep what `/metrics` of every process shows now; one that is away is left out."""
        limits = aiohttp.ClientTimeout(total=2)
        async with aiohttp.ClientSession(timeout=limits) as session:
            for name in (*WORKERS, GATEWAY):
                with suppress(aiohttp.ClientError, TimeoutError):
                    url = f"http://127.0.0.1:{self.posts[name].port}/metrics"
                    async with session.get(url) as answer:
                        text = await answer.text()
                    self.scrapes += 1
                    path = self.folder / "metrics" / f"{name}-{self.scrapes:05}.txt"
                    path.write_text(text)

    def keep_logs(self) -> None:
        """Write every log so far to a file of its own."""
        for post in self.posts.values():
            for number, running in enumerate(post.logs, start=1):
                path = self.folder / "logs" / f"{post.name}.{number}.log"
                path.write_text("".join(f"{line}\n" for line in running.lines))


def _has_started(lines: list[str]) -> bool:
    """Whether it listens for signals; one that is starting, or starts anew, ends by them."""
    anew = max((at for at, line in enumerate(lines) if "LostAtStart" in line), default=-1)
    return any(" started" in line for line in lines[anew + 1 :])


@asynccontextmanager
async def crew(deployment: Deployment, folder: Path) -> AsyncIterator[Crew]:
    """An empty crew, all of whose processes are gone afterwards."""
    for name in ("logs", "metrics", "disk"):
        (folder / name).mkdir(parents=True)
    async with AsyncExitStack() as stack:
        hired = Crew(deployment, folder, _stack=stack)
        try:
            yield hired
        finally:
            for post in hired.posts.values():
                post.asked_to_end = True
            await hired.watch_no_more()
            hired.keep_logs()
