"""Checks of the bucket and of secrecy, with boto3 and the specified formats only (`tools.harness`).

The bucket is read once, in threads; the violations of all checks are collected in one report.

Then no key and no plaintext may be where SPEC 13 forbids them. Searched for are the canary of all
plaintexts, API keys, user, admin and record KEKs, master keys, seeds, every object's DEK, and the
transport key of every published message, as bytes and in the usual encodings.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final

from botocore.exceptions import ClientError

from keyturn.crypto import (
    BODY_CONTEXT,
    SealError,
    admin_kek,
    composite_kek,
    from_base64,
    kek_id,
    open_sealed,
    record_kek,
    session_info,
    upload_info,
    user_kek,
)
from keyturn.errors import EvidenceError
from keyturn.identifiers import STAGING_PREFIX, object_s3_key
from keyturn.metadata import encode_caller_metadata
from keyturn.topology import PUBLISHER_HEADER
from tools.chaos.drop_checks import stored_uploads
from tools.chaos.evidence import stored_ids
from tools.chaos.plan import plaintext
from tools.harness import stored_objects
from tools.harness.bucket import Bucket, unwrap_data_key
from tools.harness.canaries import Canaries, encodings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from keyturn.crypto import Kek, Role
    from tools.chaos.evidence import Evidence
    from tools.chaos.key_outages import CustomerSecret
    from tools.chaos.plan import Upload
    from tools.harness.deployment import Deployment
    from tools.harness.tenants import Tenant

# What a worker logs and publishes of a request that it served (SPEC 15.3).
_AUDIT_RECORD: Final = {"audit record": b'"action":"request.served"'}
# The broker's password is on its own disk, so it is not searched there; no log may show it.
_NOT_ON_DISK = ("broker's password",)
_LOOKED_FOR_BYTES = 12
# grep reads one pattern per line, and a NUL ends a pattern in some modes.
_NOT_IN_A_PATTERN = re.compile(rb"[\n\0]")
_AT_LEAST_BYTES = 8

DOCTOR_PREFIX = ".keyturn/doctor/"
_THREADS = 8
# Statuses of grep.
_FOUND, _NOTHING = 0, 1


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
    """A project's KEKs at the end of a run: those of each generation, the last ones current.

    With a customer key they are composites, and no plain one may open anything either.
    """

    current: dict[Role, Kek]
    label: str
    former: list[tuple[str, Role, Kek]]

    @classmethod
    def of(cls, tenant: Tenant, secrets: Sequence[CustomerSecret | None] = ()) -> _Keys:
        project, last = tenant.project, secrets[-1] if secrets else None
        users = [user_kek(api_key, project) for api_key in tenant.api_keys]
        admins = [admin_kek(master, project) for master in tenant.masters.values()]
        roles: tuple[tuple[Role, list[Kek]], ...] = ("user", users), ("admin", admins)
        known = {each.secret_id: each for each in secrets if each is not None}
        current: dict[Role, Kek] = {}
        former: list[tuple[str, Role, Kek]] = []
        for secret, (role, keks) in product([None, *known.values()], roles):
            for number, plain in enumerate(keks, start=1):
                kek, name = plain, f"{role} key {number}"
                if secret is not None:
                    kek = composite_kek(plain, secret.value, role, project, secret.secret_id)
                    name += f" with secret {secret.secret_id}"
                if secret == last and number == len(keks):
                    current[role] = kek
                else:
                    former.append((name, role, kek))
        label = f"{len(users)}:{kek_id(users[-1])}"
        return cls(current, label if last is None else f"{label}:{last.secret_id}", former)


def inspect_bucket(evidence: Evidence) -> BucketReport:
    """Check every object that must exist, and find what must not exist."""
    report = BucketReport()
    stored = stored_ids(evidence)
    existing = {
        object_s3_key(upload.project, upload.key): upload
        for upload in evidence.plan.load.uploads
        if upload.upload_id in stored
    } | stored_uploads(evidence.written, evidence.drop_state)
    keys = {
        name: _Keys.of(tenant, evidence.customer_secrets.get(name, ()))
        for name, tenant in evidence.tenants.items()
    }
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
    old = [kek for _, role, kek in _Keys.of(rival).former if role == "admin"]
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
    generation = len(tenant.api_keys)

    def dek_by(kek: Kek, role: Role, at: int = generation) -> bytes | None:
        return unwrap_data_key(metadata, kek, role, upload.project, upload.key, at)

    by_user, by_admin = (dek_by(keys.current[role], role) for role in ("user", "admin"))
    for name, dek in (("user's", by_user), ("operator's", by_admin)):
        assert dek is not None, f"the {name} current key does not open its wrap"
        sent = plaintext(evidence.plan.seed, upload)
        assert open_sealed(dek, BODY_CONTEXT, body) == sent, f"wrong plaintext with the {name} key"
        report.deks[s3_key] = dek
    labels = {
        "enc-kek-user": keys.label,
        "enc-kek-admin": list(evidence.masters)[-1],
        "enc-upload": upload.upload_id,
    }
    assert labels.items() <= metadata.items(), f"labels {metadata}, not {labels}"
    _check_caller_metadata(evidence, upload, s3_key, metadata, answer["ContentType"])
    report.opened_by_old += [
        f"{s3_key}: {name} opens its wrap"
        for at in range(1, generation + 1)
        for name, role, kek in keys.former
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


def all_secrets(evidence: Evidence, report: BucketReport) -> dict[str, bytes]:
    """All secrets by name."""
    found = dict(Canaries.of(evidence.deployment).secrets)
    if evidence.source_buckets is not None:
        found["ingest's seed"] = evidence.source_buckets.seed
    found |= {f"master key {name}": key for name, key in evidence.masters.items()}
    for project, tenant in evidence.tenants.items():
        for number, api_key in enumerate(tenant.api_keys, start=1):
            found[f"API key {number} of {project}"] = api_key.encode()
            found[f"user KEK {number} of {project}"] = user_kek(api_key, project).reveal()
        for name, master in evidence.masters.items():
            found[f"operator's KEK {name} of {project}"] = admin_kek(master, project).reveal()
            found[f"record KEK {name} of {project}"] = record_kek(master, project).reveal()
    for project, secrets in evidence.customer_secrets.items():
        known = {each.secret_id: each.value for each in secrets if each is not None}
        found |= {f"customer secret {name} of {project}": s.reveal() for name, s in known.items()}
        keys = _Keys.of(evidence.tenants[project], secrets)
        found |= {
            f"current {role} KEK of {project}": k.reveal() for role, k in keys.current.items()
        }
    found |= {f"DEK of {s3_key}": dek for s3_key, dek in report.deks.items()}
    return found | _transport_keys(evidence)


def _transport_keys(evidence: Evidence) -> dict[str, bytes]:
    """The transport key of each message and the secret of its session, opened as a worker would."""
    found, intake = {}, evidence.deployment.intake
    for upload in evidence.plan.load.uploads:
        if upload.flaw is not None:
            continue
        info = upload_info(upload.upload_id, upload.project, upload.key)
        for number, signed in enumerate(evidence.sent.get(upload.upload_id, ()), start=1):
            sealed = json.loads(signed.body)["sealed_key"]
            of_session = session_info(evidence.deployment.name, signed.headers[PUBLISHER_HEADER])
            session = intake.open(from_base64(sealed["session"]), of_session)
            key = open_sealed(session, info, from_base64(sealed["ciphertext"]))
            found[f"transport key {number} of {upload.upload_id}"] = key
            found[f"secret of the session {sealed['session'][:16]}"] = session
    return found


def leaks(evidence: Evidence, report: BucketReport) -> list[str]:
    """No secret is in any log, in any metrics scrape, or on the broker's disk."""
    secrets = all_secrets(evidence, report)
    on_disk = {name: secret for name, secret in secrets.items() if name not in _NOT_ON_DISK}
    found = [
        f"{leak} of {place}"
        for place, looked_for in (("logs", secrets), ("metrics", secrets), ("disk", on_disk))
        for leak in scan_folder(evidence.folder / place, looked_for)
    ]
    evidence.counts["secrets searched for"] = len(secrets)
    evidence.counts["searched, MiB"] = {
        place: round(size_bytes(evidence.folder / place) / 1024**2, 1)
        for place in ("logs", "metrics", "disk")
    }
    return found + _check_scan_works(evidence)


