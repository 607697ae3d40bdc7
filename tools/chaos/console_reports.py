"""What the console shows at the end of a run, although it was killed and lost its broker (SPEC 16).

It was killed twice: what it showed before that, it learned again from the streams.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from tools.harness.console_client import console_client

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.chaos.operator import OperatorRequest
    from tools.harness.console import Account
    from tools.harness.console_client import ConsoleClient

_ENDS: Final = ("rotation.completed", "sweep.completed")
_ENDED: Final = (">Clean<", ">Not clean", " failed<")
_TIMEOUT_S: Final = 60
_PAUSE_S: Final = 0.5


async def misreported(
    url: str,
    account: Account,
    requested: Sequence[OperatorRequest],
    *,
    timeout_s: float = _TIMEOUT_S,
) -> list[str]:
    """Every rotation and sweep that ended and that the console at this URL does not show so."""
    pages = {
        f"/sweeps/{'_all' if each.project == '*' else each.project}/{each.request_id}"
        for each in requested
        if each.expected_event in _ENDS
    }
    until = time.monotonic() + timeout_s
    async with console_client(url, account) as client, client.events():
        while pages := {path for path in pages if not await _is_ended(client, path)}:
            if time.monotonic() > until:
                break
            await asyncio.sleep(_PAUSE_S)
    return [f"{path} is not shown as ended" for path in sorted(pages)]


async def _is_ended(client: ConsoleClient, path: str) -> bool:
    page = await client.get(path)
    return page.status == 200 and any(text in page.text for text in _ENDED)
