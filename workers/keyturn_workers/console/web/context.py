"""What every page of the console needs, as one value (SPEC 16). Classes of data.

`create_app` puts it into the state of the application. A page reads it with `context_of`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import BaseRoute

Role = Literal["view", "operate"]


class Person(Protocol):
    """Who is signed in."""

    @property
    def name(self) -> str:
        """What requests name as `actor`."""
        ...

    @property
    def role(self) -> Role:
        """`view` reads; `operate` also acts."""
        ...


class Auth(Protocol):
    """Sign-in, sessions, CSRF and response headers, as the pages need them.

    To an htmx request or a request for events without a session, the middleware answers 401 with
    `HX-Refresh: true`: a redirect would be followed, and the sign-in page put into the page.
    """

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """`/sign-in`, `/sign-out` and what belongs to them."""
        ...

    @property
    def middleware(self) -> Sequence[Middleware]:
        """From outermost to innermost."""
        ...

    def person_of(self, request: Request) -> Person | None:
        """The person; None on the pages that need no session."""
        ...

    def csrf_token(self, request: Request) -> str:
        """The value of the hidden field `csrf`; empty where there is no session."""
        ...


@dataclass(frozen=True, slots=True)
class ConsoleContext:
    """The parts of the console that pages use.

    Attributes:
        settings: Of the console.
        model: All that pages show, in memory.
        feeds: Asks control workers for reports.
        publisher: Signs and publishes requests.
        auth: Who is signed in.
        dead: The index of dead letters.
        actions: Requests that persons made, and their answers.
    """

    settings: Any
    model: Any
    feeds: Any
    publisher: Any
    auth: Auth
    dead: Any
    actions: Any


def context_of(request: Request) -> ConsoleContext:
    """The context of the application that serves this request."""
    context: ConsoleContext = request.app.state.console
    return context
