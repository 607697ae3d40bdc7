"""Store one file of the project `acme` through the gateway, then read all and a part of it."""

import asyncio
import os
import sys

from keyturn.errors import KeyturnError
from keyturn.gateway import Client


async def main() -> None:
    url, api_key = os.environ["KEYTURN_GATEWAY_URL"], os.environ["KEYTURN_API_KEY"]
    async with Client.connect(url, api_key) as client:
        await client.upload(
            "acme",
            "reports/q4.txt",
            b"the fourth quarter",
            content_type="text/plain",
            metadata={"author": "kim"},
        )
        print("stored")

        async with client.open("acme", "reports/q4.txt") as opened:
            print(f"{opened.size_bytes} bytes by {opened.metadata['author']}", flush=True)
            async for piece in opened.chunks():
                sys.stdout.buffer.write(piece)
            print()

        async with client.open("acme", "reports/q4.txt", start=4, length=6) as opened:
            print(await opened.read())


try:
    asyncio.run(main())
except KeyError as exc:
    sys.exit(f"{exc} is not set")
except KeyturnError as exc:
    sys.exit(f"{exc}")
