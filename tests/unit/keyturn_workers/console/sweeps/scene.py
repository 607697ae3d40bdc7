"""The pages of sweeps and actions over a real model, without a broker."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from starlette.middleware import Middleware
from starlette.testclient import TestClient

from keyturn.identifiers import format_time
from keyturn.messages import (
    Counts,
    FailureStatus,
    MasterKeyStatus,
    ObjectGroupStatus,
    ProjectStatus,
    StatusReported,
    SweepStatus,
)
from keyturn_workers.console.actions import Actions
from keyturn_workers.console.auth.person import SESSION_SCOPE, Person, Session
from keyturn_workers.console.model import Model
from keyturn_workers.console.web.app import create_app
from keyturn_workers.console.web.context import ConsoleContext
from tests.unit.keyturn_workers.console.actions.publishers import FakePublisher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from httpx2 import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

SWEEP_ID = "2f6c9a0e-0000-4000-8000-000000000001"
OTHER_ID = "2f6c9a0e-0000-4000-8000-000000000002"
HOSTILE = "<script>alert(1)</script>\u202e=1'\""
_REQUEST_ID = "2f6c9a0e-0000-4000-8000-00000000000f"


class _SignedIn:
    """Puts a session into each request, as the sign-in does."""

    def __init__(self, app: ASGIApp, auth: FakeAuth) -> None:
        self._app = app
        self._auth = auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[SESSION_SCOPE] = self._auth.session
        await self._app(scope, receive, send)


@dataclass
class FakeAuth:
    """Who is signed in."""

    session: Session = field(
        default_factory=lambda: Session(
            "session-1", Person("kim", "operate", "local:kim"), "csrf-token", 2e9
        )
    )
    routes: tuple[()] = ()

    @property
    def middleware(self) -> list[Middleware]:
        return [Middleware(_SignedIn, self)]

    def is_signed_in(self, _request: object) -> bool:
        return True

    def sign_in(self, name: str, role: str, session_id: str = "session-1") -> None:
        person = Person(name, role, f"local:{name}")  # type: ignore[arg-type]
        self.session = Session(session_id, person, "csrf-token", 2e9)


class FakeFeeds:
    """Records what is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def viewing(self) -> AbstractContextManager[None]:
        raise AssertionError

    async def request_sweep(self, *args: Any) -> None:
        self.asked.append(("sweep", *args))

    async def request_failures(self, *args: Any) -> None:
        self.asked.append(("failures", *args))

    async def request_evidence(self, *args: Any) -> None:
        self.asked.append(("evidence", *args))

    def census(self, actor: str | None = None) -> None:
        self.asked.append(("census", actor))

    def cancel_census(self) -> None:
        self.asked.append(("cancel",))


class Scene:
    """A console and its browser."""

    def __init__(self) -> None:
        self.auth = FakeAuth()
        self.feeds = FakeFeeds()
        self.model = Model("console")
        self.publisher = FakePublisher()
        self.actions = Actions(self.publisher, publish_wait_s=1)
        context = ConsoleContext(
            settings=SimpleNamespace(publisher_name="console"),
            model=self.model,
            feeds=self.feeds,
            publisher=self.publisher,
            auth=self.auth,
            dead=None,
            actions=self.actions,
        )
        self.client = TestClient(create_app(context), base_url="https://console.test")

    # What the model knows.

    def report(self, view: str, **fields: Any) -> None:
        """Let a control worker report."""
        self.model.apply_report(
            StatusReported.model_validate(
                {
                    "at": format_time(datetime.now(UTC)),
                    "publisher": "console",
                    "request": "0" * 64,
                    "request_id": _REQUEST_ID,
                    "project": "*",
                    "view": view,
                    "digest": "1" * 64,
                }
                | fields
            )
        )

    def add_project(self, name: str = "acme", generation: int = 3) -> None:
        self.report(
            "projects",
            projects=(
                ProjectStatus(
                    project=name,
                    generation=generation,
                    kek_id="0" * 16,
                    master_key="m1",
                    plaintext=False,
                    v0=False,
                    earlier_keks=0,
                    enrolled_at="2026-01-01T00:00:00Z",
                ),
            ),
        )

    def add_sweep(
        self, sweep_id: str = SWEEP_ID, project: str = "acme", *, age_h: float = 1, **fields: Any
    ) -> None:
        """A sweep by its record; by default one that ended and was not clean."""
        ended = datetime.now(UTC) - timedelta(hours=age_h)
        begun = format_time(ended - timedelta(minutes=1))
        values: dict[str, Any] = {
            "kind": "sweep",
            "status": "done",
            "clean": False,
            "counts": Counts(objects=10, current=7, failed=1),
            "requested_at": begun,
            "started_at": begun,
            "ended_at": format_time(ended),
            "publisher": "console",
            "generation": 3,
        }
        row = SweepStatus(sweep_id=sweep_id, project=project, **(values | fields))
        self.report("sweep", project=project, sweep_id=sweep_id, sweeps=(row,))

    def add_failures(self, *failures: tuple[str | None, str], sweep_id: str = SWEEP_ID) -> None:
        rows = tuple(FailureStatus(project="acme", key=key, code=code) for key, code in failures)
        self.report("failures", project="acme", sweep_id=sweep_id, failures=rows)

    def add_master_keys(self) -> None:
        keys = (
            MasterKeyStatus(master_key="m1", provider="local", active=False),
            MasterKeyStatus(master_key="m2", provider="pkcs11", active=True),
        )
        self.report("master_keys", master_keys=keys)

    def add_census(self, *groups: ObjectGroupStatus) -> None:
        self.report("objects", objects=groups)

    # What the browser does.

    def get(self, path: str, status: int = 200) -> str:
        response = self.client.get(path, follow_redirects=False)
        assert response.status_code == status, response.text
        return response.text

    def post(self, path: str, status: int = 303, **fields: str) -> Response:
        response = self.client.post(path, data=fields, follow_redirects=False)
        assert response.status_code == status, response.text
        return response

    def hidden(self, page: str, action: str) -> dict[str, str]:
        """The hidden fields of the form with this action and a token; without the CSRF token."""
        for form in re.findall(r"<form.*?</form>", page, re.DOTALL):
            fields = re.findall(r'type="hidden" name="([^"]*)" value="([^"]*)"', form)
            if f'action="{action}"' in form and "form" in dict(fields):
                return {name: html.unescape(value) for name, value in fields if name != "csrf"}
        raise AssertionError(f"no form with a token for {action}")

    def token(self, page: str, action: str) -> str:
        """The token of the form with this action on a page."""
        return self.hidden(page, action)["form"]

    @property
    def sent(self) -> list[tuple[str, dict[str, Any]]]:
        return self.publisher.sent


def scenes() -> Iterator[Scene]:
    """A scene whose event loop goes on between requests."""
    scene = Scene()
    with scene.client:
        yield scene
        assert scene.client.portal is not None
        scene.client.portal.call(scene.actions.close)
