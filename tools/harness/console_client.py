"""The console over HTTP without a browser: pages, forms, events, links (SPEC 16.3)."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urljoin, urlsplit

import aiohttp
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tools.harness.console import Account


_PAUSE_S: Final = 0.3
"""Each page is a question to the workers."""


@dataclass(frozen=True)
class Answer:
    """A response that was read to its end."""

    status: int
    path: str
    headers: Mapping[str, str]
    text: str = field(repr=False)


@dataclass
class Form:
    """A form of a page: where it goes, and what its fields hold."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "a":
            self.links.append(given.get("href", ""))
        elif tag == "form":
            self.forms.append(Form(given.get("action", ""), given.get("method", "get").lower()))
        elif tag == "input" and "name" in given and self.forms:
            checkable = given.get("type") in ("checkbox", "radio")
            if not checkable or "checked" in given:
                self.forms[-1].fields[given["name"]] = given.get("value", "")


def forms_of(page: str) -> list[Form]:
    """The forms of a page, in their order."""
    parser = _Parser()
    parser.feed(page)
    return parser.forms


def links_of(page: str) -> list[str]:
    """Where the links of a page lead, in their order."""
    parser = _Parser()
    parser.feed(page)
    return parser.links


@dataclass(frozen=True)
class ConsoleClient:
    """One session with the console at this URL."""

    url: str
    session: aiohttp.ClientSession

    async def get(self, path: str, **headers: str) -> Answer:
        """Read a page, following redirects."""
        async with self.session.get(self.url + path, headers=headers) as response:
            text = await response.text()
            return Answer(response.status, response.url.path_qs, response.headers, text)

    async def until(self, path: str, *words: str, timeout_s: float = 60) -> Answer:
        """Read a page again and again, until it has one of these texts.

        Raises:
            TimeoutError: it has none of them in time.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                page = await self.get(path)
                if page.status == 200 and any(each in page.text for each in words):
                    return page
                await asyncio.sleep(_PAUSE_S)

    async def post(self, path: str, fields: Mapping[str, str], **headers: str) -> Answer:
        """Send a form as a page of the console would, unless other headers are given."""
        sent = {"Origin": self.url, "Referer": self.url + path, **headers}
        async with self.session.post(self.url + path, data=dict(fields), headers=sent) as response:
            text = await response.text()
            return Answer(response.status, response.url.path_qs, response.headers, text)

    async def submit(self, page: Answer, action: str, **fields: str) -> Answer:
        """Send the page's form whose action ends like this, with these fields filled in."""
        form = next(each for each in forms_of(page.text) if each.action.endswith(action))
        return await self.post(urljoin(page.path, form.action), form.fields | fields)

    async def try_password(self, name: str, password: str) -> Answer:
        """Send the form of the sign-in page."""
        page = await self.get("/sign-in")
        form = next(each for each in forms_of(page.text) if "password" in each.fields)
        filled = form.fields | {"name": name, "password": password}
        return await self.post(urljoin(page.path, form.action), filled)

    async def sign_in(self, account: Account) -> None:
        """Sign in with a password."""
        answer = await self.try_password(account.name, account.password)
        assert answer.status == 200, answer
        assert not answer.path.startswith("/sign-in"), answer

    async def is_signed_in(self) -> bool:
        """Whether the client's session goes on."""
        return not (await self.get("/sign-in")).path.startswith("/sign-in")


_COOKIES: dict[tuple[str, str, str], aiohttp.CookieJar] = {}
"""Sessions by URL, name and password: sign-ins are limited for each name."""


@asynccontextmanager
async def console_client(
    url: str, account: Account | None = None, *, is_new: bool = False
) -> AsyncIterator[ConsoleClient]:
    """A client without cookies, signed in if an account is given.

    Clients of one account share a session, unless one is to have a new one of its own.
    """
    if account is None or is_new:
        jar = _new_jar(url)
    else:
        jar = _COOKIES.setdefault((url, account.name, account.password), _new_jar(url))
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        client = ConsoleClient(url, session)
        if account is not None and not await client.is_signed_in():
            await client.sign_in(account)
        yield client


def _new_jar(url: str) -> aiohttp.CookieJar:
    # Browsers take loopback for as safe as TLS, and send cookies that are `Secure` there.
    return aiohttp.CookieJar(unsafe=True, treat_as_secure_origin=URL(url))


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
