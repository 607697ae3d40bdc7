"""Checks of the bucket, by boto3 and the formats alone (`tools.harness.stored_objects`, `.bucket`).

The bucket is read once, in threads; what each check has to say of an object is kept beside it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from keyturn.crypto import BODY_CONTEXT, SealError, admin_kek, kek_id, open_sealed, user_kek
from keyturn.identifiers import STAGING_PREFIX, object_s3_key
from keyturn.metadata import encode_caller_metadata
from tools.chaos.load import plaintext
from tools.chaos.message_checks import stored_ids
from tools.harness import stored_objects
from tools.harness.bucket import Bucket, unwrap_data_key

if TYPE_CHECKING:
    from keyturn.crypto import Kek, Role
    from tools.chaos.evidence import Evidence
    from tools.chaos.load import Upload
    from tools.harness.deployment import Deployment
    from tools.harness.tenants import Tenant

DOCTOR_PREFIX = ".keyturn/doctor/"
_THREADS = 8


@dataclass
class Looked:
    """What was found in the bucket; `deks` are of the objects, by their S3 keys."""

    not_opened: list[str] = field(default_factory=list)
    opened_by_old: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    deks: dict[str, bytes] = field(default_factory=dict, repr=False)
    objects: int = 0


@dataclass(frozen=True)
class _Keys:
    """A project's keys at the end of a run: KEKs by generation, operator's by name."""

    users: list[Kek]
    admins: list[Kek]

    @classmethod
    def of(cls, tenant: Tenant) -> _Keys:
        users = [user_kek(api_key, tenant.project) for api_key in tenant.api_keys]
        admins = [admin_kek(master, tenant.project) for master in tenant.masters.values()]
        return cls(users, admins)


def look(evidence: Evidence) -> Looked:
    """Read every object that must stand, and look for what must not."""
    looked = Looked()
    stored = stored_ids(evidence)
    standing = {
        object_s3_key(upload.project, upload.key): upload
        for upload in evidence.plan.load.uploads
        if upload.upload_id in stored
    }
    keys = {name: _Keys.of(tenant) for name, tenant in evidence.tenants.items()}
    with ThreadPoolExecutor(_THREADS) as pool:
        for s3_key, upload in standing.items():
            pool.submit(_guarded, evidence, keys[upload.project], s3_key, upload, looked)
    for name, tenant in evidence.tenants.items():
        there = set(stored_objects.list_keys(evidence.deployment, f"{name}/"))
        wanted = {s3_key for s3_key, upload in standing.items() if upload.project == name}
        looked.not_opened += [f"{s3_key}: gone" for s3_key in wanted - there]
        looked.not_opened += [f"{s3_key}: nobody's" for s3_key in there - wanted]
        try:
            _look_at_keyring(tenant, looked)
        except (AssertionError, SealError, ValueError, KeyError) as exc:
            looked.not_opened.append(f"the keyring of {name}: {type(exc).__name__} {exc}")
    looked.objects = len(standing)
    if evidence.rival is not None:
        _look_at_rival(evidence.rival, looked)
    _look_for_leftovers(evidence, looked)
    return looked


def _look_at_rival(rival: Tenant, looked: Looked) -> None:
    """The hostile publisher's project: swept with all others, so no old master key opens it."""
    try:
        _look_at_keyring(rival, looked)
    except (AssertionError, SealError, ValueError, KeyError) as exc:
        looked.not_opened.append(f"the keyring of {rival.project}: {type(exc).__name__} {exc}")
    bucket = Bucket(rival.deployment)
    old = _Keys.of(rival).admins[:-1]
    for s3_key in stored_objects.list_keys(rival.deployment, f"{rival.project}/"):
        _, answer = bucket.get(s3_key)
        key = s3_key.partition("/")[2]
        looked.opened_by_old += [
            f"{s3_key}: admin key {number} opens its wrap"
            for number, kek in enumerate(old, start=1)
            if unwrap_data_key(answer["Metadata"], kek, "admin", rival.project, key, 1) is not None
        ]


def _guarded(evidence: Evidence, keys: _Keys, s3_key: str, upload: Upload, looked: Looked) -> None:
    named = f"{s3_key} (upload {upload.upload_id})"
    try:
        _look_at(evidence, keys, s3_key, upload, looked)
    except ClientError as exc:
        looked.not_opened.append(f"{named}: {exc}")
    except (AssertionError, SealError, ValueError, KeyError) as exc:
        looked.not_opened.append(f"{named}: {type(exc).__name__} {exc}")


