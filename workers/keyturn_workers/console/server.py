"""One console process (SPEC 16).

It starts without a broker, and says on its pages what it cannot read. On SIGTERM and SIGINT it ends
the streams of events, accepts no new connection, completes responses within `SHUTDOWN_GRACE_S`, and
exits with status 0.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import structlog
from starlette.types import ASGIApp

from keyturn.publisher import Publisher
from keyturn.publisher.connection import BrokerAddress
from keyturn.tls import PairSettings
from keyturn_workers.console.actions.service import Actions
from keyturn_workers.console.auth.auth import Auth
from keyturn_workers.console.dead import DeadLetters
from keyturn_workers.console.feeds import Feeds
from keyturn_workers.console.model import Model
from keyturn_workers.console.settings import ConsoleSettings, url_of
from keyturn_workers.console.source_log import log_sources
from keyturn_workers.console.web.app import create_app
from keyturn_workers.console.web.context import ConsoleContext
from keyturn_workers.console.web.rendering import compile_templates
from keyturn_workers.http_server.server import check_broker_tls, open_listeners, serve
from keyturn_workers.http_server.tls import open_certificate
from keyturn_workers.worker.runtime import reduce_garbage_collection

# A browser that takes nothing, or whose request's head takes longer, is disconnected.
_IDLE_TIMEOUT_S: Final = 60.0
_HEAD_TIMEOUT_S: Final = 15.0
_MAX_CONNECTIONS: Final = 500

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Console:
    """A console that can be served.

    Attributes:
        app: All pages, protected.
        auth: Who may use them.
        model: What they show.
        feeds: What fills the model, for as long as the pages are served.
        dead: Reads and moves dead letters, for as long as the pages are served.
    """

    app: ASGIApp
    auth: Auth
    model: Model
    feeds: Feeds
    dead: DeadLetters


async def run_console(settings: ConsoleSettings) -> None:
    """Serve until a signal stops the process.

    Raises:
        SettingsError: a file that the settings name cannot be used.
        BrokerTlsError: TLS with the broker failed.
        AddressError: the address is in use or does not exist.
    """
    certificate = open_certificate(
        settings.console_tls_cert,
        settings.console_tls_key,
        PairSettings("KEYTURN_CONSOLE_TLS_CERT", "KEYTURN_CONSOLE_TLS_KEY"),
    )
    with ExitStack() as sockets:
        listeners = await open_listeners(
            settings.console_host, settings.console_port, idle_timeout_s=_IDLE_TIMEOUT_S
        )
        for listener in listeners:
            sockets.enter_context(listener)
        port = listeners[0].getsockname()[1]
        async with open_console(settings, port) as console, asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(console.feeds.run()),
                tasks.create_task(console.dead.run()),
                tasks.create_task(log_sources(console.model)),
            ]
            # A full collection visits all of the model: 90 ms with 10,000 projects, in which no
            # page is served.
            reduce_garbage_collection()
            await serve(
                console.app,
                listeners,
                name="console",
                head_timeout_s=_HEAD_TIMEOUT_S,
                max_connections=_MAX_CONNECTIONS,
                grace_s=settings.shutdown_grace_s,
                certificate=certificate,
                on_stop=console.auth.stop,
            )
            await console.dead.finish()
            for task in background:
                task.cancel()
    _log.info("console stopped")


@asynccontextmanager
async def open_console(settings: ConsoleSettings, port: int) -> AsyncIterator[Console]:
    """Yield a console whose publisher is open; the broker may be away.

    Args:
        settings: Of the console.
        port: Where it listens.

    Raises:
        SettingsError: a file that the settings name cannot be used.
    """
    own_url = url_of(settings.console_host, port, settings.console_scheme)
    public_url = settings.console_public_url or own_url
    auth = Auth(settings, public_url, port)
    broker = BrokerAddress.of(settings)
    async with Publisher.open(settings, connect=False) as publisher:
        await check_broker_tls(publisher)
        model = Model(
            settings.publisher_name, history=timedelta(seconds=settings.console_history_s)
        )
        feeds = Feeds(settings, model, publisher, broker)
        actions = Actions(
            publisher,
            on_change=lambda: model.changes.publish("sweeps"),
            on_sweep=model.apply_request,
        )
        dead = DeadLetters(broker, model, publisher)
        context = ConsoleContext(
            settings=settings,
            model=model,
            feeds=feeds,
            publisher=publisher,
            auth=auth,
            dead=dead,
            actions=actions,
        )
        compile_templates()
        try:
            yield Console(auth.protect(create_app(context)), auth, model, feeds, dead)
        finally:
            await actions.close()
