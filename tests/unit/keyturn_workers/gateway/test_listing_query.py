"""The parameters of a list request, and the sizes of a listing (SPEC 4, 9.3)."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

import pytest

from keyturn.crypto import new_dek
from keyturn.errors import MalformedRequestError
from keyturn_workers.gateway.listing import (
    ListingQuery,
    encrypted_size,
    is_tombstone,
    needs_head,
    size_by_metadata,
)
from keyturn_workers.objects.wraps import wrap
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    deleted,
    enc,
    keyring,
    sealed_object,
    v0_metadata,
    v0_ring,
)
from tools.harness.local_keys import desired_state

RING = keyring()
DESIRED = desired_state(RING, MASTER_KEYS)
V0 = v0_ring(RING)
PLAINTEXT = replace(RING, plaintext_allowed=True)


@pytest.mark.parametrize(
    ("query", "parsed"),
    [
        (b"", ListingQuery()),
        (b"prefix=&delimiter=&after=", ListingQuery()),
        (b"prefix=a%2Fb+c%2B%25&delimiter=/&after=a/%01&limit=1", None),
        (b"limit=1000", ListingQuery(limit=1000)),
        (b"prefix=" + b"%C3%BC" * 450, ListingQuery("ü" * 450)),
        (b"after=" + b"%C3%BC" * 512, ListingQuery(after="ü" * 512)),
    ],
)
def test_a_query_is_parsed(query: bytes, parsed: ListingQuery | None) -> None:
    expected = parsed or ListingQuery("a/b c+%", "/", "a/\x01", 1)
    assert ListingQuery.parse(query) == expected


@pytest.mark.parametrize(
    "query",
    [
        b"limit=0",
        b"limit=1001",
        b"limit=01",
        b"limit=-1",
        b"limit=",
        b"limit=1.0",
        "limit=\u0661".encode(),
        b"limit=%D9%A1",
        b"delimiter=%2F%2F",
        b"delimiter=a",
        b"prefix=a&prefix=a",
        b"after=a&after=b",
        b"other=1",
        b"Prefix=a",
        b"=",
        b"prefix=%FF",
        b"prefix=%ED%A0%80",
        b"after=%C3",
        b"prefix=\xc3\xbc",
        b"prefix=%00",
        b"prefix=a%0Ab",
        b"prefix=%C2%85",
        b"prefix=" + b"a" * 901,
        b"after=" + b"%C3%BC" * 512 + b"a",
        b"&".join(b"a%d=" % number for number in range(17)),
    ],
)
def test_a_malformed_query_is_refused(query: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        ListingQuery.parse(query)


@pytest.mark.parametrize(
    ("prefix", "is_empty"),
    [
        ("", False),
        ("a", False),
        ("a/", False),
        ("..a", False),
        ("a/..", False),
        (".", False),
        ("/", True),
        ("../other/", True),
        ("a//", True),
        ("a/./b", True),
        ("a/../b", True),
    ],
)
def test_a_prefix_that_no_key_has(prefix: str, *, is_empty: bool) -> None:
    query = ListingQuery.parse(f"prefix={quote(prefix, safe='')}".encode())
    assert query.is_empty is is_empty


def test_only_an_object_without_bytes_is_looked_at_unless_the_project_allows_others() -> None:
    assert [needs_head(RING, size) for size in (0, 1, 72)] == [True, False, False]
    for ring in (V0, PLAINTEXT):
        assert [needs_head(ring, size) for size in (0, 1, 72)] == [True, True, True]


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 100_000])
def test_the_size_of_an_encrypted_object(size: int) -> None:
    wraps, body = sealed_object(DESIRED, "k", bytes(size))
    assert encrypted_size(len(body)) == size
    for ring in (RING, V0, PLAINTEXT):
        assert size_by_metadata(ring, enc(wraps), len(body)) == size


@pytest.mark.parametrize("stored_bytes", [0, 1, 71, 56 + 16400 + 15])
def test_no_encrypted_object_has_this_size(stored_bytes: int) -> None:
    assert encrypted_size(stored_bytes) is None
    metadata = enc(sealed_object(DESIRED, "k")[0])
    assert size_by_metadata(V0, metadata, stored_bytes) is None


def test_the_size_of_other_objects() -> None:
    dek = new_dek()
    v0, swept = v0_metadata(dek, dek), enc(wrap(DESIRED, "k", dek, algorithm="AES-256-GCM"))
    assert size_by_metadata(V0, v0, 128) == 100
    assert size_by_metadata(PLAINTEXT, v0, 128) is None
    for ring in (V0, PLAINTEXT):
        assert size_by_metadata(ring, swept, 128) == 100
        assert size_by_metadata(ring, swept, 27) is None
    assert size_by_metadata(PLAINTEXT, {"author": "kim"}, 5) == 5
    assert size_by_metadata(V0, {}, 5) is None


@pytest.mark.parametrize(
    "metadata",
    [{"enc-algo": "ROT-13"}, {"enc-dek-user": "x"}, {"enc-algo": "Cobblestone-256"}],
)
def test_what_no_read_would_open_has_no_size(metadata: dict[str, str]) -> None:
    assert size_by_metadata(replace(V0, plaintext_allowed=True), metadata, 128) is None


def test_a_tombstone_is_one_by_its_algorithm_alone() -> None:
    assert is_tombstone(deleted(DESIRED, "k"))
    assert is_tombstone({"enc-algo": "deleted"})
    assert not is_tombstone({})
    assert not is_tombstone(enc(sealed_object(DESIRED, "k")[0]))
