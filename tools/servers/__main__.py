"""`python -m tools.servers`: private servers for manual use, until Ctrl-C.

Prints shell `export` lines with the settings of SPEC 11, including the passwords of these
throwaway servers, and nothing else.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from typing import get_args

from tools.servers.packages import MissingPackagesError
from tools.servers.process import ServerError
from tools.servers.stack import Servers, StorageKind


def serve(storage: StorageKind) -> None:
    """Start the servers, print their settings, and wait for Ctrl-C or SIGTERM."""
    with Servers(storage) as servers:
        settings = {"KEYTURN_AMQP_URL": servers.amqp_url}
        if storage != "none":
            settings |= servers.s3.environment(servers.new_bucket())
        for name, value in settings.items():
            print(f"export {name}={shlex.quote(value)}")
        print("# ready; Ctrl-C ends them", flush=True)
        signal.pause()


def main() -> None:
    """Parse the command line and run the servers."""
    parser = argparse.ArgumentParser(prog="python -m tools.servers", description=__doc__)
    parser.add_argument("--storage", choices=get_args(StorageKind), default="ceph")
    storage: StorageKind = parser.parse_args().storage
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve(storage)
    except KeyboardInterrupt:
        sys.exit(0)
    except (MissingPackagesError, ServerError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
