"""What a request says: its path, query, range, conditions, host and JSON body (SPEC 1, 9)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import Headers

from keyturn.errors import BodyTooLargeError, MalformedRequestError
from keyturn.identifiers import check_object_key, is_object_key, is_project
from keyturn_workers.gateway.request import (
    ByteRange,
    Link,
    Outcome,
    Query,
    Span,
    allow_change,
    evaluate_conditions,
    format_http_date,
    has_conditions,
    if_range_matches,
    object_path,
    own_url,
    parse_links_path,
    parse_object_path,
    parse_project,
    parse_range,
    read_json_body,
)
from keyturn_workers.process.http_server.client_connection import ClientGoneError

if TYPE_CHECKING:
    from starlette.types import Message, Receive

# --- Which project and key a path names: byte for byte, and no other (SPEC 1, 9.1)


_SEGMENT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"))
KEYS = st.lists(_SEGMENT.filter(lambda s: s not in ("", ".", "..")), min_size=1, max_size=5).map(
    "/".join
)
PROJECTS = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)


@pytest.mark.slow
@given(PROJECTS, KEYS.filter(is_object_key))
def test_every_built_path_parses_to_its_object(project: str, key: str) -> None:
    path = object_path(project, key)
    assert path.isascii()
    assert parse_object_path(path.encode()) == (project, key)
    assert parse_project(path.encode()) == project


@pytest.mark.slow
@given(PROJECTS, KEYS.filter(is_object_key))
def test_the_path_of_an_objects_links_is_its_own_and_one_segment(project: str, key: str) -> None:
    path = object_path(project, key).encode()
    for suffix in (b"/links", b"%2Flinks", b"/%6cinks"):
        assert parse_links_path(path + suffix) == (project, key)
    assert parse_links_path(path + b"/links/links") == (project, f"{key}/links")


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"a",
        b"a/link",
        b"links",
        b"/links",
        b"a//links",
        b"./links",
        b"a/links/",
        b"%ff/links",
        b"k" * 901 + b"/links",
    ],
)
def test_what_is_no_path_of_links_has_no_key(path: bytes) -> None:
    assert parse_links_path(b"/v1/projects/acme/objects/" + path) == ("acme", None)


@pytest.mark.slow
@given(PROJECTS, KEYS.filter(is_object_key))
def test_a_key_may_be_fully_or_minimally_escaped(project: str, key: str) -> None:
    escaped = "".join(f"%{byte:02x}" for byte in key.encode())
    assert parse_object_path(f"/v1/projects/{project}/objects/{escaped}".encode()) == (project, key)
    literal = key.replace("%", "%25").encode()
    assert parse_object_path(f"/v1/projects/{project}/objects/".encode() + literal) == (
        project,
        key,
    )


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_no_bytes_parse_to_an_invalid_key(project: bytes, key: bytes) -> None:
    name, found = parse_object_path(b"/v1/projects/" + project + b"/objects/" + key)
    if found is not None:
        assert check_object_key(found) == found
    if is_project(name):
        assert "/" not in name


@given(st.binary(max_size=80))
def test_any_path_parses_without_an_error(raw: bytes) -> None:
    _, key = parse_object_path(raw)
    assert key is None or is_object_key(key)
    parse_project(raw)
    _, linked = parse_links_path(raw)
    assert linked is None or is_object_key(linked)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a", "a"),
        ("a%2Fb", "a/b"),
        ("a/b", "a/b"),
        ("a+b", "a+b"),  # no form: a plus is a plus
        ("a%20b", "a b"),
        ("100%25", "100%"),
        ("100%2525", "100%25"),  # decoded once
        ("%2e%2e%2e", "..."),
        ("a%", "a%"),  # what is no escape stays
        ("%zz", "%zz"),
        ("objects/x", "objects/x"),
        ("x/objects/y", "x/objects/y"),
        ("%F0%9F%97%9D", "🗝"),
        ("e%CC%81", "e\u0301"),  # nothing is normalized
        ("a?b", "a?b"),  # a raw path has no query
        ("k" * 900, "k" * 900),
        # None of SPEC 1's keys.
        ("", None),
        ("/", None),
        ("a/", None),
        ("/a", None),
        ("a//b", None),
        ("a/./b", None),
        ("a/../b", None),
        ("..", None),
        ("%2e%2e/secret", None),
        ("..%2fother", None),
        ("a%2F%2Fb", None),
        ("%2F", None),
        ("%00", None),
        ("a%0Ab", None),
        ("a%7F", None),
        ("%C2%85", None),
        ("%ff", None),  # no UTF-8: never a replacement character's key
        ("%C0%AF", None),  # an overlong slash
        ("%ED%A0%80", None),  # a lone surrogate
        ("k" * 901, None),
    ],
)
def test_keys(path: str, key: str | None) -> None:
    assert parse_object_path(f"/v1/projects/acme/objects/{path}".encode()) == ("acme", key)


@pytest.mark.parametrize(
    ("path", "project"),
    [
        ("acme/objects/a", "acme"),
        ("%61cme/objects/a", "acme"),
        ("acme%2Fobjects%2Fa", "acme/objects/a"),
        ("acme%2F..%2Fother/objects/a", "acme/../other"),
        (".keyturn/objects/keyrings", ".keyturn"),
        ("ACME/objects/a", "ACME"),
        ("%ff/objects/a", ""),
        ("/objects/a", ""),
        ("..%2F..%2F/objects/a", "../../"),
    ],
)
def test_a_project_is_returned_as_sent(path: str, project: str) -> None:
    """No encoded slash moves a request to another project, nor to Keyturn's own records."""
    found, _ = parse_object_path(f"/v1/projects/{path}".encode())
    assert found == project
    assert is_project(found) == (project == "acme")


