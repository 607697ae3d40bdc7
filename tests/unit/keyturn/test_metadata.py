"""An object's `enc-` metadata: its upload's tag, when it was stored, other names (SPEC 4.3)."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn import metadata
from keyturn.crypto import upload_tag
from keyturn.errors import CorruptObjectError, MalformedRequestError, UnknownAlgorithmError
from keyturn.metadata import Wraps

WRAPS: Final = Wraps("Cobblestone-256", b"u" * 104, b"a" * 104, 3, "0" * 16, "m1")
DEK: Final = bytes(range(32))
LAST_MODIFIED: Final = datetime(2026, 11, 24, 10, tzinfo=UTC)
UPLOAD_ID: Final = "2f6c9a0e-1111-4111-8111-111111111111"
UPLOAD: Final = {
    "publisher": "api",
    "project": "acme",
    "object_key": "reports/q3.pdf",
    "upload_id": UPLOAD_ID,
    "size_bytes": 5,
}


def test_the_tag_is_that_of_the_specification() -> None:
    message = f"keyturn/v1/upload\0api\0acme\0reports/q3.pdf\0{UPLOAD_ID}\0{5}".encode()
    expected = hmac.new(DEK, message, hashlib.sha256).digest()[:16]
    assert upload_tag(DEK, **UPLOAD) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [
        {"publisher": "web"},
        {"project": "bob"},
        {"object_key": "reports/q4.pdf"},
        {"upload_id": UPLOAD_ID.replace("1", "2")},
        {"size_bytes": 50},
    ],
)
def test_the_tag_is_another_for_every_other_upload(other: dict[str, object]) -> None:
    tags = {upload_tag(DEK, **UPLOAD), upload_tag(DEK, **{**UPLOAD, **other})}  # type: ignore[arg-type]
    assert len(tags) == 2
    assert upload_tag(bytes(32), **UPLOAD) not in tags  # type: ignore[arg-type]


def test_a_tag_comes_back_as_it_was_written() -> None:
    tag = upload_tag(DEK, **UPLOAD)  # type: ignore[arg-type]
    built = metadata.build(WRAPS, upload_id=UPLOAD_ID, tag=metadata.format_upload_tag(tag))
    assert metadata.upload_tag(built) == tag
    assert metadata.parse(built) == WRAPS
    assert metadata.upload_tag(metadata.build(WRAPS, upload_id=UPLOAD_ID)) is None


@pytest.mark.parametrize("value", ["", "AAAA", "A" * 22, "é", "A" * 22 + "=", "A" * 21 + "B=="])
def test_a_value_that_is_no_tag_equals_none(value: str) -> None:
    assert metadata.upload_tag({"enc-upload-tag": value}) == b""


def test_plaintext_carries_no_tag() -> None:
    """Of `enc-` names a plaintext object has `enc-upload` alone: one with a tag was stripped."""
    with pytest.raises(CorruptObjectError):
        metadata.parse({"enc-upload": UPLOAD_ID, "enc-upload-tag": "A" * 24})


def test_names_that_the_specification_does_not_list_are_unknown() -> None:
    tag = metadata.format_upload_tag(bytes(16))
    built = metadata.build(WRAPS, upload_id=UPLOAD_ID, tag=tag, stored_at=LAST_MODIFIED)
    assert metadata.unknown_names({**built, "author": "kim", "encoding": "x"}) == []
    added = {"enc-dek-user-1": "x", "enc-": "", "enc-algo2": ""}
    assert metadata.unknown_names({**built, **added}) == sorted(added)
    parsed = metadata.parse({**built, **added})
    assert parsed == replace(WRAPS, unknown_names=tuple(sorted(added)))


def test_a_name_whose_value_it_cannot_have_is_unknown() -> None:
    """A wrap of an earlier KEK would be hidden there from every rewrap."""
    built = metadata.build(WRAPS, upload_id=UPLOAD_ID)
    for name in ("enc-upload", "enc-upload-tag", "enc-stored-at"):
        for value in (built["enc-dek-user"], "", "x"):
            assert metadata.unknown_names({**built, name: value}) == [name]


def test_a_tombstone_has_two_names() -> None:
    bare = {
        "enc-algo": "deleted",
        "enc-dek-admin": metadata.build(WRAPS, upload_id=None)["enc-dek-admin"],
    }
    assert metadata.unknown_names({**bare, "author": "kim"}) == []
    for name in ("enc-dek-user", "enc-kek-user", "enc-upload", "enc-x"):
        parsed = metadata.parse({**bare, name: UPLOAD_ID})
        assert parsed == metadata.Tombstone(WRAPS.admin, (name,))


def test_the_time_of_storing_is_written_again() -> None:
    built = metadata.build(WRAPS, upload_id=None, stored_at=LAST_MODIFIED)
    assert built["enc-stored-at"] == "2026-11-24T10:00:00.000000Z"
    assert metadata.stored_at(built, LAST_MODIFIED) == LAST_MODIFIED
    assert metadata.stored_at({"enc-stored-at": "2026-11-24T10:00:00Z"}, LAST_MODIFIED)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "yesterday",
        "2026-11-24",
        "2026-11-24T10:00:00+00:00",
        "2026-11-31T10:00:00Z",
        "2026-11-24T10:00:00Z ",
        "2026-11-24T10:00:01Z",  # later than the storage's own
    ],
)
def test_a_time_of_storing_that_cannot_be_is_ignored(value: str) -> None:
    assert metadata.stored_at({"enc-stored-at": value}, LAST_MODIFIED) is None
    assert metadata.stored_at({}, LAST_MODIFIED) is None


_values = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=60)
_caller = st.dictionaries(
    st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True).filter(lambda n: not n.startswith("enc-")),
    _values | st.sampled_from(["=?utf-8?q?no?=", " a", "a ", "=?", "", "Grüße", "a  b"]),
    max_size=4,
)


@pytest.mark.slow
@given(_caller)
def test_callers_metadata_comes_back_from_the_wire_as_it_was(caller: dict[str, str]) -> None:
    wire = metadata.encode_caller_metadata(caller)
    for name, value in wire.items():
        assert value.isascii()
        assert value.isprintable() or value == ""
        assert name in caller
    assert metadata.decode_caller_metadata(wire | {"enc-algo": "x"}) == caller


@given(st.dictionaries(st.text(max_size=12), st.text(max_size=40), max_size=4))
def test_any_callers_metadata_is_sent_or_refused_as_malformed(caller: dict[str, str]) -> None:
    try:
        wire = metadata.encode_caller_metadata(caller)
    except MalformedRequestError:
        return
    assert sum(len(n) + len(v) for n, v in wire.items()) <= 1024
    assert not any(name.startswith("enc-") for name in wire)


_OWN = ["enc-algo", "enc-dek-user", "enc-dek-admin", "enc-kek-user", "enc-kek-admin", "enc-upload"]
_own_values = st.text(max_size=30) | st.sampled_from(
    ["Cobblestone-256", "AES-256-GCM", "deleted", "1:9f86d081884c7d65", "0:00", "AAAA", "AAA", ""]
)


@given(
    st.dictionaries(
        st.sampled_from(_OWN) | st.text(max_size=8).map("enc-".__add__), _own_values, max_size=6
    )
)
def test_any_objects_metadata_is_sorted_or_refused_with_its_code(stored: dict[str, str]) -> None:
    try:
        envelope = metadata.parse(stored)
    except (CorruptObjectError, UnknownAlgorithmError):
        assert stored
    else:
        assert isinstance(envelope, metadata.Plaintext) is ("enc-algo" not in stored)


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=60), max_size=4))
def test_anything_stored_can_be_decoded_for_a_reader(stored: dict[str, str]) -> None:
    assert set(metadata.decode_caller_metadata(stored)) == {n for n in stored if n[:4] != "enc-"}
