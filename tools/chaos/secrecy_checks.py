"""Checks of secrecy: no key and no plaintext where SPEC 13 forbids them.

They search for the canary of all plaintexts, API keys, user, admin and record KEKs, master keys,
seeds, every object's DEK, and the transport key of every published message.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from keyturn.crypto import admin_kek, from_base64, record_kek, upload_info, user_kek
from tools.chaos import secret_scan
from tools.harness.canaries import Canaries

if TYPE_CHECKING:
    from tools.chaos.bucket_checks import BucketReport
    from tools.chaos.evidence import Evidence

# What a worker logs and publishes of a request that it served (SPEC 15.3).
_AUDIT_RECORD: Final = {"audit record": b'"action":"request.served"'}
# The broker's password is on its own disk, so it is not searched there; no log may show it.
_NOT_ON_DISK = ("broker's password",)


def all_secrets(evidence: Evidence, report: BucketReport) -> dict[str, bytes]:
    """All secrets by name."""
    found = dict(Canaries.of(evidence.deployment).secrets)
    found |= {f"master key {name}": key for name, key in evidence.masters.items()}
    for project, tenant in evidence.tenants.items():
        for number, api_key in enumerate(tenant.api_keys, start=1):
            found[f"API key {number} of {project}"] = api_key.encode()
            found[f"user KEK {number} of {project}"] = user_kek(api_key, project).reveal()
        for name, master in evidence.masters.items():
            found[f"operator's KEK {name} of {project}"] = admin_kek(master, project).reveal()
            found[f"record KEK {name} of {project}"] = record_kek(master, project).reveal()
    found |= {f"DEK of {s3_key}": dek for s3_key, dek in report.deks.items()}
    return found | _transport_keys(evidence)


def _transport_keys(evidence: Evidence) -> dict[str, bytes]:
    """The transport key of each message, opened as a worker would."""
    found = {}
    for upload in evidence.plan.load.uploads:
        if upload.flaw is not None:
            continue
        info = upload_info(upload.upload_id, upload.project, upload.key)
        for number, signed in enumerate(evidence.sent.get(upload.upload_id, ()), start=1):
            sealed = from_base64(json.loads(signed.body)["sealed_key"]["ciphertext"])
            name = f"transport key {number} of {upload.upload_id}"
            found[name] = evidence.deployment.intake.open(sealed, info)
    return found


def leaks(evidence: Evidence, report: BucketReport) -> list[str]:
    """No secret is in any log, in any metrics scrape, or on the broker's disk."""
    secrets = all_secrets(evidence, report)
    on_disk = {name: secret for name, secret in secrets.items() if name not in _NOT_ON_DISK}
    found = [
        f"{leak} of {place}"
        for place, looked_for in (("logs", secrets), ("metrics", secrets), ("disk", on_disk))
        for leak in secret_scan.scan_folder(evidence.folder / place, looked_for)
    ]
    evidence.counts["secrets searched for"] = len(secrets)
    evidence.counts["searched, MiB"] = {
        place: round(secret_scan.size_bytes(evidence.folder / place) / 1024**2, 1)
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
        if not secret_scan.scan_folder(evidence.folder / place, present)
    ]