def _check_scan_works(evidence: Evidence) -> list[str]:
    """The scan must find what does occur there; otherwise it proves nothing.

    That is upload ids, and records of the audit trail: an enrollment makes one.
    """
    ids = {upload.upload_id: upload.upload_id.encode() for upload in evidence.plan.load.uploads}
    return [
        f"the scan does not work: it finds no {what} in {place}"
        for what, present in (("upload id", ids), ("audit record", _AUDIT_RECORD))
        for place in ("logs", "disk")
        if not scan_folder(evidence.folder / place, present)
    ]


def patterns(secret: bytes) -> set[bytes]:
    """Patterns, at least one of which occurs in a file that contains the secret."""
    start = secret[:_LOOKED_FOR_BYTES]
    # Inside a longer base64 text a group of three may begin at its second or third byte.
    inside = (secret[shift : shift + _LOOKED_FOR_BYTES] for shift in (1, 2))
    texts = encodings(start)
    found = {text.encode(code) for text in texts for code in ("latin-1", "utf-8")} - {start}
    for part in inside:
        found |= {base64.b64encode(part), base64.urlsafe_b64encode(part)}
    raw = _plain_part(secret)
    found = {text for text in found if not _NOT_IN_A_PATTERN.search(text)}
    # grep cannot find a pattern with a newline, neither raw nor as UTF-8.
    return found | ({raw, raw.decode("latin-1").encode()} if raw else set())


def _plain_part(secret: bytes) -> bytes | None:
    """The longest part that can be a pattern; shorter if the secret has newlines."""
    longest = max(_NOT_IN_A_PATTERN.split(secret), key=len)
    return longest[:_LOOKED_FOR_BYTES] if len(longest) >= _AT_LEAST_BYTES else None


def scan_folder(folder: Path, secrets: Mapping[str, bytes]) -> list[str]:
    """The secrets that occur in the files of a folder: `NAME in FILE`, without duplicates.

    Raises:
        RuntimeError: grep failed.
    """
    names: dict[bytes, str] = {}
    for name, secret in secrets.items():
        for pattern in patterns(secret):
            names.setdefault(pattern, name)
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"\n".join(names))
        file.flush()
        done = subprocess.run(
            ["grep", "--fixed-strings", "--recursive", "--text", "--only-matching", "--null",
             "--with-filename", "--file", file.name, "."],
            cwd=folder,
            env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )  # fmt: skip
    if done.returncode not in {_FOUND, _NOTHING}:
        raise RuntimeError(f"grep failed: {done.stderr[:200]!r}")
    lines = {tuple(line.split(b"\0", 1)) for line in done.stdout.split(b"\n") if line}
    return sorted(
        {f"{names.get(what, '?')} in {Path(os.fsdecode(where))}" for where, what in lines}
    )


def size_bytes(folder: Path) -> int:
    """The total size of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
