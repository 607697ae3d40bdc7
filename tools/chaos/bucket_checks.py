"""Checks of the bucket, with boto3 and the specified formats only (`tools.harness`).

The bucket is read once, in threads; the violations of all checks are collected in one report.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from keyturn.crypto import BODY_CONTEXT, SealError, admin_kek, kek_id, open_sealed, user_kek
from keyturn.errors import EvidenceError
from keyturn.identifiers import STAGING_PREFIX, object_s3_key
from keyturn.metadata import encode_caller_metadata
from tools.chaos.load import plaintext
from tools.chaos.message_checks import stored_ids
from tools.harness import stored_objects
from tools.harness.bucket import Bucket, unwrap_data_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn.crypto import Kek, Role
    from tools.chaos.evidence import Evidence
    from tools.chaos.load import Upload
    from tools.harness.deployment import Deployment
    from tools.harness.tenants import Tenant

DOCTOR_PREFIX = ".keyturn/doctor/"
_THREADS = 8


@dataclass
class BucketReport:
    """Violations in the bucket; `deks` are the objects' DEKs by S3 key."""

    not_opened: list[str] = field(default_factory=list)
    opened_by_old: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    deks: dict[str, bytes] = field(default_factory=dict, repr=False)
    objects: int = 0


@dataclass(frozen=True)
class _Keys:
    """A project's KEKs at the end of a run: user KEKs by generation, admin KEKs by age."""

    users: list[Kek]
    admins: list[Kek]

    @classmethod
    def of(cls, tenant: Tenant) -> _Keys:
        users = [user_kek(api_key, tenant.project) for api_key in tenant.api_keys]
        admins = [admin_kek(master, tenant.project) for master in tenant.masters.values()]
        return cls(users, admins)


def inspect_bucket(evidence: Evidence) -> BucketReport:
    """Check every object that must exist, and find what must not exist."""
    report = BucketReport()
    stored = stored_ids(evidence)
    existing = {
        object_s3_key(upload.project, upload.key): upload
        for upload in evidence.plan.load.uploads
        if upload.upload_id in stored
    }
    keys = {name: _Keys.of(tenant) for name, tenant in evidence.tenants.items()}
    with ThreadPoolExecutor(_THREADS) as pool:
        for s3_key, upload in existing.items():
            pool.submit(
                _check_object_safely, evidence, keys[upload.project], s3_key, upload, report
            )
    for name, tenant in evidence.tenants.items():
        present = set(stored_objects.list_keys(evidence.deployment, f"{name}/"))
        expected = {s3_key for s3_key, upload in existing.items() if upload.project == name}
        report.not_opened += [f"{s3_key}: missing" for s3_key in expected - present]
        report.not_opened += [f"{s3_key}: unexpected" for s3_key in present - expected]
        _check_records(tenant, report)
    report.objects = len(existing)
    if evidence.rival is not None:
        _check_rival(evidence.rival, report)
    _check_leftovers(evidence, report)
    return report


def _check_rival(rival: Tenant, report: BucketReport) -> None:
    """The hostile publisher's project is swept too, so no old master key opens it."""
    _check_records(rival, report)
    bucket = Bucket(rival.deployment)
    old = _Keys.of(rival).admins[:-1]
    for s3_key in stored_objects.list_keys(rival.deployment, f"{rival.project}/"):
        _, answer = bucket.get(s3_key)
        key = s3_key.partition("/")[2]
        report.opened_by_old += [
            f"{s3_key}: admin key {number} opens its wrap"
            for number, kek in enumerate(old, start=1)
            if unwrap_data_key(answer["Metadata"], kek, "admin", rival.project, key, 1) is not None
        ]


def _check_object_safely(
    evidence: Evidence, keys: _Keys, s3_key: str, upload: Upload, report: BucketReport
) -> None:
    named = f"{s3_key} (upload {upload.upload_id})"
    try:
        _check_object(evidence, keys, s3_key, upload, report)
    except ClientError as exc:
        report.not_opened.append(f"{named}: {exc}")
    except (AssertionError, SealError, ValueError, KeyError) as exc:
        report.not_opened.append(f"{named}: {type(exc).__name__} {exc}")


