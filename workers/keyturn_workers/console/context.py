"""The parts of the console that pages use, as one value (SPEC 16).

`create_app` puts it into the state of the application. A page reads it with `context_of`.
"""

import asyncio
from dataclasses import dataclass

from starlette.requests import Request

from keyturn_workers.console.actions import Actions
from keyturn_workers.console.ask import Answer, Asker, Query
from keyturn_workers.console.key_usage import CensusTaker
from keyturn_workers.console.prometheus import Prometheus

ATTENTION = Query("attention")
QUEUES = Query("queues")
"""What the header of every page shows."""


@dataclass(frozen=True, slots=True)
class ConsoleContext:
    """The parts of the console that pages use.

    Attributes:
        publisher_name: Under which the console publishes.
        asker: Asks control workers for what is shown.
        actions: Requests that persons made, and their answers.
        census: Counts what depends on each master key.
        prometheus: The history, if there is one.
    """

    publisher_name: str
    asker: Asker
    actions: Actions
    census: CensusTaker
    prometheus: Prometheus | None = None


def context_of(request: Request) -> ConsoleContext:
    """The context of the application that serves this request."""
    context: ConsoleContext = request.app.state.console
    return context


async def ask(request: Request, *queries: Query) -> tuple[Answer, ...]:
    """The answers that a page shows; what its header shows is asked for at the same time.

    A page that is open asks by itself (htmx), which waits for the end of a pause.
    """
    is_eager = "hx-request" not in request.headers
    asker = context_of(request).asker
    answers = await asyncio.gather(
        *(asker.ask(query, is_eager=is_eager) for query in queries),
        *(asker.ask(query, is_eager=is_eager, is_brief=True) for query in (ATTENTION, QUEUES)),
    )
    return tuple(answers[: len(queries)])
