"""A small run of `make chaos`: everything holds, and each check can fail (SPEC 6, 7, 8, 13).

One run serves all tests here: each breaks one thing that a check relies on, and restores it.
"""

from __future__ import annotations

import base64
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
import pytest_asyncio

from keyturn import topology
from keyturn.identifiers import STAGING_PREFIX, object_s3_key
from tools.chaos import bucket_checks, checks
from tools.chaos.drop_checks import drops, read_state, stored_uploads
from tools.chaos.drops import DROP, NOTICES
from tools.chaos.evidence import Evidence, Letter, OnBroker, honest, stored_ids
from tools.chaos.plan import (
    FLAWS_WITHOUT_EVENT,
    HOSTILE,
    LATE_PROJECT,
    LOCKED_PROJECT,
    THEFTS,
    WRITER,
    make_plan,
)
from tools.chaos.run import run
from tools.servers import Servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from mypy_boto3_s3 import S3Client

    from tools.chaos.bucket_checks import BucketReport
    from tools.chaos.plan import Upload
    from tools.servers import RabbitMQ, S3Server

pytestmark = [
    pytest.mark.servers,
    pytest.mark.timeout(600),
    # From aio-pika, if a connection is lost while it is being established.
    pytest.mark.filterwarnings("ignore:coroutine 'Connection.close' was never awaited"),
]

SEED = 20
UPLOADS = 100
SETTLES_S = 360


@pytest.fixture(scope="module")
def own_servers() -> Iterator[Servers]:
    """A broker that the run may kill; the storage is the session's."""
    with Servers("none", environ={}) as servers:
        yield servers


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def evidence(
    own_servers: Servers, ceph: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Evidence]:
    """The evidence of one small run."""
    assert own_servers.rabbitmq is not None
    folder = tmp_path_factory.mktemp("chaos")
    plan = make_plan(SEED, UPLOADS)
    yield await run(plan, own_servers.rabbitmq, ceph, folder, timeout_s=SETTLES_S)


@pytest.fixture(scope="module")
def report(evidence: Evidence) -> BucketReport:
    """The bucket as the run left it."""
    return bucket_checks.inspect_bucket(evidence)


def _plain_uploads(evidence: Evidence) -> Iterator[Upload]:
    """Uploads that must be stored."""
    uploads = evidence.plan.load.uploads
    return (upload for upload in uploads if upload.is_plain and upload.size_bytes > 100)


def _plain(evidence: Evidence) -> Upload:
    return next(_plain_uploads(evidence))


def _refused(evidence: Evidence) -> Upload:
    return next(u for u in evidence.plan.load.uploads if u.flaw == "expired")


def test_every_check_holds(evidence: Evidence) -> None:
    found = checks.run_checks(evidence)
    print(evidence.counts)
    assert {name: broken for name, broken in found.items() if broken} == {}
    assert evidence.counts["objects inspected"] > UPLOADS * 0.6
    assert evidence.counts["secrets searched for"] > UPLOADS
    assert evidence.counts["gateway's responses"]["200"] > UPLOADS / 4


def test_the_faults_were_injected(evidence: Evidence) -> None:
    """A run without faults proves nothing."""
    counts = evidence.counts
    assert counts["done to the broker"] == {"broker stopped": 1, "broker killed": 1}
    done = counts["done to processes"]
    assert sum(n for name, n in done.items() if name.startswith("kill -9")) >= 3
    assert sum(n for name, n in done.items() if name.startswith("SIGTERM")) >= 6
    assert sum(counts["done to requests to the storage"].values()) >= 8
    assert set(counts["attacks"]) == {*HOSTILE, *WRITER}
    assert counts["callers under attack"] >= 10
    away = counts["done to requests to the sources"]
    assert sum(n for name, n in away.items() if name.startswith("away")) >= 1
    assert done["kill -9 of ingest"] >= 1
    assert evidence.written.notices.keys() == {*NOTICES, "forged", "garbage"}
    codes = {code for _, code in evidence.drop_state.refused.values()}
    assert codes >= {"already_exists", "malformed_request", "unknown_project", "not_permitted"}
    assert len(evidence.drop_state.stored) > len(evidence.written.contents) / 3
    assert counts["keyrings stolen"] == dict.fromkeys(THEFTS, 1)
    assert min(counts["refusals of stolen keyrings"][role] for role in ("upload", "control")) >= 1
    kinds = {outage.kind.partition(" ")[0] for outage in evidence.key_outages}
    assert kinds == {"key", "store"}
    assert counts["waits of other projects' uploads, s"].keys() == {
        "while a store was away",
        "otherwise",
    }


