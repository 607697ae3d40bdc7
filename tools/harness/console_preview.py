"""The console's application with made-up data, without a broker: every request is signed in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from starlette.middleware import Middleware
from starlette.testclient import TestClient

from keyturn_workers.console.actions import Actions
from keyturn_workers.console.app import create_app
from keyturn_workers.console.ask import Asker
from keyturn_workers.console.auth.person import SESSION_SCOPE, Person, Role, Session
from keyturn_workers.console.context import ConsoleContext
from keyturn_workers.console.key_usage import CensusTaker
from tools.harness import console_data

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from keyturn.publisher import Publisher
    from keyturn_workers.console.app import SignedIn
    from keyturn_workers.console.prometheus import Prometheus
    from keyturn_workers.console.settings import Color
    from tools.harness.console_data import MadeUp

CSRF: Final = "csrf-of-this-session"
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@dataclass
class PreviewAuth:
    """One person is signed in, or none."""

    person: Person | None
    session_id: str = "session"
    routes: list[BaseRoute] = field(default_factory=list)

    @property
    def middleware(self) -> list[Middleware]:
        return [Middleware(_SignedIn, auth=self)]


class _SignedIn:
    def __init__(self, app: ASGIApp, auth: PreviewAuth) -> None:
        self._app = app
        self._auth = auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        person = self._auth.person
        if person is not None:
            scope[SESSION_SCOPE] = Session(self._auth.session_id, person, CSRF, 2**40)

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message["headers"] = [*message["headers"], policy]
            await send(message)

        await self._app(scope, receive, send_with_policy)


def preview_app(
    publisher: MadeUp,
    *,
    role: Role = "operate",
    name: str = "ada",
    auth: SignedIn | None = None,
    prometheus: Prometheus | None = None,
    deployment: str = "",
    color: Color = "teal",
    **options: Any,
) -> Starlette:
    """The application, for a person with this name and role; `options` are those of `Asker`."""
    real = cast("Publisher", publisher)
    asker = Asker(real, **options)
    context = ConsoleContext(
        console_data.PUBLISHER,
        asker,
        Actions(real),
        CensusTaker(asker),
        prometheus,
        deployment,
        color,
    )
    return create_app(context, auth or PreviewAuth(Person(name, role, name)))


def client(app: Starlette) -> TestClient:
    """A browser without scripts."""
    return TestClient(app, base_url="https://console.test", raise_server_exceptions=False)
