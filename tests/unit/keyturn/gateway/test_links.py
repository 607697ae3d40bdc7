"""A link has to open the requested object alone, and prints itself nowhere (SPEC 9.3)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from keyturn.errors import MalformedRequestError
from keyturn.gateway import CiphertextLink, Link
from keyturn.gateway.links import (
    ciphertext_link_request,
    link_request,
    parse_ciphertext_link,
    parse_link,
)
from tests.unit.keyturn.gateway.gateway import (
    EXPIRES_AT,
    TOKEN,
    ciphertext_link_document,
    link_document,
)


@pytest.mark.parametrize("key", ["k", "a b/é", "100%25", "q?x=y#z", "v1/projects/other/objects/k"])
@pytest.mark.parametrize("inline", [False, True])
def test_a_link_to_the_object_is_taken(key: str, *, inline: bool) -> None:
    document = link_document(key, inline=inline)
    expected = Link(document["url"], EXPIRES_AT)
    assert parse_link(document, "acme", key, inline=inline) == expected
    assert parse_link(document, "acme", key, inline=not inline) is None
    assert parse_link(document, "other", key, inline=inline) is None
    assert parse_link(document, "acme", f"x{key}", inline=inline) is None


def test_no_link_shows_itself() -> None:
    shown = [
        repr(parse_link(link_document("k"), "acme", "k", inline=False)),
        repr(parse_ciphertext_link(ciphertext_link_document())),
    ]
    assert not [text for text in shown if TOKEN in text or "c2VhbGVk" in text]


_URL = link_document("k")["url"]


@pytest.mark.parametrize(
    "change",
    [
        {"url": None},
        {"url": 7},
        {"url": ""},
        {"url": _URL.removeprefix("https:")},
        {"url": _URL.replace("https:", "javascript:")},
        {"url": _URL.replace("//", "//user@")},
        {"url": _URL + "#fragment"},
        {"url": _URL + "\n"},
        {"url": _URL + "&more=1"},
        {"url": _URL + f"&token={TOKEN}"},
        {"url": _URL[:-1]},
        {"url": _URL[:-1] + "="},
        {"url": _URL.partition("&token")[0]},
        {"url": _URL.partition("?")[0]},
        {"url": _URL.replace("expires=1", "expires=01")},
        {"url": _URL.replace("expires=1", "expires=2")},
        {"expires_at": None},
        {"expires_at": 1795518000},
        {"expires_at": "2026-11-24T11:00:00"},
        {"expires_at": "2026-11-24T11:00:00.5Z"},
        {"expires_at": "2026-11-24T11:00:01Z"},
    ],
)
def test_a_link_of_another_form_is_none(change: dict[str, Any]) -> None:
    assert parse_link({**link_document("k"), **change}, "acme", "k", inline=False) is None


def test_a_link_to_ciphertext_is_taken_with_its_metadata() -> None:
    document = ciphertext_link_document()
    assert parse_ciphertext_link(document) == CiphertextLink(
        document["url"], EXPIRES_AT, document["metadata"]
    )


@pytest.mark.parametrize(
    "change",
    [
        {"url": "/bucket/acme/k"},
        {"expires_at": ""},
        {"metadata": None},
        {"metadata": {}},
        {"metadata": {"enc-algo": "AES-256-GCM"}},
        {"metadata": {"enc-algo": "Cobblestone-256", "enc-dek-user": 7}},
        {"metadata": {"enc-algo": "Cobblestone-256", "author": "kim"}},
    ],
)
def test_a_link_to_ciphertext_without_its_parts_is_none(change: dict[str, Any]) -> None:
    assert parse_ciphertext_link({**ciphertext_link_document(), **change}) is None


def test_a_request_says_how_long_the_link_is_valid() -> None:
    assert json.loads(link_request(604_800, inline=False)) == {
        "expires_s": 604_800,
        "inline": False,
    }
    assert json.loads(ciphertext_link_request(1)) == {"expires_s": 1, "kind": "ciphertext"}
    for expires_s in (0, 604_801):
        with pytest.raises(MalformedRequestError):
            link_request(expires_s, inline=True)
    for expires_s in (0, 901):
        with pytest.raises(MalformedRequestError):
            ciphertext_link_request(expires_s)
