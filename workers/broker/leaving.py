"""The beginning of a process's end: the broker sends it nothing more (SPEC 6.2).

FastStream ends a consumer only once the last message that it holds is done. Until then each
acknowledgement would make room for one that this process never looks at and that nobody
else gets: behind a large upload that needs its whole grace, as many as are held at once.
"""

import asyncio
from typing import Final

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
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await queue.cancel(tag)
    except Exception as exc:  # noqa: BLE001  # whatever it was: the process ends all the same
        _log.debug("consumer ended with its channel", problem=type(exc).__name__)
