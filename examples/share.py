"""List the files of the project `acme`, share one by a link, and delete it."""

import asyncio
import os
import sys

from keyturn.errors import KeyturnError
from keyturn.gateway import Client


async def main() -> None:
    url, api_key = os.environ["KEYTURN_GATEWAY_URL"], os.environ["KEYTURN_API_KEY"]
    async with Client.connect(url, api_key) as client:
        async for entry in client.list("acme", prefix="reports/q4"):
            print(f"{entry.key}: {entry.size_bytes} bytes")

        link = await client.link("acme", "reports/q4.txt", expires_s=600)
        print(f"until {link.expires_at:%H:%M} UTC: {link.url}")

        receipt = await client.delete("acme", "reports/q4.txt", wait_s=60)
        print("deleted" if receipt.deleted else f"on its way: {receipt.request_id}")


try:
    asyncio.run(main())
except KeyError as exc:
    sys.exit(f"{exc} is not set")
except KeyturnError as exc:
    sys.exit(f"{exc}")
