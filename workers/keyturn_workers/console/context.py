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
from keyturn_workers.console.settings import Color

ATTENTION = Query("attention")
QUEUES = Query("queues")
"""The query for the header of every page."""


@dataclass(frozen=True, slots=True)
class ConsoleContext:
    """The parts of the console that pages use.

    `publisher_name` is the name under which the console publishes. Pages show the name of the
    `deployment`, if it has one of its own, and its `color`.
    """

    publisher_name: str
    asker: Asker
    actions: Actions
    census: CensusTaker
    prometheus: Prometheus | None = None
    deployment: str = ""
    color: Color = "teal"


def context_of(request: Request) -> ConsoleContext:
    """Return the context of the application that serves this request."""
    context: ConsoleContext = request.app.state.console
    return context


async def ask(request: Request, *queries: Query) -> tuple[Answer, ...]:
    """Return the answers that a page shows, and ask for the header's answer at the same time.

    A refresh by the open page (htmx) waits for the end of a pause.
    """
    is_eager = "hx-request" not in request.headers
    asker = context_of(request).asker
    answers = await asyncio.gather(
        *(asker.ask(query, is_eager=is_eager) for query in queries),
        *(asker.ask(query, is_eager=is_eager, is_brief=True) for query in (ATTENTION, QUEUES)),
    )
    return tuple(answers[: len(queries)])