def test_another_spelling_of_the_prefix_names_no_project() -> None:
    for path in ("/v1/projects%2Facme/objects/a", "/v1/Projects/acme/objects/a", "//v1/projects/"):
        assert not is_project(parse_object_path(path.encode())[0])
        assert not is_project(parse_project(path.encode()))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_the_project_of_a_rotation_is_parsed_like_an_objects(project: str) -> None:
    raw = f"/v1/projects/{quote(project, safe='')}".encode()
    assert parse_project(raw + b"/rotations") == project
    assert parse_object_path(raw + b"/objects/a")[0] == project


# --- The query of an object's URL: links and names of downloads (SPEC 9.3)


TOKEN = "t" * 43


@pytest.mark.parametrize("inline", [False, True])
def test_a_link_is_read_as_it_was_written(inline: bool) -> None:
    link = Link(1764151200, inline, TOKEN)
    query = link.query
    assert query == f"expires=1764151200{'&inline=1' * inline}&token={TOKEN}"
    assert Query(query.encode()).link() == link
    assert TOKEN not in repr(link)


@pytest.mark.parametrize(
    "query",
    [
        f"token={TOKEN}&expires=5",
        f"expires=5&token={TOKEN}&download=x&download=y&utm_source=mail&utm_source=mail",
        f"%65xpires=%35&tok%65n={TOKEN}",
        f"&&expires=5&&token={TOKEN}&",
        f"expires=5&token={TOKEN}&=&inlin=1&INLINE=1&Token=x&%ff=%ff",
    ],
)
def test_order_encoding_and_other_parameters_have_no_meaning(query: str) -> None:
    assert Query(query.encode()).link() == Link(5, inline=False, token=TOKEN)


@pytest.mark.parametrize(
    "query",
    [
        f"token={TOKEN}",
        f"expires=5&expires=5&token={TOKEN}",
        f"expires=5&token={TOKEN}&token={TOKEN}",
        f"expires=5&inline=1&inline=1&token={TOKEN}",
        f"expires=5&inline=1&inline&token={TOKEN}",
        *(
            f"expires={quote(expires)}&token={TOKEN}"
            for expires in (
                "", "0", "05", "+5", "-5", " 5", "5 ", "5.0", "5e3", "0x5", "\u0665", "5" * 16
            )
        ),
        f"expires=+5&token={TOKEN}",
        f"expires=5;token={TOKEN}&token=x&token=y",
        *(
            f"expires=5&inline={inline}&token={TOKEN}"
            for inline in ("", "0", "true", "01", "+1", "2", "%31%20")
        ),
        *(
            f"expires=5&token={token}"
            for token in ("t" * 42, "t" * 44, "t" * 42 + "%3D", "t" * 42 + "+", "t" * 42 + "%FF")
        ),
        "token",
        "token=",
        "%74oken",
    ],
)  # fmt: skip
def test_a_malformed_link_is_a_link_to_nothing(query: str) -> None:
    """It must not become a request by API key: the query says `token`."""
    parsed = Query(query.encode())
    assert parsed.is_link
    assert parsed.link() is None


