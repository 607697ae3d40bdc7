"""Store one file of the project `acme` and wait for the answer."""

import asyncio
import sys

from keyturn.messages import UploadRejected, UploadStored
from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings, S3Settings


async def main() -> int:
    # Settings come from the environment: see publisher.env, which `keyturn init` writes.
    async with Publisher.open(PublisherSettings.read(), s3=S3Settings.read()) as publisher:
        upload_id = await publisher.upload(
            "acme",
            "reports/q3.txt",
            # bytes, a Path, a binary file or an async stream of bytes
            b"the third quarter",
            content_type="text/plain",
            metadata={"author": "kim"},
        )
        event = await publisher.wait(upload_id, timeout_s=60)
    if isinstance(event, UploadStored):
        print(f"stored: {event.key}, {event.size} bytes, generation {event.generation}")
        return 0
    if isinstance(event, UploadRejected):
        print(f"refused: {event.code}: {event.detail}", file=sys.stderr)
    return 1


sys.exit(asyncio.run(main()))
