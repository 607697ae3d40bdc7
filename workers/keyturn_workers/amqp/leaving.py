"""The beginning of a process's end: the broker sends it nothing more (SPEC 6.2).

FastStream ends a consumer only once the last message that it holds is done. Until then each
acknowledgement would make room for one that this process never looks at and that nobody
else gets: behind a large upload that needs its whole grace, as many as are held at once.
"""

import asyncio
from typing import Any, Final

import structlog
from faststream.rabbit.subscriber import RabbitSubscriber

_TIMEOUT_S: Final = 5

_log = structlog.get_logger()


async def take_no_more(subscriber: RabbitSubscriber) -> None:
    """End its consumer; what it holds is finished as ever.

    Where the broker cannot be asked, it gives to others what it gave to this process anyway.
    """
    # Neither is shown to others; FastStream leaves out a consumer that has no tag.
    queue, tag = subscriber._queue_obj, subscriber._consumer_tag  # noqa: SLF001
    if queue is None or tag is None:
        return
    subscriber._consumer_tag = None  # noqa: SLF001
    # Not cancelled where it takes long: that would close the channel, and with it cut short
    # whatever is being handled.
    ending = asyncio.ensure_future(queue.cancel(tag))
    ending.add_done_callback(_note)
    await asyncio.wait({ending}, timeout=_TIMEOUT_S)


def _note(ending: "asyncio.Future[Any]") -> None:
    # Whatever it was: the process ends all the same.
    if not ending.cancelled() and (problem := ending.exception()) is not None:
        _log.debug("consumer ended with its channel", problem=type(problem).__name__)