@pytest.mark.parametrize("query", ["", "&", "expires=5", "inline=1", "Token=x", "tokens=x", "a"])
def test_a_query_without_a_token_is_no_link(query: str) -> None:
    parsed = Query(query.encode())
    assert not parsed.is_link
    assert parsed.link() is None


@given(st.binary(max_size=60))
def test_any_bytes_are_a_query(raw: bytes) -> None:
    query = Query(raw)
    assert query.link() is None or query.is_link
    try:
        name = query.download_name()
    except MalformedRequestError:
        return
    assert name is None or not {"/", "\\", "\0", "\n"} & set(name)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("", None),
        ("downloads=x", None),
        ("download=report.pdf", "report.pdf"),
        ("x=1&download=q3+report.pdf", "q3 report.pdf"),
        ("download=%C3%BC%20%22;.pdf", 'ü ";.pdf'),
        (f"download={'n' * 255}", "n" * 255),
        (f"download={quote('ü' * 127)}", "ü" * 127),
        ("download=..", ".."),
    ],
)
def test_a_downloads_name(query: str, name: str | None) -> None:
    assert Query(query.encode()).download_name() == name


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("download", "1 to 255 bytes"),
        ("download=", "1 to 255 bytes"),
        (f"download={'n' * 256}", "1 to 255 bytes"),
        (f"download={quote('ü' * 128)}", "1 to 255 bytes"),
        ("download=a%0D%0Ab", "control character"),
        ("download=a%C2%85b", "control character"),
        ("download=a%00", "control character"),
        ("download=%7F", "control character"),
        ("download=a/b", "control characters, /"),
        ("download=a%2Fb", "control characters, /"),
        ("download=a%5Cb", "control characters, /"),
        ("download=%FF", "not UTF-8"),
        ("download=%ED%A0%80", "not UTF-8"),
        ("download=a&download=a", "repeated"),
    ],
)
def test_what_is_no_name_of_a_download(query: str, why: str) -> None:
    with pytest.raises(MalformedRequestError, match=why):
        Query(query.encode()).download_name()


# --- Which bytes a Range asks for: RFC 9110, section 14, one range (SPEC 9.2)


SIZES = st.integers(0, 10**6) | st.sampled_from([0, 1, 16384, 2**40])


@given(st.integers(0, 2**41), st.integers(0, 2**41), SIZES)
def test_a_span_is_what_slicing_returns(first: int, more: int, size: int) -> None:
    for spec, expected in (
        (f"bytes={first}-{first + more}", slice(first, first + more + 1)),
        (f"bytes={first}-", slice(first, None)),
        (f"bytes=-{first}", slice(-first, None) if first else slice(0, 0)),
    ):
        parsed = parse_range(spec)
        assert parsed is not None
        start, end, _ = expected.indices(size)
        assert parsed.span(size) == (Span(start, end) if start < end else None)


@given(SIZES, st.text("0123456789-", max_size=50).map("bytes={}".format))
def test_a_span_always_lies_within_the_object(size: int, spec: str) -> None:
    parsed = parse_range(spec)
    span = None if parsed is None else parsed.span(size)
    if span is not None:
        assert 0 <= span.first < span.end <= size
        assert span.length == span.end - span.first