def _check_object(
    evidence: Evidence, keys: _Keys, s3_key: str, upload: Upload, report: BucketReport
) -> None:
    tenant = evidence.tenants[upload.project]
    if upload.deleted:
        _check_tombstone(evidence, s3_key, report)
        return
    answer = tenant.client.get_object(Bucket=evidence.deployment.bucket, Key=s3_key)
    body, metadata = answer["Body"].read(), answer["Metadata"]
    generation = len(keys.users)

    def dek_by(kek: Kek, role: Role, at: int = generation) -> bytes | None:
        return unwrap_data_key(metadata, kek, role, upload.project, upload.key, at)

    by_user, by_admin = dek_by(keys.users[-1], "user"), dek_by(keys.admins[-1], "admin")
    for name, dek in (("user's", by_user), ("operator's", by_admin)):
        assert dek is not None, f"the {name} current key does not open its wrap"
        sent = plaintext(evidence.plan.seed, upload)
        assert open_sealed(dek, BODY_CONTEXT, body) == sent, f"wrong plaintext with the {name} key"
        report.deks[s3_key] = dek
    labels = {
        "enc-kek-user": f"{generation}:{kek_id(keys.users[-1])}",
        "enc-kek-admin": list(evidence.masters)[-1],
        "enc-upload": upload.upload_id,
    }
    assert labels.items() <= metadata.items(), f"labels {metadata}, not {labels}"
    _check_caller_metadata(evidence, upload, s3_key, metadata, answer["ContentType"])
    earlier: tuple[tuple[Role, list[Kek]], ...] = (
        ("user", keys.users[:-1]),
        ("admin", keys.admins[:-1]),
    )
    report.opened_by_old += [
        f"{s3_key}: {role} key {number} opens its wrap"
        for at in range(1, generation + 1)
        for role, keks in earlier
        for number, kek in enumerate(keks, start=1)
        if dek_by(kek, role, at) is not None
    ]


def _check_caller_metadata(
    evidence: Evidence, upload: Upload, s3_key: str, metadata: dict[str, str], content_type: str
) -> None:
    """The caller's metadata, the content type and later tags are unchanged."""
    callers = {name: value for name, value in metadata.items() if not name.startswith("enc-")}
    assert callers == encode_caller_metadata(dict(upload.metadata)), f"metadata {callers}"
    assert upload.content_type in {None, content_type}, f"content type {content_type}"
    if s3_key in evidence.tagged:
        tags = evidence.tenants[upload.project]._tags(upload.key)
        assert tags == evidence.tagged[s3_key], f"tags {tags}"


def _check_tombstone(evidence: Evidence, s3_key: str, report: BucketReport) -> None:
    bucket, masters = Bucket(evidence.deployment), list(evidence.masters.values())
    bucket.deleted_at(s3_key, masters[-1])
    for old in masters[:-1]:
        with suppress(SealError):
            bucket.deleted_at(s3_key, old)
            report.opened_by_old.append(f"{s3_key}: an old master key opens its tombstone")


def _check_records(tenant: Tenant, report: BucketReport) -> None:
    """Its keyring is as it must be, and its evidence is one chain."""
    checks: dict[str, Callable[[], object]] = {
        "keyring": partial(_check_keyring, tenant, report),
        "evidence": tenant.check_evidence,
    }
    for name, check in checks.items():
        try:
            check()
        except (AssertionError, SealError, EvidenceError, ValueError, KeyError) as exc:
            problem = f"{type(exc).__name__} {exc}"
            report.not_opened.append(f"the {name} of {tenant.project}: {problem}")


def _check_keyring(tenant: Tenant, report: BucketReport) -> None:
    """It has the last generation, is sealed with the new master key, and has no old KEK."""
    keyring = tenant.keyring()
    state = (keyring["generation"], keyring["master_key"])
    if state != (len(tenant.api_keys), list(tenant.masters)[-1]):
        report.opened_by_old.append(f"the keyring of {tenant.project} is at {state}")
    for entry in keyring["history"]:
        if entry["kek"] is not None:
            number = entry["generation"]
            report.opened_by_old.append(f"the keyring of {tenant.project} contains KEK {number}")


def leftovers(deployment: Deployment) -> list[str]:
    """Leftovers of killed processes: staged bodies, multipart uploads, a probe's objects."""
    return [
        *stored_objects.list_keys(deployment, STAGING_PREFIX),
        *stored_objects.list_keys(deployment, DOCTOR_PREFIX),
        *(f"open: {upload['Key']}" for upload in stored_objects.list_multipart_uploads(deployment)),
    ]


def _check_leftovers(evidence: Evidence, report: BucketReport) -> None:
    report.left += leftovers(evidence.deployment)
    tenants = [*evidence.tenants.values(), *([evidence.rival] if evidence.rival else [])]
    for tenant in tenants:
        report.left += tenant.left()
