"""Notifications are hints from anyone: whatever they are, they name keys to look at, or nothing."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.errors import MalformedRequestError
from keyturn_workers.ingest.notifications import (
    MAX_RECORDS,
    NOTIFICATION_MAX_BYTES,
    Hint,
    parse_notification,
)

# As Ceph's gateway 18 sends it, shortened by what nothing reads.
CEPH = {
    "Records": [
        {
            "eventVersion": "2.2",
            "eventSource": "ceph:s3",
            "awsRegion": "default",
            "eventTime": "2026-11-30T02:10:08.123456Z",
            "eventName": "ObjectCreated:Put",
            "userIdentity": {"principalId": "writer"},
            "s3": {
                "s3SchemaVersion": "1.0",
                "configurationId": "keyturn",
                "bucket": {"name": "acme-drop", "arn": "arn:aws:s3:default::acme-drop", "id": "x"},
                "object": {"key": "in/a b+c%.txt", "size": 5, "eTag": "5d41", "versionId": ""},
            },
            "eventId": "1",
            "opaqueData": "",
        }
    ]
}


def record(bucket: Any = "acme-drop", key: Any = "a", event: Any = "ObjectCreated:Put") -> Any:
    return {"eventName": event, "s3": {"bucket": {"name": bucket}, "object": {"key": key}}}


def parse(*records: Any) -> tuple[Hint, ...]:
    return parse_notification(json.dumps({"Records": records}).encode())


def test_cephs_records_name_the_key_as_it_is() -> None:
    (hint,) = parse_notification(json.dumps(CEPH).encode())
    assert hint == Hint("acme-drop", "in/a b+c%.txt")
    assert hint.s3_keys() == ("in/a b+c%.txt", "in/a b c%.txt")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_a_key_is_found_however_a_server_writes_it(key: str) -> None:
    for sent in (key, quote_plus(key), quote_plus(key, safe="/")):
        (hint,) = parse(record(key=sent))
        assert key in hint.s3_keys()
        assert len(hint.s3_keys()) <= 2


def test_only_new_objects_matter() -> None:
    events = ["ObjectCreated:CompleteMultipartUpload", "s3:ObjectCreated:Copy"]
    others = ["ObjectRemoved:Delete", "s3:TestEvent", "", None, 7]
    hints = parse(*(record(key=str(event), event=event) for event in (*events, *others)))
    assert [hint.key for hint in hints] == events


def test_malformed_records_are_left_out() -> None:
    hints = parse(
        *(None, 1, "x", [], {}, {"eventName": "ObjectCreated:Put", "s3": []}),
        *(record(bucket=None), record(bucket=""), record(key=["a"]), record(key="")),
        record(key="\x00" * 4000),
        *(record(key="good"), record(key="good")),
    )
    assert hints == (Hint("acme-drop", "good"),)


def test_a_message_costs_a_bounded_number_of_looks() -> None:
    assert len(parse(*(record(key=str(n)) for n in range(10 * MAX_RECORDS)))) == MAX_RECORDS


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"Records": {}}',
        b'{"Records": [], "Records": []}',
        b'{"Records": ["\\ud800"]}',
        b'{"Event": "s3:TestEvent", "Service": "Amazon S3"}',
        b"[" * 100_000,
        b'{"Records": [], "a": "' + b"x" * NOTIFICATION_MAX_BYTES + b'"}',
    ],
)
def test_anything_else_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        parse_notification(body)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["Records", "s3", "bucket", "object", "name", "key", "eventName"]),
            inner,
            max_size=4,
        )
    ),
)


@given(_JSON | st.fixed_dictionaries({"Records": st.lists(_JSON, max_size=3)}) | st.binary())
def test_nothing_that_is_sent_raises_anything_else(document: Any) -> None:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    try:
        hints = parse_notification(body)
    except MalformedRequestError:
        return
    for hint in hints:
        assert hint.bucket
        assert hint.key
        hint.s3_keys()