@given(st.text(max_size=40) | st.text("bytes=-, 0123456789\t", max_size=40))
def test_any_text_parses_without_an_error(spec: str) -> None:
    parse_range(spec)


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("bytes=0-0", ByteRange(0, 0)),
        ("bytes=0-", ByteRange(0, None)),
        ("bytes=-5", ByteRange(None, 5)),
        ("bytes=-0", ByteRange(None, 0)),
        ("bytes=5-4", None),
        ("bytes=007-09", ByteRange(7, 9)),
        ("Bytes=1-2", ByteRange(1, 2)),  # a range unit's name has no case
        (" bytes=1-2\t", ByteRange(1, 2)),
        ("bytes= 1-2 ", ByteRange(1, 2)),
        # Ignored: the whole object is the answer.
        ("bytes=0-1,3-4", None),
        ("bytes=0-1,", None),
        ("bytes=-", None),
        ("bytes=", None),
        ("bytes", None),
        ("", None),
        ("items=0-1", None),
        ("bytes=1 - 2", None),
        ("bytes =1-2", None),
        ("bytes=+1-2", None),
        ("bytes=1--2", None),
        ("bytes=--1", None),
        ("bytes=0x1-2", None),
        ("bytes=1.0-2", None),
        ("bytes=1-2\n", None),
        ("bytes=١-٢", None),  # digits, and not ASCII's  # noqa: RUF001
        ("bytes=²-3", None),
        ("bytes=" + "9" * 40 + "-", ByteRange(int("9" * 40), None)),
        ("bytes=" + "9" * 41 + "-", None),
        ("bytes=" + "9" * 5000 + "-", None),
    ],
)
def test_forms(spec: str, parsed: ByteRange | None) -> None:
    assert parse_range(spec) == parsed


@pytest.mark.parametrize(
    ("spec", "size", "span"),
    [
        ("bytes=0-99", 10, Span(0, 10)),
        ("bytes=9-9", 10, Span(9, 10)),
        ("bytes=10-10", 10, None),
        ("bytes=10-", 10, None),
        ("bytes=-10", 10, Span(0, 10)),
        ("bytes=-11", 10, Span(0, 10)),
        ("bytes=-1", 10, Span(9, 10)),
        ("bytes=-0", 10, None),
        ("bytes=0-", 0, None),
        ("bytes=0-0", 0, None),
        ("bytes=-1", 0, None),
    ],
)
def test_borders(spec: str, size: int, span: Span | None) -> None:
    parsed = parse_range(spec)
    assert parsed is not None
    assert parsed.span(size) == span


def test_a_suffix_of_an_empty_object_is_the_whole_object() -> None:
    """RFC 9110, 14.1.2: a suffix longer than the representation is satisfied by all of it."""
    suffix, nothing, start = (parse_range(f"bytes={spec}") for spec in ("-5", "-0", "0-"))
    assert suffix is not None
    assert nothing is not None
    assert start is not None
    assert suffix.is_suffix_of_empty(0)
    assert not suffix.is_suffix_of_empty(1)
    assert not nothing.is_suffix_of_empty(0)
    assert not start.is_suffix_of_empty(0)


# --- Conditional requests: RFC 9110, section 13 (SPEC 9.2)


ETAG = '"abc"'
MODIFIED = datetime(2026, 11, 24, 10, 0, 0, 700_000, tzinfo=UTC)
AT = "Tue, 24 Nov 2026 10:00:00 GMT"
BEFORE = "Tue, 24 Nov 2026 09:59:59 GMT"
AFTER = "Tue, 24 Nov 2026 10:00:01 GMT"


def _headers(*pairs: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.encode(), value.encode("latin-1")) for name, value in pairs])


def _verdict(*pairs: tuple[str, str]) -> Outcome:
    return evaluate_conditions(_headers(*pairs), ETAG, MODIFIED)


@pytest.mark.parametrize(
    ("value", "strong", "weak"),
    [
        ('"abc"', True, True),
        (' "abc"\t', True, True),
        ("*", True, True),
        (" * ", True, True),
        ('W/"abc"', False, True),
        ('"x", "abc"', True, True),
        ('"x","abc","y"', True, True),
        ('"x" , W/"abc"', False, True),
        (', ,"abc",', True, True),
        ('"x"', False, False),
        ('"ABC"', False, False),
        ("abc", False, False),
        ('"abc', False, False),
        ('abc"', False, False),
        ('"a,b"', False, False),
        ('"x,"abc', False, False),
        ("", False, False),
        ('""', False, False),
        ('"*"', False, False),
        ('"abc" "x"', True, True),  # no list, but it says which one
    ],
)
def test_tags_are_compared_strongly_for_if_match_and_weakly_for_if_none_match(
    value: str, *, strong: bool, weak: bool
) -> None:
    assert _verdict(("if-match", value)) == ("serve" if strong else "failed")
    assert _verdict(("if-none-match", value)) == ("not_modified" if weak else "serve")


