"""What became of the objects that were put into sources, by the buckets alone (SPEC 17).

`read_state` reads all three buckets and the sealed records of the sources with boto3 and the
specified formats only. `taken_in` decides, pure, whether that is correct. That stored objects
open to the right bytes is a check of the bucket (`bucket_checks`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

from keyturn.identifiers import (
    ALL_PROJECTS,
    OWN_PREFIX,
    object_s3_key,
    source_s3_key,
)
from keyturn.upload_ids import source_upload_id
from tools.chaos.drops import DROP, INGEST, KEPT
from tools.chaos.plan import CUSTOMER_KEYS, LATE_PROJECT, PROJECTS, RIVAL, SOURCED_PROJECT
from tools.harness.bucket import Bucket
from tools.servers.s3 import sync_client

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tools.chaos.drops import Content, Drop, SourceBuckets, Written
    from tools.chaos.evidence import Evidence, Letter
    from tools.chaos.plan import Upload
    from tools.harness.deployment import Deployment

_PLACES: Final = tuple(
    f"{name}/" for name in (*PROJECTS, LATE_PROJECT, SOURCED_PROJECT, *CUSTOMER_KEYS, RIVAL)
)
_THREADS: Final = 8
# A redelivered request may meet what its owner did meanwhile.
_CODES: Final = frozenset(
    {"already_exists", "source_changed", "source_missing", "unknown_project", "not_permitted"}
)


@dataclass(frozen=True)
class DropState:
    """The buckets and the records.

    `stored` has the upload id of each of the project's objects, by S3 key; `elsewhere` are S3 keys
    of no project; `left` are the contents in the sources by upload id, and whether each is current;
    `refused` has the upload id and the code by source and S3 key.
    """

    stored: Mapping[str, str] = field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()
    left: Mapping[str, bool] = field(default_factory=dict)
    refused: Mapping[tuple[str, str], tuple[str, str]] = field(default_factory=dict)


def read_state(
    deployment: Deployment, buckets: SourceBuckets, master_key: tuple[str, bytes]
) -> DropState:
    """Read everything; the records must be sealed under this master key, given with its id."""
    bucket = Bucket(deployment)
    keys = bucket.keys()
    ours = [key for key in keys if key.startswith(f"{SOURCED_PROJECT}/")]
    with ThreadPoolExecutor(_THREADS) as pool:
        heads = list(pool.map(bucket.head, ours))
    refused = {
        (source, s3_key): (upload_id, code)
        for source in buckets.names
        for s3_key, (upload_id, code, _) in _record(bucket, source, master_key).items()
    }
    return DropState(
        {
            key: str(head["Metadata"].get("enc-upload"))
            for key, head in zip(ours, heads, strict=True)
        },
        tuple(key for key in keys if not key.startswith((*_PLACES, OWN_PREFIX))),
        _left(deployment.name, buckets),
        refused,
    )


def _record(bucket: Bucket, source: str, master_key: tuple[str, bytes]) -> dict[str, Any]:
    """The refusals in a record; none if there is no record under this master key."""
    with suppress(ClientError, AssertionError):
        refused = bucket.record(source_s3_key(source), ALL_PROJECTS, master_key)["refused"]
        assert isinstance(refused, dict)
        return refused
    return {}


def _left(deployment: str, buckets: SourceBuckets) -> dict[str, bool]:
    client = sync_client(buckets.server)
    versions = client.get_paginator("list_object_versions").paginate(Bucket=buckets.names[DROP])
    left = {
        source_upload_id(
            deployment, DROP, row["Key"], row["ETag"].strip('"'), row["VersionId"]
        ): row["IsLatest"]
        for page in versions
        for row in page.get("Versions", [])
    }
    objects = client.get_paginator("list_objects_v2").paginate(Bucket=buckets.names[KEPT])
    return left | {
        source_upload_id(deployment, KEPT, row["Key"], row["ETag"].strip('"')): True
        for page in objects
        for row in page.get("Contents", [])
    }


def taken_in(written: Written, state: DropState) -> list[str]:
    """Contents that are neither stored nor in their source with a code, and other violations."""
    found = [f"{key}: stored outside of every project" for key in state.elsewhere]
    places = {
        (object_s3_key(content.upload.project, content.upload.key), content.upload.upload_id)
        for content in written.contents
        if content.drop.has_place
    }
    found += [
        f"{s3_key}: stored from no source, as {upload_id}"
        for s3_key, upload_id in state.stored.items()
        if (s3_key, upload_id) not in places
    ]
    by_drop: dict[Drop, list[Content]] = defaultdict(list)
    for content in written.contents:
        by_drop[content.drop].append(content)
    stored = set(state.stored.values())
    for drop, contents in by_drop.items():
        if drop.source == DROP:
            found += _each_version(contents, stored, state, is_deleted=drop in written.deleted)
        found += _last(contents[-1], contents, stored, state, drop in written.deleted)
    return found


def _each_version(
    contents: list[Content], stored: set[str], state: DropState, *, is_deleted: bool
) -> list[str]:
    """The versioned source loses nothing, and what is stored is deleted from it.

    But if the delete of a version failed, and its owner has overwritten or deleted the object
    meanwhile, nothing names that version again.
    """
    found = []
    for content in contents:
        upload_id = content.upload.upload_id
        is_older = (content is not contents[-1] or is_deleted) and not state.left.get(upload_id)
        if upload_id in stored and upload_id in state.left and not is_older:
            found.append(f"{content}: stored, and still in its source")
        if upload_id not in stored and upload_id not in state.left:
            found.append(f"{content}: deleted from its source, and not stored")
        if is_deleted and state.left.get(upload_id):
            found.append(f"{content}: its owner has deleted it, and it is there again")
    return found


def _last(
    last: Content, contents: list[Content], stored: set[str], state: DropState, is_deleted: bool
) -> list[str]:
    """The last content of a key is stored, or it is there and has the code of its refusal."""
    drop, upload_id = last.drop, last.upload.upload_id
    is_stored, is_left = upload_id in stored, bool(state.left.get(upload_id))
    if drop.source == KEPT and not is_left and not is_deleted:
        return [f"{last}: gone from a source that is not deleted from"]
    if is_stored or is_deleted:
        return []
    if not is_left:
        return [f"{last}: neither stored nor the current object of its source"]
    has_earlier = any(content.upload.upload_id in stored for content in contents)
    code = "already_exists" if has_earlier else drop.refused
    if not code and not drop.has_place:
        return []  # not under the prefix
    # A name is refused without an upload id.
    expected = ("" if code == "malformed_request" else upload_id, code)
    if not code or state.refused.get((drop.source, drop.s3_key)) != expected:
        why = state.refused.get((drop.source, drop.s3_key), ("", "no code"))[1]
        return [f"{last}: left in its source with {why}, not {code or 'stored'}"]
    return []


def stored_uploads(written: Written, state: DropState) -> dict[str, Upload]:
    """The uploads of the stored contents, by S3 key."""
    by_id = {content.upload.upload_id: content.upload for content in written.contents}
    return {
        s3_key: by_id[upload_id] for s3_key, upload_id in state.stored.items() if upload_id in by_id
    }


def is_letter_of_drop(evidence: Evidence, letter: Letter) -> bool:
    """Whether this is the refusal of a request that an ingest worker made for a content."""
    return letter.request_id in evidence.written.ids and letter.code in _CODES


def drops(evidence: Evidence) -> list[str]:
    """The state of the buckets, and that the events say the same."""
    found = taken_in(evidence.written, evidence.drop_state)
    uploads = {content.upload.upload_id: content.upload for content in evidence.written.contents}
    told = set()
    for event in evidence.broker.events:
        if event.get("publisher") != INGEST:
            continue
        upload = uploads.get(event["upload_id"])
        if upload is None:
            found.append(f"a request for an object that was never put: {event}")
        elif event["type"] == "upload.stored":
            told.add(upload.upload_id)
            if (event["project"], event["key"], event["size"]) != (
                upload.project,
                upload.key,
                upload.size_bytes,
            ):
                found.append(f"wrong event: {event}")
        elif event["code"] not in _CODES:
            found.append(f"unexpected refusal: {event}")
    stored = set(evidence.drop_state.stored.values())
    found += [f"upload {one}: stored, and never reported" for one in sorted(stored - told)]
    found += [f"upload {one}: reported as stored, and not there" for one in sorted(told - stored)]
    return found


def summary(written: Written, state: DropState) -> str:
    """One line for the report."""
    stored, codes = set(state.stored.values()), Counter(code for _, code in state.refused.values())
    last = {content.drop: content.upload.upload_id for content in written.contents}
    refused = ", ".join(f"{count} {code}" for code, count in sorted(codes.items()))
    return (
        f"{len(written.contents)} contents put under {len(last)} keys: {len(stored)} stored, "
        f"{len(state.left.keys() - stored)} only in the sources ({refused}), "
        f"{len(written.deleted)} deleted by their owner; "
        f"{written.notices['forged'] + written.notices['garbage']} forged notifications"
    )
