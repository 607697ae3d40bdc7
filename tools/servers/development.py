"""`python -m tools.servers.development`: the storage of compose.yaml, Ceph's gateway in memory.

It listens on all addresses of its container, with the port and the keys of `KEYTURN_S3_…`, and
creates the bucket. For development only: its data is lost when it stops.
"""

from __future__ import annotations

import os
import signal
import sys
from urllib.parse import urlsplit

from tools.servers.ceph import CephRgw
from tools.servers.process import ServerError
from tools.servers.s3 import S3Server, sync_client

_NEEDED = ("KEYTURN_S3_ENDPOINT_URL", "KEYTURN_S3_ACCESS_KEY_ID", "KEYTURN_S3_SECRET_ACCESS_KEY")


def serve(environ: dict[str, str]) -> None:
    """Start the gateway, create the bucket, and wait for SIGTERM or Ctrl-C."""
    if missing := [name for name in (*_NEEDED, "KEYTURN_S3_BUCKET") if not environ.get(name)]:
        raise ServerError(f"{', '.join(missing)} is missing")
    port = urlsplit(environ["KEYTURN_S3_ENDPOINT_URL"]).port
    given = S3Server.from_environment(
        {**environ, "KEYTURN_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    )
    rgw = CephRgw(server=given, listen=environ.get("KEYTURN_STORAGE_LISTEN", "0.0.0.0"))  # noqa: S104  # a container's own network
    try:
        sync_client(rgw.start()).create_bucket(Bucket=environ["KEYTURN_S3_BUCKET"])
        print("ready", flush=True)
        signal.pause()
    finally:
        rgw.close()


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