# Each check fails if what it checks is broken.


def _without_letter(broker: OnBroker, upload: Upload) -> OnBroker:
    kept = [letter for letter in broker.letters if letter.request_id != upload.upload_id]
    assert len(kept) < len(broker.letters)
    return replace(broker, letters=kept)


def _without_events(broker: OnBroker, upload: Upload) -> OnBroker:
    kept = [event for event in broker.events if event.get("upload_id") != upload.upload_id]
    assert len(kept) < len(broker.events)
    return replace(broker, events=kept)


UPLOAD_DEAD = topology.dead_letter_name(topology.UPLOAD_QUEUE)
PLAN_DEAD = topology.dead_letter_name(topology.PLAN_QUEUE)


def _dead(broker: OnBroker, *letters: Letter) -> OnBroker:
    return replace(broker, letters=[*broker.letters, *letters])


def _stored_pair(evidence: Evidence) -> OnBroker:
    """Both uploads of a pair are stored."""
    pair = [upload for upload in evidence.plan.load.uploads if upload.pair is not None]
    refused = next(u for u in pair if u.upload_id not in stored_ids(evidence))
    broker = _without_letter(evidence.broker, refused)
    event = {"type": "upload.stored", "upload_id": refused.upload_id}
    return replace(broker, events=[*broker.events, event])


def _other_sizes(evidence: Evidence) -> OnBroker:
    events = [
        {**event, "size": -1} if event["type"] == "upload.stored" else event
        for event in evidence.broker.events
    ]
    return replace(evidence.broker, events=events)


