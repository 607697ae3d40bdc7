"""What is checked about a request before it is served (SPEC 16.3). Pure.

A page of another site can make a browser send requests here, with cookies where it is the same
site: another port of this machine, another name below the same domain. And a name of an attacker
can resolve to this machine (DNS rebinding). So the host must be one of the console's own, and an
unsafe request must come from a page of one of these origins.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
# A path of this site: no other host behind `//`, no backslash, which browsers take for a slash.
_LOCAL: Final = re.compile(r"/(?:[^/\\\x00-\x20\x7f-\x9f][^\\\x00-\x20\x7f-\x9f]*)?")
_LOCAL_MAX_CHARACTERS: Final = 1000
_COOKIE_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
HOME: Final = "/"


@dataclass(frozen=True, slots=True)
class OwnOrigins:
    """The origins under which this console may be used.

    Attributes:
        public: The origin as browsers see it.
        hosts: What `Host` may hold.
        origins: What `Origin` may hold.
    """

    public: str
    hosts: frozenset[str]
    origins: frozenset[str]

    @classmethod
    def of(cls, public_url: str, port: int, scheme: str = "http") -> Self:
        """Those of a public URL, and of this machine itself on the console's own port."""
        local = {f"{host}:{port}" for host in _LOOPBACK}
        return cls(
            public_url,
            frozenset(local | {urlsplit(public_url).netloc}),
            frozenset({f"{scheme}://{host}" for host in local} | {public_url}),
        )

    def is_own_host(self, host: str | None) -> bool:
        """Whether a `Host` header names this console."""
        return host is not None and host.lower() in self.hosts

    def is_own_page(self, headers: Mapping[str, str]) -> bool:
        """Whether an unsafe request comes from a page of this console.

        Browsers send `Origin` with each one. `null` is what a page without an origin sends.
        """
        origin = headers.get("origin")
        if origin is not None:
            return origin in self.origins
        return headers.get("sec-fetch-site") == "same-origin"

    def page_of(self, referer: str | None) -> str:
        """The path of the page that a request came from, if it is one of this console."""
        if referer is None:
            return HOME
        try:
            parts = urlsplit(referer)
        except ValueError:
            return HOME
        if f"{parts.scheme}://{parts.netloc}" not in self.origins:
            return HOME
        return local_path(f"{parts.path}?{parts.query}" if parts.query else parts.path)


def without_odd_cookies(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    r"""The headers without cookies whose names are not plain.

    Browsers take a name with `__Host-` only from this host. Starlette removes blanks around names,
    `\x85` and `\xa0` too: with one of these, another host of the domain could set such a name.
    """
    return [
        (name, _plain_cookies(value) if name == b"cookie" else value) for name, value in headers
    ]


def _plain_cookies(value: bytes) -> bytes:
    pairs = (pair.strip(b" ") for pair in value.split(b";"))
    return b"; ".join(pair for pair in pairs if _COOKIE_NAME.fullmatch(pair.partition(b"=")[0]))


def local_path(target: str | None) -> str:
    """The path and query to go to after the sign-in; `/` for anything that is not local."""
    if target is None or len(target) > _LOCAL_MAX_CHARACTERS:
        return HOME
    return target if _LOCAL.fullmatch(target) else HOME
