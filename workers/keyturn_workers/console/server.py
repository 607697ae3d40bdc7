"""One console process (SPEC 16).

It starts without a broker, and its pages show since when no query was answered. On SIGTERM and
SIGINT it accepts no new connection, completes responses within `SHUTDOWN_GRACE_S`, and exits with
status 0.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import Final

import structlog
from starlette.types import ASGIApp

from keyturn.publisher.client import Publisher
from keyturn.tls import PairSettings
from keyturn_workers.console.actions import Actions
from keyturn_workers.console.app import create_app
from keyturn_workers.console.ask import Asker
from keyturn_workers.console.auth.auth import Auth
from keyturn_workers.console.auth.link import SignInLink
from keyturn_workers.console.context import ConsoleContext
from keyturn_workers.console.key_usage import CensusTaker
from keyturn_workers.console.prometheus import Prometheus
from keyturn_workers.console.rendering.templates import compile_templates
from keyturn_workers.console.settings import ConsoleSettings, url_of
from keyturn_workers.process.http_server.server import check_broker_tls, open_listeners, serve
from keyturn_workers.process.http_server.tls import open_certificate

# A client that reads nothing, or whose request's head takes longer, is disconnected.
_IDLE_TIMEOUT_S: Final = 60.0
_HEAD_TIMEOUT_S: Final = 15.0
_MAX_CONNECTIONS: Final = 500
_UNNAMED: Final = ConsoleSettings.model_fields["deployment"].default

_log = structlog.get_logger()


async def run_console(
    settings: ConsoleSettings, print_link: Callable[[str], None] | None = None
) -> None:
    """Serve until a signal stops the process.

    With `print_link`, there is a one-time link while no one has an account.

    Raises:
        SettingsError: a file that the settings name cannot be used, or there is no way to sign in.
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
            settings.console_host,
            settings.console_port,
            settings="KEYTURN_CONSOLE",
            idle_timeout_s=_IDLE_TIMEOUT_S,
        )
        for listener in listeners:
            sockets.enter_context(listener)
        port = listeners[0].getsockname()[1]
        # The driver logs each attempt to connect, several lines a minute while the broker is down;
        # the console logs once that no query is answered.
        logging.getLogger("aiormq.connection").setLevel(logging.CRITICAL)
        async with open_console(settings, port, print_link) as app:
            await serve(
                app,
                listeners,
                name="console",
                head_timeout_s=_HEAD_TIMEOUT_S,
                max_connections=_MAX_CONNECTIONS,
                grace_s=settings.shutdown_grace_s,
                certificate=certificate,
            )
    _log.info("console stopped")


@asynccontextmanager
async def open_console(
    settings: ConsoleSettings, port: int, print_link: Callable[[str], None] | None = None
) -> AsyncIterator[ASGIApp]:
    """Yield the protected application with an open publisher; the broker may be unavailable.

    `port` is the console's own; its listener is open, so a printed link works.

    Raises:
        SettingsError: a file that the settings name cannot be used, or there is no way to sign in.
    """
    own_url = url_of(settings.console_host, port, settings.console_scheme)
    link = None if print_link is None else SignInLink()
    auth = Auth(settings, settings.console_public_url or own_url, port, link=link)
    url = settings.console_prometheus_url
    async with AsyncExitStack() as stack:
        publisher = await stack.enter_async_context(Publisher.open(settings, connect=False))
        await check_broker_tls(publisher)
        asker = Asker(publisher)
        stack.push_async_callback(asker.close)
        census = CensusTaker(asker)
        stack.push_async_callback(census.close)
        actions = Actions(publisher)
        stack.push_async_callback(actions.close)
        prometheus = None if url is None else Prometheus(url.get_secret_value())
        if prometheus is not None:
            stack.push_async_callback(prometheus.close)
        compile_templates()
        context = ConsoleContext(
            settings.publisher_name,
            asker,
            actions,
            census,
            prometheus,
            "" if settings.deployment == _UNNAMED else settings.deployment,
            settings.console_color,
        )
        app = auth.protect(create_app(context, auth))
        if print_link is not None and (link_url := auth.new_link()) is not None:
            print_link(link_url)
        yield app
