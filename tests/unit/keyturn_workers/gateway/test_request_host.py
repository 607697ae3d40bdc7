"""The address that a client used, by its `Host` header alone."""

from __future__ import annotations

import pytest

from keyturn.errors import MalformedRequestError
from keyturn_workers.gateway.request import own_url


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("files.example.com", "http://files.example.com"),
        ("FILES.example.com:8443", "http://files.example.com:8443"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("[2001:DB8::1]", "http://[2001:db8::1]"),
        ("keyturn_gateway:1", "http://keyturn_gateway:1"),
        ("a:65535", "http://a:65535"),
    ],
)
def test_a_host_is_the_beginning_of_a_link(host: str, url: str) -> None:
    assert own_url("http", [host]) == url


@pytest.mark.parametrize(
    "host",
    [
        "", " ", "a b", "a/b", "a?b", "a#b", "a@b", "user:pw@b", "a:", "a:b", "a:0", "a:65536",
        "a:8080:1", "[", "[]", "[::1", "[::1]x", "[1.2.3.4]", "[:::]", "::1", "a\\b", "a%2fb", "ü",
        "-a", ".a", "a,b", "a\tb", "a\n", "x" * 256, "a:" + "1" * 6, "[fe80::1%25eth0]",
    ],
)  # fmt: skip
def test_anything_else_is_refused(host: str) -> None:
    with pytest.raises(MalformedRequestError, match="Host header"):
        own_url("http", [host])


@pytest.mark.parametrize("hosts", [[], ["a", "a"]])
def test_there_is_one_host(hosts: list[str]) -> None:
    with pytest.raises(MalformedRequestError, match="Host header"):
        own_url("http", hosts)
