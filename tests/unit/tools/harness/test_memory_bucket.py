"""The content of the in-memory bucket follows the rules of S3 (for tests of everything above)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from keyturn_workers.errors import ArchivedError, MissingError, PreconditionError, RefusedError
from keyturn_workers.storage import Headers, IfAbsent, IfMatch
from tools.harness.memory_bucket import (
    DEFAULT_CONTENT_TYPE,
    NULL_VERSION,
    Bucket,
    Stored,
    etag_of,
    new_version,
)

NOW: Final = datetime(2026, 11, 24, 10, tzinfo=UTC)
HELD: Final = Headers({}, None, {"x-amz-object-lock-legal-hold": "ON"})
BOTH: Final = pytest.mark.parametrize("versioned", [False, True])


def _version(body: bytes = b"1", headers: Headers | None = None, at: datetime = NOW) -> Stored:
    return new_version(body, headers or Headers({}), etag_of(body), at)


def _bucket(*keys: str, versioned: bool = False) -> Bucket:
    bucket = Bucket(versioned=versioned)
    for key in keys:
        bucket.store(key, _version(key.encode()))
    return bucket


def _rows(bucket: Bucket) -> list[tuple[str, bool, bool]]:
    return [(row.key, row.is_latest, row.is_delete_marker) for row in bucket.versions()]


# Writes and deletes.


@BOTH
def test_the_latest_write_is_what_a_key_shows(*, versioned: bool) -> None:
    bucket = _bucket(versioned=versioned)
    for body in (b"1", b"2"):
        bucket.store("k", _version(body))
    assert bucket.get("k").body == b"2"
    assert len(_rows(bucket)) == (2 if versioned else 1)


def test_without_versioning_a_version_has_no_id() -> None:
    bucket = _bucket("k")
    assert bucket.get("k").version_id == NULL_VERSION
    assert bucket.get("k").head(NOW).version_id is None


def test_each_version_has_its_id_and_can_be_read_by_it() -> None:
    bucket = _bucket(versioned=True)
    for body in (b"1", b"2"):
        bucket.store("k", _version(body))
    ids = [row.version_id for row in bucket.versions()]
    assert len(set(ids)) == 2
    assert [bucket.get("k", each).body for each in ids] == [b"2", b"1"]
    assert bucket.get("k").head(NOW).version_id == ids[0]
    with pytest.raises(MissingError):
        bucket.get("k", "v999999")


@BOTH
def test_a_deleted_key_is_missing_and_not_listed(*, versioned: bool) -> None:
    bucket = _bucket("k", "l", versioned=versioned)
    bucket.delete("k", NOW)
    bucket.delete("none", NOW)
    with pytest.raises(MissingError):
        bucket.get("k")
    assert bucket.keys() == ["l"]


def test_a_delete_in_a_versioned_bucket_leaves_a_marker_and_the_versions() -> None:
    bucket = _bucket("k", versioned=True)
    bucket.delete("k", NOW)
    assert _rows(bucket) == [("k", True, True), ("k", False, False)]
    marker, version = bucket.versions()
    with pytest.raises(MissingError):
        bucket.get("k", marker.version_id)
    assert bucket.get("k", version.version_id).body == b"k"


def test_a_version_is_deleted_for_good() -> None:
    bucket = _bucket("k", versioned=True)
    bucket.delete("k", NOW)
    marker, version = bucket.versions()
    bucket.delete_version("k", "v999999", NOW)
    bucket.delete_version("k", marker.version_id, NOW)
    assert bucket.keys() == ["k"]
    bucket.delete_version("k", version.version_id, NOW)
    assert _rows(bucket) == []


def test_keys_and_versions_are_in_the_order_of_bytes() -> None:
    keys = ["a", "a/b", "a-1", "é", "\U0001f600", "\uffff"]
    bucket = _bucket(*keys)
    assert bucket.keys() == ["a", "a-1", "a/b", "é", "\uffff", "\U0001f600"]
    assert [row.key for row in bucket.versions()] == bucket.keys()


def test_tags_belong_to_the_latest_version() -> None:
    bucket = _bucket("k", versioned=True)
    bucket.change_tags("k", {"a": "1"})
    bucket.store("k", _version(b"2"))
    latest, earlier = bucket.versions()
    assert bucket.get("k", latest.version_id).tags == {}
    assert bucket.get("k", earlier.version_id).head(NOW).tag_count == 1


# Conditions.


@BOTH
def test_a_write_if_absent_needs_a_key_that_shows_nothing(*, versioned: bool) -> None:
    bucket = _bucket("k", versioned=versioned)
    bucket.check("other", IfAbsent())
    with pytest.raises(PreconditionError):
        bucket.check("k", IfAbsent())
    bucket.delete("k", NOW)
    bucket.check("k", IfAbsent())


def test_a_write_if_match_needs_that_body() -> None:
    bucket = _bucket("k")
    bucket.check("k", IfMatch(etag_of(b"k")))
    bucket.check("k", None)
    with pytest.raises(PreconditionError):
        bucket.check("k", IfMatch(etag_of(b"other")))
    with pytest.raises(MissingError):
        bucket.check("none", IfMatch(etag_of(b"k")))


# Locks and archives.


def test_a_lock_forbids_to_replace_or_delete_without_versioning() -> None:
    bucket = Bucket(versioned=False)
    bucket.store("k", _version(b"1", HELD))
    with pytest.raises(RefusedError):
        bucket.store("k", _version(b"2"))
    with pytest.raises(RefusedError):
        bucket.delete("k", NOW)
    assert bucket.get("k").body == b"1"
    assert bucket.get("k").head(NOW).locked


def test_with_versioning_a_lock_keeps_its_version() -> None:
    bucket = Bucket(versioned=True)
    bucket.store("k", _version(b"1", HELD))
    bucket.store("k", _version(b"2"))
    bucket.delete("k", NOW)
    *_, locked = bucket.versions()
    with pytest.raises(RefusedError):
        bucket.delete_version("k", locked.version_id, NOW)
    assert bucket.get("k", locked.version_id).body == b"1"


def test_a_retention_ends() -> None:
    until = (NOW + timedelta(days=1)).isoformat()
    retention = {
        "x-amz-object-lock-mode": "GOVERNANCE",
        "x-amz-object-lock-retain-until-date": until,
    }
    bucket = Bucket(versioned=False)
    bucket.store("k", _version(b"1", Headers({}, None, retention)))
    with pytest.raises(RefusedError):
        bucket.delete("k", NOW)
    bucket.delete("k", NOW + timedelta(days=2))
    assert bucket.keys() == []


@BOTH
def test_what_a_test_plants_or_purges_ignores_locks(*, versioned: bool) -> None:
    bucket = Bucket(versioned=versioned)
    bucket.plant("a/k", _version(b"1", HELD))
    bucket.plant("a/k", _version(b"2", HELD))
    assert bucket.get("a/k").body == b"2"
    bucket.store("b/k", _version())
    bucket.purge("a/")
    assert [row.key for row in bucket.versions()] == ["b/k"]


@pytest.mark.parametrize(
    ("storage_class", "archived"), [("GLACIER", True), ("DEEP_ARCHIVE", True), ("STANDARD", False)]
)
def test_an_archived_body_cannot_be_read(storage_class: str, *, archived: bool) -> None:
    stored = _version(b"1", Headers({}, None, {"x-amz-storage-class": storage_class}))
    assert stored.head(NOW).archived is archived
    if archived:
        with pytest.raises(ArchivedError):
            stored.readable_body()
    else:
        assert stored.readable_body() == b"1"


# What a write stores.


def test_names_of_metadata_are_stored_in_lower_case() -> None:
    stored = _version(headers=Headers({"Author": "kim"}))
    assert stored.headers == Headers({"author": "kim"}, DEFAULT_CONTENT_TYPE, {})


def test_a_head_shows_what_was_stored_and_the_moment_of_the_read() -> None:
    stored = _version(b"hello", Headers({"a": "1"}, "text/plain"))
    head = stored.head(NOW + timedelta(seconds=5))
    assert (head.size_bytes, head.etag, head.last_modified) == (5, etag_of(b"hello"), NOW)
    assert head.date == NOW + timedelta(seconds=5)
    assert head.headers == Headers({"a": "1"}, "text/plain")


def test_the_etag_of_a_single_put_is_the_md5_of_its_body() -> None:
    assert etag_of(b"") == "d41d8cd98f00b204e9800998ecf8427e"
