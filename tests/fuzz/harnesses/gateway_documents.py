"""Documents of a hostile gateway or a proxy, as its client reads them (SPEC 9.3).

The input is a response's body. Whatever a page holds, a listing yields only what was requested,
in order, and always advances; a link opens the requested object.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from keyturn.errors import UnexpectedResponseError
from keyturn.gateway import ListedObject
from keyturn.gateway.links import (
    is_upload_link,
    link_parameter,
    parse_ciphertext_link,
    parse_link,
    parse_upload_link,
)
from keyturn.gateway.listing import PageRequest, parse_page
from keyturn.gateway.responses import json_object
from keyturn.identifiers import Order, is_object_key
from tests.fuzz.harness import Harness, check

_REQUESTS: Final = (
    PageRequest("", None, "", 1000),
    PageRequest("a/", "/", "a/b", 3),
    PageRequest("é", "/", "", 1),
)


def run(data: bytes) -> str:
    """Read it as a response to each request that the client can make."""
    document = json_object(data)
    read = [name for name, holds in _readings(document).items() if holds]
    return " ".join(read) or "refused"


def _readings(document: dict[str, Any]) -> dict[str, bool]:
    pages = [_is_page(document, request) for request in _REQUESTS]
    return {
        "page": any(pages),
        "link": any(_is_link(document, inline=inline) for inline in (False, True)),
        "upload": any(_is_upload_link(document, each) for each in (None, "a/b; c=d")),
        "ciphertext": _is_ciphertext_link(document),
    }


def _is_page(document: dict[str, Any], request: PageRequest) -> bool:
    try:
        page = parse_page(document, request)
    except UnexpectedResponseError:
        return False
    names = [
        entry.key if isinstance(entry, ListedObject) else entry.prefix for entry in page.entries
    ]
    passed = [request.after] if request.after else []
    orders = [order for order in request.orders if _ascends([*passed, *names], order)]
    check(bool(orders), "entries that are not in order")
    check(len(names) <= request.limit, "more entries than requested")
    for name in names:
        check(name.startswith(request.prefix), "an entry that was not requested")
        check(is_object_key(name.removesuffix("/")), "an entry that no key begins with")
        below = name[len(request.prefix) :].removesuffix("/")
        check(not request.delimiter or "/" not in below, "an entry below a prefix")
    if (following := page.following) is not None:
        check(set(following.orders) <= set(orders), "a listing that changes its order")
        for order in following.orders:
            end = order(names[-1] if names else request.after)
            check(order(following.after) >= end, "a next page that goes back")
        check(following.after != request.after, "a next page that does not advance")
    return True


def _ascends(names: list[str], order: Order) -> bool:
    return all(order(one) < order(other) for one, other in pairwise(names))


def _is_link(document: dict[str, Any], *, inline: bool) -> bool:
    link = parse_link(document, "acme", "a/ü", inline=inline)
    if link is None:
        return False
    parts = urlsplit(link.url)
    check(parts.scheme in ("http", "https") and parts.hostname, "a link to no host")
    check(unquote(parts.path).endswith("/v1/projects/acme/objects/a/ü"), "a link to another object")
    check(("inline=1" in parts.query) is inline, "a link of another kind")
    check(link.url not in repr(link), "a link that shows itself")
    return True


def _is_upload_link(document: dict[str, Any], content_type: str | None) -> bool:
    link = parse_upload_link(document, "acme", "a/ü", 7, content_type)
    if link is None:
        return False
    parts = urlsplit(link.url)
    check(unquote(parts.path).endswith("/v1/projects/acme/objects/a/ü"), "a link to another object")
    check(is_upload_link(link.url), "an upload link that cannot be used")
    own_type = link_parameter(link.url, "content_type")
    check(own_type == (content_type or ""), "an upload link of another type")
    check(link.url not in repr(link), "a link that shows itself")
    return True


def _is_ciphertext_link(document: dict[str, Any]) -> bool:
    link = parse_ciphertext_link(document)
    if link is None:
        return False
    check(all(isinstance(value, str) for value in link.metadata.values()), "odd metadata")
    check(link.url not in repr(link), "a link that shows itself")
    return True


def _seeds() -> list[bytes]:
    at, token = "2026-11-24T10:00:00.000000Z", "t" * 43
    link = {
        "url": "https://files.example.com/v1/projects/acme/objects/a/%C3%BC"
        f"?expires=1795518000&token={token}",
        "expires_at": "2026-11-24T11:00:00Z",
    }
    documents: list[dict[str, Any]] = [
        {
            "objects": [{"key": key, "size": 5, "changed_at": at} for key in ("a/c", "a/ü")],
            "prefixes": ["a/d/"],
            "next": "a/ü",
        },
        {"objects": [{"key": "é", "size": None, "changed_at": at}], "prefixes": [], "next": None},
        {"objects": [], "prefixes": ["é/"], "next": "é/"},
        {"objects": [], "prefixes": [], "next": "a/b\0"},
        link,
        link | {"url": link["url"].replace("&token", "&inline=1&token")},
        link | {"url": link["url"].replace("&token", "&max_bytes=7&token")},
        link
        | {
            "url": link["url"].replace("&token", "&max_bytes=7&content_type=a%2Fb%3B+c%3Dd&token"),
        },
        link | {"metadata": {"enc-algo": "Cobblestone-256", "enc-dek-user": "c2VhbGVk"}},
    ]
    return [json.dumps(document, ensure_ascii=False).encode() for document in documents]


HARNESS: Final = Harness(
    "gateway_documents",
    run,
    _seeds,
    (
        '"next":',
        '"objects":',
        '"prefixes":',
        '"a/',
        '"é/"',
        "null",
        "-1",
        "//",
        "\\u0000",
        "\\ud800",
    ),
)