Change = Callable[[Evidence], OnBroker]
BROKEN: dict[str, tuple[Callable[[Evidence], list[str]], Change, str]] = {
    "a lost dead letter": (
        checks.ends,
        lambda e: _without_letter(e.broker, _refused(e)),
        "ended as []",
    ),
    "a dead letter with another code": (
        checks.ends,
        lambda e: _dead(
            _without_letter(e.broker, _refused(e)),
            Letter(UPLOAD_DEAD, _refused(e).upload_id, "bad_seal"),
        ),
        "ended as ['bad_seal']",
    ),
    "a valid upload among the dead letters": (
        checks.ends,
        lambda e: _dead(e.broker, Letter(UPLOAD_DEAD, _plain(e).upload_id, "corrupt_object")),
        "ended as ['corrupt_object', 'stored']",
    ),
    "a dead step of a sweep": (
        checks.ends,
        lambda e: _dead(e.broker, Letter(PLAN_DEAD, "None", "corrupt_object")),
        "unexpected dead letter",
    ),
    "a pair that was stored twice": (checks.ends, _stored_pair, "not once stored and once"),
    "a missing event of a stored upload": (
        checks.events,
        lambda e: _without_events(e.broker, _plain(e)),
        "events []",
    ),
    "a missing event of a refused upload": (
        checks.events,
        lambda e: _without_events(e.broker, _refused(e)),
        "events []",
    ),
    "a missing completion of a rotation": (
        checks.events,
        lambda e: replace(
            e.broker, events=[x for x in e.broker.events if x["type"] != "rotation.completed"]
        ),
        "no rotation.completed",
    ),
    "an event that is not signed": (
        checks.events,
        lambda e: replace(e.broker, unverified=["of no attack"]),
        "without a signature that verifies",
    ),
    "an event of no request": (
        checks.events,
        lambda e: replace(
            e.broker, events=[*e.broker.events, {"type": "upload.stored", "upload_id": "x"}]
        ),
        "unexpected event",
    ),
    "an event with another size": (checks.events, _other_sizes, "wrong event"),
    "a remaining message": (
        checks.queues,
        lambda e: replace(e.broker, depths={**e.broker.depths, "keyturn.plan.retry.5s": 1}),
        "1 messages are left in keyturn.plan.retry.5s",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_found(evidence: Evidence, name: str) -> None:
    check, change, message = BROKEN[name]
    assert message in "\n".join(check(replace(evidence, broker=change(evidence))))


def test_a_refusal_that_was_killed_after_its_dead_letter_needs_no_event_of_its_own(
    evidence: Evidence,
) -> None:
    """A worker was killed between the two, and the key was deleted meanwhile."""
    upload = next(
        u for u in evidence.plan.load.uploads if u.may_end == {"deleted_key", "already_exists"}
    )
    event = next(e for e in honest(evidence.broker) if e.get("upload_id") == upload.upload_id)
    queue = topology.dead_letter_name(topology.UPLOAD_QUEUE)
    letters = _without_letter(evidence.broker, upload).letters
    letters += [Letter(queue, upload.upload_id, code) for code in sorted(upload.may_end)]
    others = _without_events(evidence.broker, upload).events

    def found(code: str) -> str:
        broker = replace(
            evidence.broker, letters=letters, events=[*others, {**event, "code": code}]
        )
        return "".join(checks.events(replace(evidence, broker=broker)))

    assert upload.upload_id not in found("deleted_key")
    assert upload.upload_id in found("already_exists")


@dataclass
class _StoredObject:
    """An object in the bucket, which a test may change."""

    client: S3Client
    bucket: str
    s3_key: str
    body: bytes
    metadata: dict[str, str]
    content_type: str
    tags: dict[str, str]

    @classmethod
    def of(cls, evidence: Evidence, upload: Upload) -> _StoredObject:
        client, bucket = evidence.tenants[upload.project].client, evidence.deployment.bucket
        s3_key = object_s3_key(upload.project, upload.key)
        answer = client.get_object(Bucket=bucket, Key=s3_key)
        body = answer["Body"].read()
        tags = evidence.tagged.get(s3_key, {})
        return cls(client, bucket, s3_key, body, answer["Metadata"], answer["ContentType"], tags)

    def put(self, changes: Mapping[str, str] = {}, *, body: bytes | None = None) -> None:
        """Store it again: unchanged, with other metadata, or with another body."""
        self.client.put_object(
            Bucket=self.bucket,
            Key=self.s3_key,
            Body=self.body if body is None else body,
            Metadata={**self.metadata, **changes},
            ContentType=self.content_type,
            Tagging=urlencode(self.tags),
        )


def _flip_last_bit(data: bytes) -> bytes:
    """The bytes with their last bit inverted."""
    return data[:-1] + bytes([data[-1] ^ 1])


def _broken_wrap(stored: _StoredObject, role: str) -> dict[str, str]:
    name = f"enc-dek-{role}"
    return {
        name: base64.b64encode(_flip_last_bit(base64.b64decode(stored.metadata[name]))).decode()
    }


def test_changed_and_deleted_objects_are_found(evidence: Evidence) -> None:
    """One bit of the body or of a wrap, or caller metadata that was not sent."""
    uploads = list(itertools.islice(_plain_uploads(evidence), 5))
    assert len(uploads) == 5
    changed = [_StoredObject.of(evidence, upload) for upload in uploads]
    body, user, admin, caller, deleted = changed
    try:
        body.put(body=_flip_last_bit(body.body))
        for stored, role in ((user, "user"), (admin, "admin")):
            stored.put(_broken_wrap(stored, role))
        caller.put({"author": "another author"})
        deleted.client.delete_object(Bucket=deleted.bucket, Key=deleted.s3_key)
        found = bucket_checks.inspect_bucket(evidence).not_opened
    finally:
        for stored in changed:
            stored.put()
    assert f"{deleted.s3_key}: missing" in found
    for stored, upload in zip(changed, uploads, strict=True):
        named = (f"{stored.s3_key}: missing", f"{stored.s3_key} (upload {upload.upload_id})")
        lines = [line for line in found if line.startswith(named)]
        assert lines, stored.s3_key
        found = [line for line in found if line not in lines]
    assert found == []


def test_what_a_source_has_lost_is_found(evidence: Evidence) -> None:
    """A stored object, a wrong body of another one, and a refused object of the drop bucket."""
    assert evidence.source_buckets is not None
    stored = stored_uploads(evidence.written, evidence.drop_state)
    drops_put = Counter(content.drop for content in evidence.written.contents)
    sole = {
        content.upload.upload_id
        for content in evidence.written.contents
        if drops_put[content.drop] == 1 and content.drop not in evidence.written.deleted
    }
    # Of a key that was overwritten or deleted in the source, an earlier content may be lost.
    gone, wrong = [
        _StoredObject.of(evidence, upload)
        for upload in sorted(stored.values(), key=lambda one: one.upload_id not in sole)
        if upload.size_bytes > 100
    ][:2]
    refused = next(one for one in evidence.written.contents if one.drop.refused)
    in_drop: Any = {"Bucket": evidence.source_buckets.names[DROP], "Key": refused.drop.s3_key}
    version = gone.client.head_object(**in_drop)["VersionId"]
    gone.client.delete_object(Bucket=gone.bucket, Key=gone.s3_key)
    wrong.put(body=_flip_last_bit(wrong.body))
    gone.client.delete_object(**in_drop)  # as hidden by a delete marker
    try:
        master_key = list(evidence.masters.items())[-1]
        state = read_state(evidence.deployment, evidence.source_buckets, master_key)
        found = drops(replace(evidence, drop_state=state))
        bucket = bucket_checks.inspect_bucket(evidence).not_opened
    finally:
        gone.put()
        wrong.put()
        for row in gone.client.list_object_versions(
            Bucket=in_drop["Bucket"], Prefix=in_drop["Key"]
        )["DeleteMarkers"]:
            gone.client.delete_object(**in_drop, VersionId=row["VersionId"])
    assert gone.client.head_object(**in_drop)["VersionId"] == version
    lost = stored[gone.s3_key].upload_id
    assert f"upload {lost}: reported as stored, and not there" in found
    assert any(f"({lost})" in line for line in found)
    assert f"{refused}: neither stored nor the current object of its source" in found
    assert f"{gone.s3_key}: missing" in bucket
    assert any(line.startswith(f"{wrong.s3_key} (upload") for line in bucket)


@pytest.mark.parametrize("locked", [False, True])
def test_an_object_that_an_old_key_opens_is_found(evidence: Evidence, locked: bool) -> None:
    """The check gets the current key in place of the first one, so an old key opens objects."""
    project, tenant = next(
        (p, t)
        for p, t in evidence.tenants.items()
        if len(t.api_keys) > 1 and (p == LOCKED_PROJECT) == locked
    )
    again = replace(tenant, api_keys=[tenant.api_keys[-1], *tenant.api_keys[1:]])
    report = bucket_checks.inspect_bucket(
        replace(evidence, tenants={**evidence.tenants, project: again})
    )
    assert f"{project}/" in report.opened_by_old[0]
    shown = report.opened_by_old[0]
    assert "user key 1" in shown
    assert ("with secret" in shown) == locked


def test_an_object_that_opens_without_a_customer_key_is_found(evidence: Evidence) -> None:
    """The check gets no secrets: it looks for wraps under plain keys, and for labels of such."""
    secrets = evidence.customer_secrets[LOCKED_PROJECT]
    assert len({each.secret_id for each in secrets if each is not None}) == 2
    locked = [upload for upload in _plain_uploads(evidence) if upload.project == LOCKED_PROJECT]
    assert locked
    report = bucket_checks.inspect_bucket(replace(evidence, customer_secrets={}))
    (missed,) = [line for line in report.not_opened if locked[0].upload_id in line]
    assert "the user's current key does not open its wrap" in missed


def test_an_unexpected_object_and_leftovers_are_found(evidence: Evidence) -> None:
    client = next(iter(evidence.tenants.values())).client
    bucket, staged = evidence.deployment.bucket, f"{STAGING_PREFIX}api/left"
    client.put_object(Bucket=bucket, Key="amber/unexpected", Body=b"")
    client.put_object(Bucket=bucket, Key=staged, Body=b"")
    opened = client.create_multipart_upload(Bucket=bucket, Key="amber/open")
    report = bucket_checks.inspect_bucket(evidence)
    client.delete_object(Bucket=bucket, Key="amber/unexpected")
    client.delete_object(Bucket=bucket, Key=staged)
    client.abort_multipart_upload(Bucket=bucket, Key="amber/open", UploadId=opened["UploadId"])
    assert report.not_opened == ["amber/unexpected: unexpected"]
    assert report.left == [staged, "open: amber/open"]


@pytest.mark.parametrize("place", ["logs", "metrics", "disk"])
def test_a_planted_secret_is_found(evidence: Evidence, report: BucketReport, place: str) -> None:
    """A DEK, a transport key and a plaintext, each in a different encoding."""
    secrets_by_name = bucket_checks.all_secrets(evidence, report)
    dek = next(name for name in secrets_by_name if name.startswith("DEK"))
    key = next(name for name in secrets_by_name if name.startswith("transport key"))
    planted = evidence.folder / place / "planted"
    planted.write_bytes(
        b"\0\1".join(
            (
                secrets_by_name[dek].hex().encode(),
                base64.urlsafe_b64encode(b"x" + secrets_by_name[key]),
                secrets_by_name["plaintext"],
            )
        )
    )
    found = bucket_checks.leaks(evidence, report)
    planted.unlink()
    assert found == [f"{name} in planted of {place}" for name in sorted((dek, "plaintext", key))]


def test_a_scan_that_finds_nothing_at_all_fails(evidence: Evidence, report: BucketReport) -> None:
    """Without files to search the check fails: it would prove nothing."""
    empty = evidence.folder / "empty"
    for place in ("logs", "metrics", "disk"):
        (empty / place).mkdir(parents=True)
    found = bucket_checks.leaks(replace(evidence, folder=empty), report)
    assert [line.split(":")[0] for line in found] == ["the scan does not work"] * 4


def test_an_unexpected_failure_in_a_log_is_found(evidence: Evidence) -> None:
    log = evidence.folder / "logs" / "planted.log"
    log.write_text('{"event":"unexpected failure"}\n')
    found = checks.run_checks(evidence)[checks.BUGS]
    log.unlink()
    assert len(found) == 1
    assert found[0].startswith('planted.log: {"event":"unexpected failure"}')


async def test_what_is_not_completed_in_time_is_found(
    own_rabbitmq: RabbitMQ, ceph: S3Server, tmp_path: Path
) -> None:
    """Without its schedule a run waits forever for a project that is never enrolled.

    Incomplete requests are named, and the evidence is collected all the same.
    """
    plan = replace(make_plan(SEED, UPLOADS), actions=())
    cut = await run(plan, own_rabbitmq, ceph, tmp_path, timeout_s=5)
    found = checks.run_checks(cut)
    # Uploads with a flaw are published all the same.
    unenrolled = [u for u in plan.load.uploads if u.project == LATE_PROJECT and u.flaw is None]
    assert unenrolled
    left, *pending = found[checks.SETTLED]
    assert int(left.removesuffix(" publishes were not confirmed")) >= len(unenrolled)
    reported = {str(event.get("upload_id")) for event in cut.broker.events}
    expected_event = {u.upload_id for u in plan.load.uploads if u.flaw not in FLAWS_WITHOUT_EVENT}
    named = {line.split()[1] for line in pending if line.endswith("no event")}
    assert expected_event - reported <= named <= expected_event
    assert f"the keyring of {LATE_PROJECT}: AssertionError no keyring" in found[checks.OPENED]
