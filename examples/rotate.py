"""Rotate the key of the project `acme` and wait until no object is left under the old one."""

import asyncio
import os
import sys
from pathlib import Path

from keyturn.crypto import new_api_key
from keyturn.errors import KeyturnError
from keyturn.messages import RotationAccepted, RotationCompleted
from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings


def save(api_key: str, path: Path) -> None:
    """Write the key to a new file that only its owner can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(api_key)


async def main() -> int:
    api_key = new_api_key()
    async with Publisher.open(PublisherSettings.read()) as publisher:
        save(api_key, Path("acme.new.key"))  # first: once accepted, no other key opens the project
        rotation_id = await publisher.rotate("acme", api_key=api_key)
        answer = await publisher.wait(rotation_id, timeout_s=60)
        if not isinstance(answer, RotationAccepted):
            print(f"refused: {answer}", file=sys.stderr)
            return 1
        print(f"accepted: generation {answer.generation}")
        end = await publisher.wait_completed(rotation_id, timeout_s=600)
    if isinstance(end, RotationCompleted) and end.clean:
        print(f"completed: {end.objects} objects, clean")
        return 0
    print(f"not clean: {end}", file=sys.stderr)
    return 1


try:
    status = asyncio.run(main())
except (KeyturnError, OSError) as exc:
    sys.exit(f"{exc}")
sys.exit(status)
