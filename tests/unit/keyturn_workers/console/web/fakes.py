"""A signed-in person and an empty model, for tests of pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.testclient import TestClient

from keyturn_workers.console.web.app import create_app
from keyturn_workers.console.web.context import ConsoleContext, Role

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.routing import BaseRoute

CSRF = "csrf-of-this-session"


@dataclass
class FakePerson:
    name: str = "night.shift"
    role: Role = "operate"


@dataclass
class FakeAuth:
    """Who is signed in is a matter of the test."""

    person: FakePerson | None = field(default_factory=FakePerson)
    routes: list[BaseRoute] = field(default_factory=list)
    middleware: list[Middleware] = field(default_factory=list)

    def person_of(self, _request: Request) -> FakePerson | None:
        return self.person

    def csrf_token(self, _request: Request) -> str:
        return CSRF if self.person else ""


class EmptyModel:
    def feeds(self) -> tuple[()]:
        return ()


def make_app(person: FakePerson | None = None, *, signed_out: bool = False) -> Starlette:
    auth = FakeAuth(person=None if signed_out else person or FakePerson())
    context = ConsoleContext(
        settings=None,
        model=EmptyModel(),
        feeds=None,
        publisher=None,
        auth=auth,
        dead=None,
        actions=None,
    )
    return create_app(context)


def client(app: Starlette) -> TestClient:
    return TestClient(app, base_url="https://console.test", raise_server_exceptions=False)