def test_a_list_may_span_several_header_lines() -> None:
    assert _verdict(("if-match", '"x"'), ("if-match", ETAG)) == "serve"
    assert _verdict(("if-none-match", '"x"'), ("if-none-match", ETAG)) == "not_modified"


@pytest.mark.parametrize(
    ("date", "unmodified_since", "modified_since"),
    [
        (AT, "serve", "not_modified"),  # times of HTTP have no parts of a second
        (AFTER, "serve", "not_modified"),
        (BEFORE, "failed", "serve"),
        # The two obsolete forms that RFC 9110, 5.6.7 has every recipient take.
        ("Tuesday, 24-Nov-26 10:00:00 GMT", "serve", "not_modified"),
        ("Tue Nov 24 10:00:00 2026", "serve", "not_modified"),
        ("Tuesday, 24-Nov-26 09:59:59 GMT", "failed", "serve"),
        ("Tue Nov 24 09:59:59 2026", "failed", "serve"),
        # No times: ignored.
        ("yesterday", "serve", "serve"),
        ("", "serve", "serve"),
        ("2026-11-24T10:00:00Z", "serve", "serve"),
        ("Tue, 24 Nov 99999999999999999999 10:00:00 GMT", "serve", "serve"),
        ("Tue, 24 Nov 2026 10:00:00 +99999999999999999", "serve", "serve"),
        ("Tue, 24 Nov 2026 25:00:00 GMT", "serve", "serve"),
    ],
)
def test_times(date: str, unmodified_since: Outcome, modified_since: Outcome) -> None:
    assert _verdict(("if-unmodified-since", date)) == unmodified_since
    assert _verdict(("if-modified-since", date)) == modified_since


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        # 13.2.2: a tag is worth more than a time, and what fails comes before what holds.
        ([("if-match", ETAG), ("if-unmodified-since", BEFORE)], "serve"),
        ([("if-match", '"x"'), ("if-unmodified-since", AFTER)], "failed"),
        ([("if-none-match", '"x"'), ("if-modified-since", AFTER)], "serve"),
        ([("if-none-match", ETAG), ("if-modified-since", BEFORE)], "not_modified"),
        ([("if-match", '"x"'), ("if-none-match", ETAG)], "failed"),
        ([("if-match", ETAG), ("if-none-match", ETAG)], "not_modified"),
        ([("if-match", ETAG), ("if-modified-since", AT)], "not_modified"),
        ([("if-unmodified-since", BEFORE), ("if-none-match", ETAG)], "failed"),
        ([("if-unmodified-since", AT), ("if-modified-since", AT)], "not_modified"),
        ([("if-none-match", "*")], "not_modified"),
        ([], "serve"),
    ],
)
def test_precedence(pairs: list[tuple[str, str]], expected: Outcome) -> None:
    assert _verdict(*pairs) == expected
    assert has_conditions(_headers(*pairs)) == bool(pairs)


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        (ETAG, True),
        (f" {ETAG} ", True),
        ('W/"abc"', False),  # 13.1.5: strong comparison alone
        ('"x"', False),
        ('"x", "abc"', False),  # one tag, no list
        ("*", False),
        (AT, True),
        (BEFORE, False),
        (AFTER, False),  # a time must be the very one
        ("no time", False),
        ("", False),
        ("Tue, 24 Nov 99999999999999999999 10:00:00 GMT", False),
    ],
)
def test_if_range(value: str, *, holds: bool) -> None:
    long_ago = MODIFIED - timedelta(days=365)
    date = value.replace("Tue, 24 Nov 2026", f"{long_ago:%a, %d %b %Y}")
    assert if_range_matches(_headers(("if-range", date)), ETAG, long_ago) is holds
    assert if_range_matches(_headers(), ETAG, long_ago)
    assert not has_conditions(_headers(("if-range", value)))


