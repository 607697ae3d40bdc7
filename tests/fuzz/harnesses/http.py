"""What a client of the gateway sends: a path, a range, conditions (SPEC 9).

The input is the path, then a line for each header: `name: value`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from starlette.datastructures import Headers

from keyturn.identifiers import is_object_key
from keyturn_workers.gateway.conditions import (
    CONDITIONS,
    evaluate,
    has_conditions,
    if_range_matches,
)
from keyturn_workers.gateway.paths import object_path, parse_object_path, parse_project
from keyturn_workers.gateway.ranges import parse_range
from tests.fuzz.harness import Harness, check

_ETAG: Final = '"' + "5" * 64 + '"'
_MODIFIED: Final = datetime(2026, 11, 24, 10, tzinfo=UTC)
_SIZES: Final = (0, 1, 16384, 5 * 2**40)


def run(data: bytes) -> str:
    """Read all of it."""
    raw_path, *lines = data.split(b"\n")
    parts = (line.partition(b":") for line in lines)
    raw = [(name.strip().lower(), value.strip(b" \t\r")) for name, _, value in parts]
    headers = Headers(raw=raw)
    found = [_path(raw_path), *_ranges(headers)]
    if has_conditions(headers):
        found.append(evaluate(headers, _ETAG, _MODIFIED))
    if not if_range_matches(headers, _ETAG, _MODIFIED):
        found.append("range given up")
    return "+".join(found)


def _path(raw_path: bytes) -> str:
    project, key = parse_object_path(raw_path)
    parse_project(raw_path)
    if key is None:
        return "no key"
    check(is_object_key(key), "a key that SPEC 1 does not allow")
    if project.isascii() and project.isalnum():
        again = parse_object_path(object_path(project, key).encode())
        check(again == (project, key), "a path that comes back as another")
    return "key"


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
    ]


HARNESS: Final = Harness(
    "http",
    run,
    _seeds,
    (
        *(f"\\n{name}: " for name in CONDITIONS),
        "\\nrange: bytes=",
        "\\nif-range: ",
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
