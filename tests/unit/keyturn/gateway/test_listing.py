"""A page of a listing has to fit its request, and to advance (SPEC 9.3)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from keyturn.errors import MalformedRequestError, UnexpectedResponseError
from keyturn.gateway import ListedObject, ListedPrefix
from keyturn.gateway.listing import PageRequest, parse_page
from keyturn.identifiers import byte_order, path_order
from tests.unit.keyturn.gateway.gateway import page_of

ALL = PageRequest("", None, "", 1000)
LEVEL = PageRequest("a/", "/", "a/c", 3)
_AT = datetime(2026, 11, 24, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("request_", "query"),
    [
        (ALL, "limit=1000"),
        (LEVEL, "prefix=a%2F&delimiter=%2F&after=a%2Fc&limit=3"),
        (PageRequest("a b&é+%", None, "", 1), "prefix=a%20b%26%C3%A9%2B%25&limit=1"),
    ],
)
def test_a_request_is_encoded(request_: PageRequest, query: str) -> None:
    assert request_.query == query


@pytest.mark.parametrize(
    "fields",
    [("", "x", "", 1), ("", None, "", 0), ("", None, "", 1001), ("\ud800", None, "", 1)],
)
def test_a_request_that_the_gateway_would_refuse_is_none(fields: Any) -> None:
    with pytest.raises(MalformedRequestError):
        PageRequest(*fields)


def test_a_page_has_its_entries_in_the_order_of_their_bytes() -> None:
    page = parse_page(page_of(["a/c-", "a/é"], ["a/d/"], next_after="a/é"), LEVEL)
    assert page.entries == [
        ListedObject("a/c-", 5, _AT),
        ListedPrefix("a/d/"),
        ListedObject("a/é", 5, _AT),
    ]
    assert page.following == replace(LEVEL, after="a/é", orders=[byte_order, path_order])


def test_a_storage_may_list_by_paths() -> None:
    """Two orders are possible, and one listing has one of them."""
    page = parse_page(page_of(["k/x", "k-b"], next_after="k-b"), ALL)
    assert [entry.key for entry in page.entries if isinstance(entry, ListedObject)] == [
        "k/x",
        "k-b",
    ]
    assert page.following == replace(ALL, after="k-b", orders=[path_order])
    with pytest.raises(UnexpectedResponseError, match="not in order"):
        parse_page(page_of(["k/x"]), page.following)
    by_bytes = parse_page(page_of(["k-b", "k/x"], next_after="k/x"), ALL).following
    assert by_bytes == replace(ALL, after="k/x", orders=[byte_order])
    folders = parse_page(page_of(["a/d-b"], ["a/d/"], next_after="a/d-b"), LEVEL)
    assert folders.following == replace(LEVEL, after="a/d-b", orders=[path_order])


@pytest.mark.parametrize("next_after", [None, "a/c\x00", "a/d", "a/ÿ"])
def test_a_page_may_be_empty_and_still_have_a_next_one(next_after: str | None) -> None:
    page = parse_page(page_of([], next_after=next_after), LEVEL)
    assert page.entries == []
    assert (page.following.after if page.following else None) == next_after


@pytest.mark.parametrize("size", [0, 5, 2**63, None])
def test_a_size_may_be_unknown(size: int | None) -> None:
    document = page_of(["k"])
    document["objects"][0]["size"] = size
    assert parse_page(document, ALL).entries == [ListedObject("k", size, _AT)]


_NO_LISTING: list[dict[str, Any]] = [
    {},
    {"objects": [], "prefixes": []},
    {"objects": {}, "prefixes": [], "next": None},
    {"objects": [], "prefixes": None, "next": None},
]


@pytest.mark.parametrize("document", _NO_LISTING)
def test_another_document_is_no_listing(document: dict[str, Any]) -> None:
    with pytest.raises(UnexpectedResponseError, match="is not a listing"):
        parse_page(document, ALL)


@pytest.mark.parametrize(
    ("keys", "prefixes", "reason"),
    [
        (["b"], [], "was not requested"),  # not under the prefix
        (["a/../b"], [], "was not requested"),  # a file browser may make a path of it
        (["a/d\x1b[2J"], [], "was not requested"),
        (["a/d/"], [], "was not requested"),
        (["a/d/e"], [], "below a prefix"),
        (["a/c"], [], "not in order"),  # at `after` itself
        (["a/b"], [], "not in order"),
        (["a/e", "a/d"], [], "not in order"),
        (["a/d", "a/d"], [], "not in order"),
        (["a/é", "a/z"], [], "not in order"),
        ([], ["a/b/"], "not in order"),
        ([], ["a/d/", "a/d/"], "not in order"),
        ([], ["b/"], "was not requested"),
        ([], ["a/"], "was not requested"),
        ([], ["a/d"], "was not requested"),
        ([], ["a/d/e/"], "was not requested"),
        ([], ["a//"], "was not requested"),
        ([], ["a/../"], "was not requested"),
        (["a/d", "a/e"], ["a/f/", "a/g/"], "more entries"),
    ],
)
def test_a_page_of_something_else_is_not_taken(
    keys: list[str], prefixes: list[str], reason: str
) -> None:
    with pytest.raises(UnexpectedResponseError, match=reason) as raised:
        parse_page(page_of(keys, prefixes), LEVEL)
    assert raised.value.status == 200


def test_prefixes_that_were_not_requested_are_not_taken() -> None:
    with pytest.raises(UnexpectedResponseError, match="was not requested"):
        parse_page(page_of([], ["a/"]), ALL)


@pytest.mark.parametrize(
    "change",
    [
        {"key": 7},
        {"key": None},
        {"size": -1},
        {"size": True},
        {"size": 5.0},
        {"size": "5"},
        {"changed_at": None},
        {"changed_at": 7},
        {"changed_at": "yesterday"},
        {"changed_at": "2026-11-24T10:00:00+01:00"},
        {"changed_at": "2026-13-24T10:00:00Z"},
    ],
)
def test_an_object_without_its_fields_is_none(change: dict[str, Any]) -> None:
    document = page_of(["k"])
    document["objects"][0].update(change)
    with pytest.raises(UnexpectedResponseError):
        parse_page(document, ALL)
    for missing in change:
        del document["objects"][0][missing]
        with pytest.raises(UnexpectedResponseError):
            parse_page(document, ALL)


@pytest.mark.parametrize("entry", [None, "k", 7, ["k"]])
def test_an_entry_that_is_no_object_is_none(entry: object) -> None:
    with pytest.raises(UnexpectedResponseError, match="not an object"):
        parse_page({"objects": [entry], "prefixes": [], "next": None}, ALL)
    with pytest.raises(UnexpectedResponseError, match="was not requested"):
        parse_page({"objects": [], "prefixes": [entry], "next": None}, LEVEL)


@pytest.mark.parametrize(
    "next_after", ["", "a/b", "a/c", "a/d", "b", 7, True, [], "a/d" + "x" * 1024]
)
def test_a_next_page_that_does_not_advance_is_none(next_after: object) -> None:
    """`a/c` was asked for and `a/e` is the last entry: a loop would never end."""
    document = page_of(["a/e"])
    document["next"] = next_after
    with pytest.raises(UnexpectedResponseError, match=r"does not advance|has no valid `next`"):
        parse_page(document, LEVEL)
    if next_after != "a/d":
        with pytest.raises(UnexpectedResponseError, match=r"does not advance|has no valid `next`"):
            parse_page({**page_of([]), "next": next_after}, LEVEL)
