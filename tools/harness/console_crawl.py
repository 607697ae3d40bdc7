"""All kinds of pages that links of the console lead to, one of each kind."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urljoin, urlsplit

from tools.harness.console_client import links_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tools.harness.console_client import Answer, ConsoleClient

_UUID: Final = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_KINDS: Final = (
    (re.compile(_UUID), "{id}"),
    (re.compile(r"\b[0-9a-f]{16,64}\b"), "{digest}"),
    (re.compile(r"^/(projects|sweeps)/(?!\{|_all|new)[a-z0-9-]+"), r"/\1/{project}"),
    (re.compile(r"keyturn\.[a-z]+\.dead"), "{queue}"),
)
_MOST: Final = 300


def kind_of(path: str) -> str:
    """A page's path without what differs between pages of one kind."""
    parts = urlsplit(path)
    kind = parts.path
    for pattern, placeholder in _KINDS:
        kind = pattern.sub(placeholder, kind)
    names = sorted(parse_qs(parts.query, keep_blank_values=True))
    return f"{kind}?{'&'.join(names)}" if names else kind


async def crawl(client: ConsoleClient, *starts: str) -> dict[str, Answer]:
    """One page of each kind that can be reached by links, by its kind; all are read by GET.

    A page is kept with its path as linked, also where it redirects or is an error.
    """
    found: dict[str, Answer] = {}
    waiting = list(starts or ["/"])
    while waiting and len(found) < _MOST:
        path = waiting.pop(0)
        kind = kind_of(path)
        if kind in found:
            continue
        found[kind] = answer = await client.get(path)
        if "text/html" not in answer.headers.get("Content-Type", ""):
            continue
        for link in links_of(answer.text):
            target = urlsplit(urljoin(client.url + path, link))
            if target.scheme == "http" and f"http://{target.netloc}" == client.url:
                waiting.append(target._replace(scheme="", netloc="", fragment="").geturl())
    return found


def pages_of(found: Mapping[str, Answer]) -> dict[str, str]:
    """The paths of the pages by their kinds, whatever they are sorted or filtered by."""
    pages: dict[str, str] = {}
    for kind, answer in found.items():
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            pages.setdefault(kind.partition("?")[0], answer.path)
    return pages