def test_a_time_is_not_a_strong_validator_of_a_new_object() -> None:
    """Written twice within a second, two bodies share their time (RFC 9110, 8.8.2.2)."""
    now = datetime.now(UTC)
    assert not if_range_matches(_headers(("if-range", format_http_date(now))), ETAG, now)
    assert if_range_matches(_headers(("if-range", ETAG)), ETAG, now)


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_formatted_time_parses_to_itself(instant: datetime) -> None:
    date = format_http_date(instant)
    assert (
        evaluate_conditions(_headers(("if-modified-since", date)), ETAG, instant) == "not_modified"
    )
    assert evaluate_conditions(_headers(("if-unmodified-since", date)), ETAG, instant) == "serve"


def test_a_time_is_formatted_in_gmt_to_the_second() -> None:
    assert format_http_date(MODIFIED) == AT


_ASCII = st.text(st.characters(max_codepoint=255), max_size=40)


@given(
    st.sampled_from(["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"]),
    _ASCII | st.text(',:" 0123456789+-TueNovGMTW/*', max_size=40),
)
def test_any_header_value_has_an_outcome(name: str, value: str) -> None:
    headers = _headers((name, value))
    assert evaluate_conditions(headers, ETAG, MODIFIED) in ("serve", "not_modified", "failed")
    if_range_matches(_headers(("if-range", value)), ETAG, MODIFIED)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("if-match", ETAG, True),
        ("if-match", "*", True),
        ("if-match", '"x"', False),
        ("if-match", f"W/{ETAG}", False),
        ("if-unmodified-since", AT, True),
        ("if-unmodified-since", BEFORE, False),
        ("if-none-match", ETAG, False),
        ("if-none-match", "*", False),
        ("if-none-match", '"x"', True),
        ("if-modified-since", AFTER, True),  # it has a meaning for GET and HEAD alone
    ],
)
def test_a_change_has_its_conditions(name: str, value: str, *, allowed: bool) -> None:
    assert allow_change(_headers((name, value)), ETAG, MODIFIED) is allowed


def test_without_an_etag_nothing_is_as_expected() -> None:
    for name, value in (("if-match", "*"), ("if-match", ETAG), ("if-unmodified-since", AFTER)):
        assert not allow_change(_headers((name, value)), None, None)
    assert allow_change(_headers(("if-none-match", "*")), None, None)
    assert allow_change(_headers(), None, None)


# --- The address that a client used, by its `Host` header alone


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


# --- JSON bodies: limited in size and time, and never repeated in an error


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = "default"


def _receive(*pieces: bytes | None) -> Receive:
    left = list(pieces)

    async def receive() -> Message:
        piece = left.pop(0)
        if piece is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    return receive


async def _read(*pieces: bytes | None) -> Any:
    return await read_json_body(_receive(*pieces), _Body, 40, 0.02)


async def test_a_body_in_pieces() -> None:
    assert (await _read(b'{"name": ', b'"given"', b"}")).name == "given"


async def test_no_body_is_an_object_without_fields() -> None:
    assert (await _read(b"")).name == "default"


@pytest.mark.parametrize(
    "body",
    [b" ", b"[]", b"null", b"{", b"\xff", b'{"name": 7}', b'{"names": "secret"}',
     b'{"name": "secret", "name": "secret"}'],
)  # fmt: skip
async def test_what_is_no_such_document_is_refused_without_its_values(body: bytes) -> None:
    with pytest.raises(MalformedRequestError) as refused:
        await _read(body)
    assert "secret" not in str(refused.value.detail)
    assert refused.value.__cause__ is None


async def test_the_size_is_limited() -> None:
    assert (await _read(b'{"name": "' + b"n" * 28 + b'"}')).name == "n" * 28
    with pytest.raises(BodyTooLargeError, match="at most 40 bytes"):
        await _read(b'{"name": "' + b"n" * 29, b'"}')


async def test_the_time_is_limited() -> None:
    with pytest.raises(ClientGoneError, match="too slowly"):
        await _read(b"{", None)
