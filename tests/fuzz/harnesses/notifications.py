"""What a storage server, or anyone, says about new objects (SPEC 17.4)."""

from __future__ import annotations

import json
from typing import Any, Final

from keyturn.errors import MalformedRequestError
from keyturn_workers.pipeline.ingest.notifications import MAX_RECORDS, parse_notification
from tests.fuzz.harness import Harness, check


def run(data: bytes) -> str:
    """Keys to look for, of which one is what was sent; or nothing."""
    try:
        hints = parse_notification(data)
    except MalformedRequestError:
        return "malformed_request"
    check(len(hints) <= MAX_RECORDS, "more records than may be read")
    check(len(set(hints)) == len(hints), "a record that is followed twice")
    for hint in hints:
        check(hint.bucket and hint.key, "a hint to nothing")
        keys = hint.s3_keys()
        check(keys[0] == hint.key and len(keys) <= 2, "other keys than the two readings")
        for key in keys:
            key.encode()
    return "read" if hints else "read without hints"


def _record(key: str, event: str = "ObjectCreated:Put") -> dict[str, Any]:
    return {
        "eventVersion": "2.2",
        "eventSource": "ceph:s3",
        "eventName": event,
        "s3": {
            "bucket": {"name": "acme-drop", "arn": "arn:aws:s3:default::acme-drop"},
            "object": {"key": key, "size": 5, "eTag": "5d41", "versionId": "", "metadata": []},
        },
    }


def _seeds() -> list[bytes]:
    records = [
        [_record("in/a b+c%.txt")],
        [_record("in/a+b%2Fc%C3%BC"), _record("in/%ff"), _record("%00")],
        [_record("x", "s3:ObjectCreated:CompleteMultipartUpload"), _record("y", "ObjectRemoved:")],
        [_record("x" * 3072), None, [], {}],
        [],
    ]
    return [json.dumps({"Records": each}).encode() for each in records]


HARNESS: Final = Harness(
    "notifications",
    run,
    _seeds,
    ('"Records":', '"s3":', '"bucket":', '"object":', '"name":', '"key":', "ObjectCreated:", "%c3"),
)
