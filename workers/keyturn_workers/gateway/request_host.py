"""The gateway's own address, as the client of a request wrote it (SPEC 9.3). Pure.

The client chooses the `Host` header, and it becomes the beginning of a URL. So only a host and a
port are accepted, and nothing that could change the rest of the URL.
"""

import re
from collections.abc import Sequence
from ipaddress import AddressValueError, IPv6Address
from typing import Final

from keyturn.errors import MalformedRequestError

_HOST: Final = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})|\[(?P<v6>[0-9A-Fa-f:.]{2,45})\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_MAX_PORT: Final = 65535


def own_url(scheme: str, hosts: Sequence[str]) -> str:
    """Return the scheme, host and port under which the client reached this gateway.

    Args:
        scheme: The request's scheme.
        hosts: The values of all `Host` headers.

    Raises:
        MalformedRequestError: there is not exactly one host, or it is malformed.
    """
    if len(hosts) != 1 or not _is_host(hosts[0]):
        raise MalformedRequestError("the Host header is missing or malformed")
    return f"{scheme}://{hosts[0].lower()}"


def _is_host(text: str) -> bool:
    match = _HOST.fullmatch(text)
    if match is None:
        return False
    if match["v6"] is not None:
        try:
            IPv6Address(match["v6"])
        except AddressValueError:
            return False
    return match["port"] is None or 1 <= int(match["port"]) <= _MAX_PORT
