"""No report holds a key, a wrap or a DEK, whatever the view (SPEC 13, 16.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest

from keyturn.crypto import admin_kek, record_kek
from keyturn.evidence import sign
from keyturn.identifiers import evidence_s3_key
from keyturn.messages import StatusView, encode
from keyturn_workers.sweep.record import Failure
from tests.unit.keyturn.evidence.shared import statement
from tests.unit.keyturn_workers.cli.status_bucket import done, record, round_id, sweep_id
from tests.unit.keyturn_workers.factories import MASTER_KEYS, V0_USER_KEK, keyring, rotated
from tests.unit.keyturn_workers.status.bucket import DEPLOYMENT, EVENT_KEY, Bucket
from tools.harness.canaries import encodings
from tools.harness.memory_storage import MemoryStorage

_RING = replace(rotated(rotated(keyring())), v0_kek=V0_USER_KEK, v0_allowed=True)


async def _bucket() -> Bucket:
    bucket = Bucket(MemoryStorage(versioned=True))
    await bucket.enroll(_RING)
    await bucket.add(record(done(1, clean=False)))
    failures = (Failure("k", "no_usable_wrap"),)
    await bucket.store.add_failures("acme", round_id(1), 0, failures, "m1")
    bucket.put(_RING, "a")
    bucket.put(_RING, "a")
    bucket.put(_RING, "forged", generation=9)
    fields: dict[str, Any] = {"sweep_id": sweep_id(1), "generation": 3}
    envelope = sign(statement(deployment=DEPLOYMENT, **fields), EVENT_KEY)
    bucket.plant(evidence_s3_key("acme", 3, sweep_id(1)), {}, envelope)
    return bucket


async def _secrets(bucket: Bucket) -> dict[str, bytes]:
    entries = (*_RING.history, _RING.current)
    found = {f"KEK {each.generation}": each.kek.reveal() for each in entries if each.kek}
    found |= {name: key.reveal() for name, key in MASTER_KEYS.items()}
    found["v0 KEK"] = V0_USER_KEK.reveal()
    for name, key in MASTER_KEYS.items():
        found[f"admin KEK {name}"] = admin_kek(key.reveal(), "acme").reveal()
        found[f"record KEK {name}"] = record_kek(key.reveal(), "acme").reveal()
    for s3_key in ("acme/a", "acme/forged"):
        metadata = (await bucket.storage.head(s3_key)).metadata
        for name in ("enc-dek-user", "enc-dek-admin"):
            found[f"{name} {s3_key}"] = metadata[name].encode()
    _, record = await bucket.storage.read(".keyturn/keyrings/acme.json")
    found["sealed keyring"] = record.partition(b'"sealed": "')[2]
    return found


_OF_THE_BUCKET = get_args(StatusView)[:7]


@pytest.mark.parametrize("view", _OF_THE_BUCKET)
async def test_no_report_holds_a_secret(view: StatusView) -> None:
    bucket = await _bucket()
    secrets = await _secrets(bucket)
    assert len(secrets) == 3 + 2 + 1 + 4 + 4 + 1
    needs_sweep = {"sweep_id": sweep_id(1)} if view in ("sweep", "failures") else {}
    project = "*" if view in ("master_keys", "projects") else "acme"
    reported = await bucket.report(view, project, **needs_sweep)
    assert reported.code is None
    report = encode(reported).decode()
    shown = {name for name, value in secrets.items() for text in encodings(value) if text in report}
    assert shown == set()
