"""A real deployment with a console that people sign in to (SPEC 16).

Workers, broker and storage are real, and `keyturn console` is a process of its own with a broker
user of its own. It reaches the broker through a proxy that can be stopped, so that a console loses
a broker that others go on using.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tools.harness import console_history
from tools.harness.console import Account, ConsoleDeployment, console_user, write_passwords
from tools.harness.console_client import console_client
from tools.harness.loopback import proxy_before
from tools.harness.process import console, worker
from tools.harness.wire import open_wire
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tools.harness.console_history import History
    from tools.harness.loopback import Proxy
    from tools.harness.process import GatewayProcess, WorkerProcess
    from tools.harness.wire import Wire
    from tools.servers import S3Server, Servers

SETTINGS: Final = {
    "LEASE_S": "1",
    "KEYRING_CACHE_S": "0.3",
    "SWEEP_PAGE_KEYS": "100",
}
"""Of the workers: a proof waits for two leases."""

_CAUGHT_UP_S: Final = 90

OPERATOR: Final = Account("ada", "operate")
VIEWER: Final = Account("vera", "view")


@dataclass(repr=False)
class ConsoleSite:
    """The deployment, its workers and its console."""

    deployment: ConsoleDeployment
    wire: Wire
    worker: WorkerProcess
    broker: Proxy
    console_url: str
    """The broker as the console reaches it: its own user, through `broker`."""
    passwords: Path
    console: GatewayProcess = field(init=False)
    history: History | None = None

    @property
    def url(self) -> str:
        """The console's address."""
        return self.console.url

    @asynccontextmanager
    async def another_console(
        self, amqp_url: str = "", **settings: str
    ) -> AsyncIterator[GatewayProcess]:
        """A further console process of the same deployment, as after a restart."""
        env = self.deployment.console_env(
            self.passwords, amqp_url=amqp_url or self.console_url, **settings
        )
        async with console(env) as running:
            yield running


@asynccontextmanager
async def console_site(
    broker: Servers,
    s3: S3Server,
    folder: Path,
    *,
    lives: bool = True,
    furnish: Callable[[ConsoleSite], Awaitable[None]] | None = None,
    **settings: str,
) -> AsyncIterator[ConsoleSite]:
    """Run it all; `settings` are the console's, without the prefix.

    Args:
        broker: The broker, of which a vhost is used.
        s3: The storage.
        folder: For the file of passwords.
        lives: Whether something has happened when the console starts.
        furnish: What else is done before it starts.
        settings: The console's, without the prefix.
    """
    private = broker.rabbitmq
    amqp_url = private.next_vhost_url() if private is not None else broker.amqp_url
    deployment = ConsoleDeployment(
        amqp_url, s3, new_bucket(s3), more_master_keys={"m2": os.urandom(32)}
    )
    passwords = folder / "passwords"
    write_passwords(passwords, [OPERATOR, VIEWER])
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(worker(deployment.worker_env(**SETTINGS)))
        wire = await stack.enter_async_context(open_wire(deployment))
        user_url = console_user(private, amqp_url)
        between = await stack.enter_async_context(proxy_before(user_url))
        site = ConsoleSite(deployment, wire, running, between, between.url, passwords)
        if lives:
            site.history = await console_history.live(deployment, wire)
        if furnish is not None:
            await furnish(site)
        site.console = await stack.enter_async_context(site.another_console(**settings))
        if site.history is not None:
            await _caught_up(site.url, site.history)
        yield site


async def _caught_up(url: str, history: History) -> None:
    """Wait until the console shows what happened before it began."""
    shown = {
        "/projects/acme": history.rotation_id,
        "/projects?text=initech": "/projects/initech",
        f"/sweeps/globex/{history.failed_sweep_id}": "ordinary/q3 report.pdf",
        "/dead": 'href="/dead/',
        f"/audit?text={history.clean_sweep_id}": f"{history.clean_sweep_id}</span>",
    }
    async with console_client(url, VIEWER) as client:
        for path, text in shown.items():
            await client.until(path, text, timeout_s=_CAUGHT_UP_S)
