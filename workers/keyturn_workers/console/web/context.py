"""What every page of the console needs, as one value (SPEC 16). Classes of data.

`create_app` puts it into the state of the application. A page reads it with `context_of`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import BaseRoute

from keyturn_workers.console.model import Model


class Auth(Protocol):
    """Sign-in, as the pages need it; the session of a request is that of `auth.session_of`."""

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """`/sign-in`, `/sign-out` and what belongs to them."""
        ...

    @property
    def middleware(self) -> Sequence[Middleware]:
        """From outermost to innermost."""
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
    model: Model
    feeds: Any
    publisher: Any
    auth: Auth
    dead: Any
    actions: Any


def context_of(request: Request) -> ConsoleContext:
    """The context of the application that serves this request."""
    context: ConsoleContext = request.app.state.console
    return context
