"""Listening sockets, and what the kernel limits on each connection (SPEC 9.2).

uvicorn serves on sockets that it is given. Linux copies the options of a listening socket to
the connections that it accepts, so these limits need no code in the HTTP protocol:

    TCP_USER_TIMEOUT     closes a connection whose client acknowledges nothing for too long,
                         also when the response is complete for the application
    TCP_NOTSENT_LOWAT    keeps the kernel's send buffer small. With megabytes in it, a client
                         that reads slowly would look like one that reads nothing
"""

import asyncio
import socket
from contextlib import ExitStack
from typing import Any, Final

from keyturn.errors import SettingsError

_UNSENT_BYTES: Final = 128 * 1024


class AddressError(SettingsError):
    """The process cannot listen on its address. The text is one line for a person."""


async def open_listeners(host: str, port: int, *, idle_timeout_s: float) -> list[socket.socket]:
    """Bind a socket to each address of the host. The caller closes them.

    Args:
        host: A name or an address; empty for all interfaces.
        port: A port, or 0 for any free one.
        idle_timeout_s: How long a client may acknowledge nothing of what was sent.

    Raises:
        AddressError: the address is in use or does not exist.
    """
    try:
        addresses = await asyncio.get_running_loop().getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        with ExitStack() as stack:
            sockets = [
                stack.enter_context(_bind(family, address, idle_timeout_s))
                for family, _, _, _, address in dict.fromkeys(addresses)
            ]
            stack.pop_all()  # all are bound: they stay open
            return sockets
    except OSError as exc:
        raise AddressError(f"cannot listen on {host} port {port}") from exc


def _bind(family: int, address: tuple[Any, ...], idle_timeout_s: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # IPv4 has its own socket.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            timeout_ms = int(idle_timeout_s * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock
