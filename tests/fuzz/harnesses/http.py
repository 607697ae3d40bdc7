"""What a client of the gateway sends: a path with a query, a range, conditions (SPEC 9).

The input is the path, perhaps with `?` and a query, then a line for each header: `name: value`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from starlette.datastructures import Headers

from keyturn.errors import MalformedRequestError
from keyturn.identifiers import has_control_characters, is_object_key
from keyturn_workers.gateway.read import content_disposition
from keyturn_workers.gateway.request import (
    CONDITIONS,
    Query,
    evaluate_conditions,
    has_conditions,
    if_range_matches,
    object_path,
    own_url,
    parse_links_path,
    parse_object_path,
    parse_project,
    parse_range,
)
from tests.fuzz.harness import Harness, check

_ETAG: Final = '"' + "5" * 64 + '"'
_MODIFIED: Final = datetime(2026, 11, 24, 10, tzinfo=UTC)
_SIZES: Final = (0, 1, 16384, 5 * 2**40)


def run(data: bytes) -> str:
    """Read all of it."""
    target, *lines = data.split(b"\n")
    raw_path, _, query = target.partition(b"?")
    parts = (line.partition(b":") for line in lines)
    raw = [(name.strip().lower(), value.strip(b" \t\r")) for name, _, value in parts]
    headers = Headers(raw=raw)
    found = [_path(raw_path), *_query(query), *_host(headers), *_ranges(headers)]
    if has_conditions(headers):
        found.append(evaluate_conditions(headers, _ETAG, _MODIFIED))
    if not if_range_matches(headers, _ETAG, _MODIFIED):
        found.append("range given up")
    return "+".join(found)


def _path(raw_path: bytes) -> str:
    project, key = parse_object_path(raw_path)
    parse_project(raw_path)
    _, linked = parse_links_path(raw_path + b"/links")
    check(linked == key, "a path of links that names another object")
    if key is None:
        return "no key"
    check(is_object_key(key), "a key that SPEC 1 does not allow")
    if project.isascii() and project.isalnum():
        again = parse_object_path(object_path(project, key).encode())
        check(again == (project, key), "a path that comes back as another")
    return "key"


def _query(raw: bytes) -> list[str]:
    query, found = Query(raw), []
    link = query.link()
    if link is not None:
        check(query.is_link, "a link without a token")
        check(Query(link.query.encode()).link() == link, "a link that comes back as another")
        found.append("link")
    upload = query.upload_link()
    if upload is not None:
        again = Query(upload.query.encode()).upload_link()
        check(again == upload, "an upload link that comes back as another")
        found.append("upload link")
    try:
        name = query.download_name()
    except MalformedRequestError:
        return [*found, "no download name"]
    if name is not None:
        check(not has_control_characters(name) and "/" not in name, "a name that is none")
        disposition = content_disposition("attachment", name)
        check(
            disposition.isascii() and disposition.isprintable(), "a header that HTTP cannot carry"
        )
        found.append("download name")
    return found


def _host(headers: Headers) -> list[str]:
    hosts = headers.getlist("host")
    try:
        url = own_url("http", hosts)
    except MalformedRequestError:
        return []
    check(not set(url.removeprefix("http://")) & set("/?#@\\% "), "a host that is more than one")
    return ["host"]


def _ranges(headers: Headers) -> list[str]:
    found = []
    for value in headers.getlist("range"):
        requested = parse_range(value)
        if requested is None:
            continue
        for size in _SIZES:
            span = requested.span(size)
            if span is not None:
                check(0 <= span.first < span.end <= size, "a span outside the object")
            requested.is_suffix_of_empty(size)
        found.append("range")
    return found[:1]


def _seeds() -> list[bytes]:
    path = b"/v1/projects/acme/objects/reports/q3%20%C3%BC.pdf"
    when = b"Tue, 24 Nov 2026 10:00:00 GMT"
    return [
        path + b"\nrange: bytes=0-99",
        path + b"\nrange: bytes=-1\nif-range: " + _ETAG.encode(),
        path + b"\nrange: bytes=16384-\nif-range: " + when,
        path + b'\nif-match: "a", ' + _ETAG.encode() + b', W/"b"',
        path + b"\nif-none-match: W/" + _ETAG.encode(),
        path + b"\nif-modified-since: " + when + b"\nif-unmodified-since: " + when,
        b"/v1/projects/acme/rotations/2f6c9a0e-5d3b-4c1a-9f5e-0b7d1c8a4e21\nif-none-match: *",
        b"/v1/projects/a%2Fb/objects/%2e%2e/x",
        path
        + b"?expires=1795688400&inline=1&token="
        + b"t" * 43
        + b"\nhost: files.example.com:8080",
        path + b"?expires=1795688400&max_bytes=7&content_type=a%2Fb%3B+c&token=" + b"t" * 43,
        path + b"?token=t&expires=5&utm_source=mail&token=t\nhost: [::1]:8080",
        path + b"?download=q3+%C3%BC.pdf\nhost: 127.0.0.1",
    ]


HARNESS: Final = Harness(
    "http",
    run,
    _seeds,
    (
        *(f"\\n{name}: " for name in CONDITIONS),
        "\\nrange: bytes=",
        "\\nif-range: ",
        "\\nhost: ",
        "&token=",
        "&inline=1",
        "&expires=",
        "&max_bytes=",
        "&content_type=",
        "&download=",
        "?",
        "%2F",
        "%2e",
        "%00",
        "%C3%BC",
        "%ED%A0%80",
        "/objects/",
        "99999999999999999999",
        "W/",
    ),
)
