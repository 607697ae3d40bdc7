"""`python -m tools.servers.development`: the storage of compose.yaml, SeaweedFS with one folder.

It listens on all addresses of its container, with the port and the keys of `KEYTURN_S3_…`, and
creates the bucket unless it exists. Its objects are in `KEYTURN_STORAGE_DATA`, and stay there. For
development only: it is one server, and each write is only as safe as the machine's own disk cache.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from tools.servers.process import ServerError
from tools.servers.s3 import S3Server, sync_client
from tools.servers.seaweedfs import SeaweedFS

_NEEDED = (
    *("KEYTURN_S3_ENDPOINT_URL", "KEYTURN_S3_ACCESS_KEY_ID", "KEYTURN_S3_SECRET_ACCESS_KEY"),
    *("KEYTURN_S3_BUCKET", "KEYTURN_STORAGE_DATA"),
)


def serve(environ: dict[str, str]) -> None:
    """Start the server, create the bucket, and wait for SIGTERM or Ctrl-C."""
    if missing := [name for name in _NEEDED if not environ.get(name)]:
        raise ServerError(f"{', '.join(missing)} is missing")
    port = urlsplit(environ["KEYTURN_S3_ENDPOINT_URL"]).port
    given = S3Server.from_environment(
        {**environ, "KEYTURN_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    )
    listen = environ.get("KEYTURN_STORAGE_LISTEN", "0.0.0.0")  # noqa: S104  # a container's own network
    server = SeaweedFS(server=given, data=Path(environ["KEYTURN_STORAGE_DATA"]), listen=listen)
    try:
        client = sync_client(server.start())
        with suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=environ["KEYTURN_S3_BUCKET"])
        Path(tempfile.gettempdir(), "ready").touch()  # for the health check
        print("ready", flush=True)
        signal.pause()
    finally:
        server.close()


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve(dict(os.environ))
    except KeyboardInterrupt:
        sys.exit(0)
    except ServerError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
