"""The service manager's notifications: systemd's `Type=notify` (`deploy/systemd`).

The protocol is sd_notify(3): a datagram to the Unix socket in the environment variable
`NOTIFY_SOCKET`. Without the variable nothing is sent.
"""

import os
import socket
from typing import Final, Literal

import structlog

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
_TIMEOUT_S: Final = 1.0

_log = structlog.get_logger()


def notify_service_manager(state: Literal["READY=1", "STOPPING=1"]) -> None:
    """Report the state of this process. A failure is only logged: the process still serves."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # a name in Linux's abstract namespace
        address = f"\0{address[1:]}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
            datagrams.settimeout(_TIMEOUT_S)
            datagrams.connect(address)
            datagrams.send(state.encode())
    except OSError as exc:
        _log.warning("service manager not notified", state=state, problem=type(exc).__name__)