def _look_at(evidence: Evidence, keys: _Keys, s3_key: str, upload: Upload, looked: Looked) -> None:
    tenant = evidence.tenants[upload.project]
    if upload.deleted:
        _look_at_tombstone(evidence, s3_key, looked)
        return
    answer = tenant.client.get_object(Bucket=evidence.deployment.bucket, Key=s3_key)
    body, metadata = answer["Body"].read(), answer["Metadata"]
    generation = len(keys.users)

    def dek_by(kek: Kek, role: Role, at: int = generation) -> bytes | None:
        return unwrap_data_key(metadata, kek, role, upload.project, upload.key, at)

    by_user, by_admin = dek_by(keys.users[-1], "user"), dek_by(keys.admins[-1], "admin")
    for name, dek in (("user's", by_user), ("operator's", by_admin)):
        assert dek is not None, f"the {name} current key opens no wrap"
        sent = plaintext(evidence.plan.seed, upload)
        assert open_sealed(dek, BODY_CONTEXT, body) == sent, f"other bytes by the {name} key"
        looked.deks[s3_key] = dek
    labels = {
        "enc-kek-user": f"{generation}:{kek_id(keys.users[-1])}",
        "enc-kek-admin": list(evidence.masters)[-1],
        "enc-upload": upload.upload_id,
    }
    assert labels.items() <= metadata.items(), f"labels {metadata}, not {labels}"
    _check_callers(evidence, upload, s3_key, metadata, answer["ContentType"])
    earlier: tuple[tuple[Role, list[Kek]], ...] = (
        ("user", keys.users[:-1]),
        ("admin", keys.admins[:-1]),
    )
    looked.opened_by_old += [
        f"{s3_key}: {role} key {number} opens its wrap"
        for at in range(1, generation + 1)
        for role, keks in earlier
        for number, kek in enumerate(keks, start=1)
        if dek_by(kek, role, at) is not None
    ]


def _check_callers(
    evidence: Evidence, upload: Upload, s3_key: str, metadata: dict[str, str], content_type: str
) -> None:
    """What the caller sent along is as it was sent, tags put on later too."""
    callers = {name: value for name, value in metadata.items() if not name.startswith("enc-")}
    assert callers == encode_caller_metadata(dict(upload.metadata)), f"metadata {callers}"
    assert upload.content_type in {None, content_type}, f"content type {content_type}"
    if s3_key in evidence.tagged:
        tags = evidence.tenants[upload.project]._tags(upload.key)
        assert tags == evidence.tagged[s3_key], f"tags {tags}"


def _look_at_tombstone(evidence: Evidence, s3_key: str, looked: Looked) -> None:
    bucket, masters = Bucket(evidence.deployment), list(evidence.masters.values())
    bucket.deleted_at(s3_key, masters[-1])
    for old in masters[:-1]:
        with suppress(SealError):
            bucket.deleted_at(s3_key, old)
            looked.opened_by_old.append(f"{s3_key}: an old master key opens its tombstone")


def _look_at_keyring(tenant: Tenant, looked: Looked) -> None:
    """It stands at the last generation under the new master key, and holds no old KEK."""
    keyring = tenant.keyring()
    stands = (keyring["generation"], keyring["master_key"])
    if stands != (len(tenant.api_keys), list(tenant.masters)[-1]):
        looked.opened_by_old.append(f"the keyring of {tenant.project} stands at {stands}")
    for entry in keyring["history"]:
        if entry["kek"] is not None:
            number = entry["generation"]
            looked.opened_by_old.append(f"the keyring of {tenant.project} holds KEK {number}")


def leftovers(deployment: Deployment) -> list[str]:
    """What killed processes left: staged bodies, open multipart uploads, a probe's objects."""
    return [
        *stored_objects.list_keys(deployment, STAGING_PREFIX),
        *stored_objects.list_keys(deployment, DOCTOR_PREFIX),
        *(f"open: {upload['Key']}" for upload in stored_objects.list_multipart_uploads(deployment)),
    ]


def _look_for_leftovers(evidence: Evidence, looked: Looked) -> None:
    looked.left += leftovers(evidence.deployment)
    swept = {asked.request_id for asked in evidence.asked}
    swept |= {signed.request_id for signed in evidence.attacks.signed}
    tenants = [*evidence.tenants.values(), *([evidence.rival] if evidence.rival else [])]
    for sweep_id in sorted(swept):
        for tenant in tenants:
            looked.left += tenant.left(sweep_id)
