"""The console's pages with made-up data, without a broker.

`python -m tools.harness.console_preview` serves them for developers who change a page; tests of
pages use the same application. Every request is signed in.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import uvicorn
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from keyturn_workers.console.actions.service import Actions
from keyturn_workers.console.auth import Person, Role, Session
from keyturn_workers.console.auth.person import SESSION_SCOPE
from keyturn_workers.console.web.app import create_app
from keyturn_workers.console.web.context import ConsoleContext
from tools.harness import console_data, console_dead

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.applications import Starlette
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from keyturn_workers.console.dead import DeadLetters
    from keyturn_workers.console.model import Model

CSRF: Final = "csrf-of-this-session"
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@dataclass
class PreviewAuth:
    """One person is signed in, or none."""

    person: Person | None
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
            scope[SESSION_SCOPE] = Session("session", person, CSRF, 2**40)

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message["headers"] = [*message["headers"], policy]
            await send(message)

        await self._app(scope, receive, send_with_policy)


@dataclass(frozen=True)
class PreviewSettings:
    """What pages show of the settings."""

    publisher_name: str = console_data.PUBLISHER


class PreviewFeeds:
    """Asks no one for anything, and notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.viewers = 0
        self.error: Exception | None = None

    @contextmanager
    def viewing(self) -> Iterator[None]:
        self.viewers += 1
        try:
            yield
        finally:
            self.viewers -= 1

    async def request_older_audit(self) -> None:
        if self.error is not None:
            raise self.error
        self.asked.append("audit")

    async def request_project(self, name: str) -> None:
        self.asked.append(f"project {name}")

    async def request_sweep(self, project: str, sweep_id: str) -> None:
        self.asked.append(f"sweep {sweep_id} of {project}")

    async def request_failures(self, project: str, sweep_id: str) -> None:
        self.asked.append(f"failures of {sweep_id} of {project}")

    async def request_evidence(self, project: str) -> None:
        self.asked.append(f"evidence of {project}")


def preview_context(
    model: Model, person: Person | None = None, dead: DeadLetters | None = None
) -> ConsoleContext:
    """What the pages need, over a model."""
    return ConsoleContext(
        settings=PreviewSettings(),
        model=model,
        feeds=PreviewFeeds(),
        publisher=None,
        auth=PreviewAuth(person),
        dead=dead or console_dead.made_up(model, model.now()),
        actions=Actions(cast("Any", None)),
    )


def preview_app(
    model: Model,
    *,
    role: Role = "operate",
    name: str = "ada",
    signed_out: bool = False,
    dead: DeadLetters | None = None,
) -> Starlette:
    """The application over a model, for a person with this name and role."""
    person = None if signed_out else Person(name, role, name)
    return create_app(preview_context(model, person, dead))


def client(app: Starlette) -> TestClient:
    """A browser without scripts."""
    return TestClient(app, base_url="https://console.test", raise_server_exceptions=False)


def main() -> None:
    """Serve the pages until it is interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tools.harness.console_preview")
    parser.add_argument("--port", type=int, default=8099)
    parser.add_argument("--projects", type=int, default=console_data.Scale.projects)
    parser.add_argument("--role", choices=("view", "operate"), default="operate")
    parser.add_argument("--empty", action="store_true", help="nothing was read yet")
    parser.add_argument("--live", action="store_true", help="something happens every second")
    given = parser.parse_args()
    if given.empty:
        model = console_data.empty_model(None)
    else:
        model = console_data.filled_model(console_data.Scale(projects=given.projects), now=None)
        console_data.add_evidence(model, "acme", model.now())
    asyncio.run(_serve(preview_app(model, role=given.role), model, given.port, is_live=given.live))


async def _serve(app: Starlette, model: Model, port: int, *, is_live: bool) -> None:
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    async with asyncio.TaskGroup() as group:
        living = group.create_task(_live(model)) if is_live else None
        await server.serve()
        if living is not None:
            living.cancel()


async def _live(model: Model) -> None:
    """Let something happen every second."""
    for number in itertools.count():
        console_data.go_on(model, number)
        await asyncio.sleep(1)


if __name__ == "__main__":
    main()
