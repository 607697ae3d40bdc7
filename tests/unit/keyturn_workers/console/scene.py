"""The console's pages over made-up answers, as one person uses them with a browser."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keyturn_workers.console.auth.person import Person
from tools.harness import console_data
from tools.harness.console_client import forms_of
from tools.harness.console_preview import PreviewAuth, client, preview_app

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from keyturn.messages import Event
    from keyturn_workers.console.auth.person import Role
    from keyturn_workers.console.context import ConsoleContext
    from tools.harness.console_data import MadeUp

_BLANKS = re.compile(r"\s+")
_TAGS = re.compile(r"<[^>]+>")


def words_of(page: str) -> str:
    """What a person reads, without markup and with single blanks."""
    return _BLANKS.sub(" ", html.unescape(_TAGS.sub(" ", page))).strip()


@dataclass
class Scene:
    """A browser with a session, and the publisher that its console has."""

    publisher: MadeUp
    role: Role = "operate"
    options: dict[str, Any] = field(default_factory=dict)
    browser: TestClient = field(init=False)
    context: ConsoleContext = field(init=False)
    auth: PreviewAuth = field(init=False)

    def __post_init__(self) -> None:
        self.auth = PreviewAuth(Person("kim", self.role, "kim"))
        app = preview_app(self.publisher, auth=self.auth, **self.options)
        self.context = app.state.console
        self.browser = client(app)

    def sign_in(self, name: str, role: Role, session: str = "session") -> None:
        """Go on as another person, or in another session."""
        self.auth.person = Person(name, role, name)
        self.auth.session_id = session

    def get(self, path: str, status: int = 200, **headers: str) -> str:
        """A page as HTML."""
        answer = self.browser.get(path, headers=headers)
        assert answer.status_code == status, answer.text
        text: str = answer.text
        return text

    def words(self, path: str, status: int = 200) -> str:
        """What a person reads on a page."""
        return words_of(self.get(path, status))

    def post(self, path: str, status: int = 303, **fields: Any) -> Any:
        """Send a form."""
        answer = self.browser.post(path, data=fields, follow_redirects=False)
        assert answer.status_code == status, answer.text
        return answer

    def fields(self, page: str, action: str) -> dict[str, str]:
        """What the fields of a page's form hold."""
        form = next(each for each in forms_of(page) if each.action == action)
        return {name: value for name, value in form.fields.items() if name != "csrf"}

    def token(self, page: str, action: str) -> str:
        """The token of a page's form."""
        return self.fields(page, action)["form"]

    def answer(self, request_id: str, event: Event) -> None:
        """Let a worker answer a request."""
        portal = self.browser.portal
        assert portal is not None
        portal.call(self.publisher.answer, request_id, event)

    @property
    def sent(self) -> list[tuple[str, dict[str, Any]]]:
        """What was published."""
        return self.publisher.published


def lived(**options: Any) -> Scene:
    """A deployment that has lived a little."""
    return Scene(console_data.deployment(), options=options)
