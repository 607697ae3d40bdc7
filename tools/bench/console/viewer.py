"""`python -m tools.bench.console.viewer URL`: keeps the page *Now* of a console open.

It holds the page's stream of events, and reads the page again for each event, as a browser does.
The name and the password of its account are in the environment. Its log has a line for each time
that the page was read.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

from tools.harness.console import Account
from tools.harness.console_client import console_client

NAME: Final = "KEYTURN_BENCH_NAME"
PASSWORD: Final = "KEYTURN_BENCH_PASSWORD"
READ: Final = "page read"
_PAGE: Final = "/"


async def look(url: str, account: Account) -> None:
    """Look at the page until the stream ends."""
    async with console_client(url, account) as client, client.events() as stream:
        async for line in stream:
            if not line.startswith(b"data:"):
                continue
            answer = await client.get(_PAGE)
            if answer.status != 200:
                raise SystemExit(f"the page answered {answer.status}")
            print(READ, file=sys.stderr, flush=True)
    raise SystemExit("the stream of events ended")


if __name__ == "__main__":
    asyncio.run(look(sys.argv[1], Account(os.environ[NAME], "operate", os.environ[PASSWORD])))
