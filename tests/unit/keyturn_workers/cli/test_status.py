"""`keyturn status`: what each master key opens, never what labels claim (SPEC 8.1, 14)."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import SigningKey, customer_secret_id, new_customer_secret, to_base64
from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import keyring_s3_key
from keyturn_workers.cli import reports, status
from keyturn_workers.core.erasure import Erasure, KeyState
from keyturn_workers.core.keyring import retire_old_keys
from keyturn_workers.core.keyring_erasure import erase
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_record import KeyWait
from keyturn_workers.keys.keyring.marks import MarkTable
from keyturn_workers.keys.keyring.store import replace_keyring
from tests.unit.keyturn_workers.cli.status_bucket import Bench, bench
from tests.unit.keyturn_workers.factories import (
    AT,
    MASTER_KEYS,
    enc,
    keyring,
    rotated,
    sealed_object,
    turned_to,
)
from tests.unit.keyturn_workers.reports.status.bucket import (
    BEGIN,
    all_record,
    done,
    failed,
    origin,
    part,
    record,
    round_id,
    sweep_id,
)
from tests.unit.keyturn_workers.witness import mark_of
from tools.harness.local_keys import build_keyring, desired_state, operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_FIRST = keyring()
_SECOND = rotated(_FIRST)
_OTHER = keyring("other", master_key="m2")
_NOT_ENROLLED = (
    "keyturn: unknown_project: acme is not enrolled; to enroll it: keyturn enroll acme\n"
)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return bench(monkeypatch)


def _objects(report: Any) -> dict[tuple[Any, ...], int]:
    return {
        (row["project"], row["kind"], row["generation"], row["master_key"], row["code"]): row[
            "objects"
        ]
        for row in report["objects"]
    }


def _key_usage(report: Any) -> list[str]:
    return [row["told"] for row in report["master_keys"]]


def test_objects_are_counted_by_project_kind_generation_and_master_key(bucket: Bench) -> None:
    bucket.enroll(_SECOND)
    bucket.enroll(_OTHER)
    bucket.put(_FIRST, "a", "b")
    bucket.put(_SECOND, "c")
    bucket.put(_OTHER, "a")
    bucket.delete(_SECOND, "gone")
    bucket.plant("acme/plain", {})
    bucket.plant("acme/old", {"enc-algo": "AES-256-GCM", "enc-dek-user": "AAAA"})
    bucket.plant("acme/folder/", {})
    bucket.plant("Not A Project/x", {})
    bucket.plant("acme/rot", {"enc-algo": "ROT13"})
    bucket.plant(".keyturn/staging/api/x", {})
    assert _objects(bucket.json()) == {
        (None, "foreign", None, None, None): 1,
        ("acme", "encrypted", 2, "m1", None): 1,
        ("acme", "encrypted", 1, "m1", None): 2,
        ("acme", "foreign", None, None, None): 1,
        ("acme", "plaintext", None, None, None): 1,
        ("acme", "tombstone", None, "m1", None): 1,
        ("acme", "unreadable", None, None, "unknown_algorithm"): 2,
        ("other", "encrypted", 1, "m2", None): 1,
    }


def test_a_forged_label_changes_no_count(
    bucket: Bench,
) -> None:
    """By labels m1 would be safe to drop, and the object would be lost with it."""
    ring = replace(_SECOND, master_key="m2")
    bucket.enroll(ring)
    bucket.put(_FIRST, "k", master_key="m2", generation=2, kek_id=ring.current.kek_id)
    report = bucket.json()
    assert _objects(report) == {("acme", "encrypted", 1, "m1", None): 1}
    assert _key_usage(report)[0] == "m1: in use by 1 object, 0 records"


def test_an_object_without_a_keyring_still_needs_its_master_key(bucket: Bench) -> None:
    bucket.enroll(_OTHER)
    bucket.put(_FIRST, "k")
    assert "m1: in use by 1 object, 0 records" in _key_usage(bucket.json())


def test_a_tombstone_and_records_need_their_master_key(bucket: Bench) -> None:
    bucket.enroll(_OTHER)
    bucket.delete(replace(_OTHER, master_key="m1"), "gone")
    bucket.add(record(done(1), project="other"), record(done(1)))
    rows = {row["master_key"]: row for row in bucket.json()["master_keys"]}
    assert rows["m1"]["told"] == "m1: in use by 1 object, 2 records"
    assert (rows["m1"]["keyrings"], rows["m1"]["sweep_records"]) == (0, 2)
    assert (rows["m2"]["keyrings"], rows["m2"]["sweep_records"]) == (1, 0)


def test_a_master_key_that_nothing_uses_is_safe_to_drop(bucket: Bench) -> None:
    bucket.enroll(_OTHER)
    bucket.put(_OTHER, "k")
    bucket.add(record(done(1), done(2), project="other"), master_key="m2")
    report = bucket.json(ACTIVE_MASTER_KEY="m2")
    assert _key_usage(report) == [
        "m1: safe to drop: no object and no record uses it",
        "m2: in use by 1 object, 2 records",
    ]
    assert [row["may_be_dropped"] for row in report["master_keys"]] == [True, False]
    assert bucket.run().stdout.splitlines()[-2:] == _key_usage(report)


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        ("active", "it is the active master key"),
        ("running", "1 sweep is still running"),
        ("object", "1 object cannot be opened with any available key"),
        ("record", "1 record cannot be opened with any available key"),
        ("keyring", "1 record cannot be opened with any available key"),
    ],
)
def test_a_key_is_not_safe_to_drop_while_anything_is_uncertain(
    bucket: Bench, obstacle: str, reason: str
) -> None:
    bucket.enroll(_OTHER)
    match obstacle:
        case "running":
            bucket.add(record(done(1), origin(2), project="other"), master_key="m2")
        case "object":
            metadata = enc(replace(_wraps("k"), admin=bytes(104)))
            bucket.plant("other/k", metadata)
        case "record":
            bucket.plant(f".keyturn/sweeps/other/{round_id(1)}/results/x.json", {})
        case "keyring":
            bucket.plant(".keyturn/keyrings/acme.json", {})
    report = bucket.json(ACTIVE_MASTER_KEY="m1" if obstacle == "active" else "m2")
    row = report["master_keys"][0]
    assert row["told"] == f"m1: not safe to drop: {reason}"
    assert row["may_be_dropped"] is False


def _wraps(key: str) -> Any:
    return sealed_object(desired_state(_OTHER, MASTER_KEYS), key)[0]


def test_the_report_of_one_project_makes_no_claim_about_dropping_a_key(bucket: Bench) -> None:
    bucket.enroll(_FIRST)
    bucket.enroll(keyring("acme-2"))
    bucket.put(_FIRST, "a")
    bucket.put(keyring("acme-2"), "a", "b")
    bucket.add(record(done(1)), record(done(2), project="acme-2"))
    report = bucket.json("acme")
    assert _objects(report) == {("acme", "encrypted", 1, "m1", None): 1}
    assert _key_usage(report) == [
        "m1: 1 object, 2 records in acme",
        "m2: 0 objects, 0 records in acme",
    ]
    assert [row["project"] for row in report["keyrings"] + report["sweeps"]] == ["acme", "acme"]


def test_a_project_without_a_keyring_is_shown_and_exits_1(bucket: Bench) -> None:
    bucket.put(_FIRST, "a")
    result = bucket.run("acme")
    assert result.exit_code == 1
    assert result.stderr.endswith(_NOT_ENROLLED)
    assert "m1: 1 object, 0 records in acme" in result.stdout


def test_no_objects_inspects_no_object(bucket: Bench) -> None:
    bucket.enroll(_FIRST)
    bucket.put(_FIRST, "a")
    report = bucket.json("--no-objects")
    assert report["objects"] is None
    assert _key_usage(report)[0] == "m1: 1 record uses it; objects were not counted"
    assert {row["may_be_dropped"] for row in report["master_keys"]} == {None}
    assert bucket.storage.calls["head"] == 0


def test_a_keyring_shows_its_permissions_and_its_earlier_keks(bucket: Bench) -> None:
    cleared = replace(_FIRST.current, kek=None)
    ring = replace(rotated(_SECOND), plaintext_allowed=True)
    ring = replace(ring, history=(cleared, ring.history[1]), evidence="ab" * 32)
    bucket.enroll(ring)
    row = bucket.json("--no-objects")["keyrings"][0]
    assert row == {
        "project": "acme",
        "generation": 3,
        "kek_id": ring.current.kek_id,
        "master_key": "m1",
        "plaintext": "allowed",
        "earlier_keks": 1,
        "enrolled_at": "2026-11-24T10:00:00Z",
        "rotated_at": "2026-11-24T10:00:00Z",
        "evidence": "ab" * 32,
        "customer_key": None,
        "customer_key_code": None,
        "erased_at": None,
        "mark": None,
        "code": None,
        "detail": None,
    }


def test_a_customer_key_is_named_and_what_it_hides_keeps_every_master_key(bucket: Bench) -> None:
    """The command asks no store: it cannot know which master key such an object needs."""
    secret = new_customer_secret()
    ring = turned_to(_FIRST, secret, "acme-key")
    bucket.customer_keys.secrets[customer_secret_id(secret)] = secret
    assert "customer" not in bucket.run().stdout
    bucket.enroll(ring)
    bucket.put(ring, "k")
    assert _key_usage(bucket.json())[1] == (
        "m2: not safe to drop: 1 object cannot be opened with any available key"
    )
    wait = KeyWait("customer_key_refused", "disabled", BEGIN)
    bucket.add(record(origin(1), key_wait=wait))
    report = bucket.json()
    (row,) = report["keyrings"]
    shown = (row["customer_key"], row["customer_key_code"])
    assert shown == ("kms/acme-key", "customer_key_refused")
    assert _objects(report) == {("acme", "unreadable", None, None, "customer_key_unavailable"): 1}
    assert "kms/acme-key" in bucket.run("--no-objects").stdout
    detailed = bucket.run(sweep_id(1)).stdout
    assert "waiting for the customer key (customer_key_refused)" in detailed


def test_an_erased_project_says_when_its_stores_were_last_asked(bucket: Bench) -> None:
    secret = new_customer_secret()
    bucket.customer_keys.secrets[customer_secret_id(secret)] = secret
    ring = retire_old_keys(turned_to(_FIRST, secret, "acme-key"))
    bucket.put(ring, "k")
    bucket.enroll(_OTHER)
    assert "erased_at" not in bucket.run("--no-objects").stdout
    erasing = Erasure(sweep_id(1), "ops", "ab" * 32, AT, AT, "the end", "cd" * 32)
    states = {key.secret_id: KeyState.MISSING for key in ring.customer_keys.values()}
    bucket.enroll(erase(ring, erasing.with_answers(states, BEGIN + timedelta(hours=1))))
    report = bucket.json()
    assert [row["erased_at"] for row in report["keyrings"]] == ["2026-11-24T11:00:00Z", None]
    assert _objects(report) == {("acme", "erased", None, None, None): 1}
    assert "2026-11-24T11:00:00Z" in bucket.run("acme", "--no-objects").stdout


def test_the_newest_evidence_of_one_project_is_named_in_full(bucket: Bench) -> None:
    bucket.enroll(replace(_FIRST, evidence="ab" * 32))
    bucket.enroll(_OTHER)
    arguments = ("--no-objects",)
    assert f"Newest evidence: {'ab' * 32}" in bucket.run("acme", *arguments).stdout.splitlines()
    assert "Newest evidence: none" in bucket.run("other", *arguments).stdout.splitlines()
    assert "ab" * 32 not in bucket.run(*arguments).stdout


def test_records_that_do_not_open_are_rows_with_their_codes(bucket: Bench) -> None:
    bucket.enroll(_FIRST)
    bucket.enroll(_OTHER)
    bucket.plant(".keyturn/keyrings/zed.json", {}, b"{}")
    bucket.add(record(done(1)))
    folder = f".keyturn/sweeps/acme/{round_id(1)}/failures"
    bucket.plant(".keyturn/sweeps/other.json", {}, b"nothing")
    bucket.plant(f"{folder}/x.json", {}, b"nothing")
    bucket.master_keys = ("m1",)
    report = bucket.json()
    assert {row["project"]: row["code"] for row in report["keyrings"]} == {
        "acme": None,
        "other": "unknown_master_key",
        "zed": "corrupt_object",
    }
    assert [(row["sweep_id"], row["code"]) for row in report["sweeps"]] == [(sweep_id(1), None)]
    assert [(row["record"], row["code"]) for row in report["records_that_do_not_open"]] == [
        (f"{folder}/x.json", "corrupt_object"),
        (".keyturn/sweeps/other.json", "corrupt_object"),
    ]
    assert _key_usage(report)[-1] == "m2: missing from KEYTURN_MASTER_KEYS, but named by 1 record"
    table = bucket.run("--no-objects").stdout
    for code in ("unknown_master_key", "corrupt_object", "Unreadable records"):
        assert code in table


def test_only_some_of_many_planted_records_are_shown_and_all_of_them_count(
    bucket: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "_MAX_FAILING", 2)
    for number in range(3):
        planted = f".keyturn/sweeps/acme/{round_id(1)}/failures/{number}.json"
        bucket.plant(planted, {}, b"nothing")
    report = bucket.json()
    assert [row["record"][-6] for row in report["records_that_do_not_open"]] == ["0", "1"]
    assert _key_usage(report)[0].endswith("3 records cannot be opened with any available key")


def test_a_storage_outage_fails_the_report(bucket: Bench) -> None:
    bucket.enroll(_FIRST)
    bucket.storage.fail_next("read", StorageUnavailableError("no answer"))
    assert bucket.run().stderr.endswith("keyturn: storage_unavailable: no answer\n")


def test_a_relabeled_keyring_does_not_count_for_the_key_that_it_names(bucket: Bench) -> None:
    bucket.enroll(_FIRST)
    _, body = asyncio.run(bucket.storage.read(".keyturn/keyrings/acme.json"))
    forged = json.loads(body) | {"master_key": "m2"}
    bucket.plant(".keyturn/keyrings/acme.json", {}, json.dumps(forged).encode())
    report = bucket.json()
    assert report["keyrings"][0]["code"] == "corrupt_object"
    assert [row["may_be_dropped"] for row in report["master_keys"]] == [False, False]


def test_a_huge_record_is_not_read(bucket: Bench) -> None:
    bucket.plant(".keyturn/keyrings/acme.json", {}, bytes(17 * 2**20))
    assert bucket.json()["keyrings"][0]["code"] == "corrupt_object"
    assert bucket.storage.calls["read"] == 0


def test_a_keyring_older_than_its_objects_is_marked(bucket: Bench) -> None:
    bucket.enroll(_FIRST)
    bucket.put(_SECOND, "k")
    assert bucket.json()["keyrings"][0]["code"] == "keyring_rolled_back"


def test_a_keyring_rotated_during_the_census_is_not_marked(bucket: Bench) -> None:
    bucket.enroll(_FIRST)
    bucket.put(_SECOND, "k")

    async def rotate() -> None:
        head = await bucket.storage.head(".keyturn/keyrings/acme.json")
        assert await replace_keyring(
            bucket.storage, _SECOND, head.etag, operator_keys(MASTER_KEYS), lease_s=15
        )

    bucket.storage.before_next("versioning", rotate)
    assert bucket.json()["keyrings"][0]["code"] is None


def test_noncurrent_versions_are_counted_and_need_their_master_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = bench(monkeypatch, MemoryStorage(versioned=True))
    bucket.enroll(_OTHER)
    bucket.put(replace(_OTHER, master_key="m1"), "k")
    bucket.put(_OTHER, "k")
    report = bucket.json()
    assert _objects(report) == {
        ("other", "encrypted", 1, "m2", None): 1,
        ("other", "noncurrent", 1, "m1", None): 1,
    }
    assert _key_usage(report)[0] == ("m1: in use by 0 objects, 1 noncurrent version, 0 records")


def test_running_sweeps_come_first_and_parts_of_a_sweep_of_all_stay_hidden(
    bucket: Bench,
) -> None:
    bucket.enroll(_FIRST)
    bucket.add(
        record(
            origin(1),
            done(2),
            done(3, clean=False),
            failed(4, "keyring_rolled_back", "below"),
            part(5),
        ),
        all_record(origin(5)),
    )
    shown = [(row["sweep_id"], row["status"], row["clean"]) for row in bucket.json()["sweeps"]]
    assert shown == [
        (sweep_id(5), "running", None),
        (sweep_id(1), "running", None),
        (sweep_id(4), "failed", False),
        (sweep_id(3), "done", False),
        (sweep_id(2), "done", True),
    ]
    assert bucket.json()["sweeps"][2]["code"] == "keyring_rolled_back"
    assert len(bucket.json("acme")["sweeps"]) == 5  # its part, and not the whole


def test_a_table_shows_the_last_sweeps_and_says_how_many_are_hidden(bucket: Bench) -> None:
    bucket.add(record(*map(done, range(25))))
    result = bucket.run("--no-objects")
    assert result.exit_code == 0
    assert sum(sweep_id(0)[:23] in line for line in result.stdout.splitlines()) == 20
    assert "5 older sweeps are not shown" in result.stderr
    assert len(bucket.json("--no-objects")["sweeps"]) == 25


def test_no_secret_is_shown(bucket: Bench) -> None:
    bucket.enroll(_SECOND)
    bucket.put(_SECOND, "k")
    secrets = [*MASTER_KEYS.values(), *_SECOND.user_keks.values()]
    for arguments in ((), ("--json",), ("acme",)):
        output = bucket.run(*arguments).output
        for secret in secrets:
            assert to_base64(secret.reveal()) not in output
            assert secret.reveal().hex() not in output


def test_a_storage_outage_fails_the_census(bucket: Bench) -> None:
    bucket.enroll(_FIRST)
    bucket.put(_FIRST, "k")
    bucket.storage.fail_next("head", StorageUnavailableError("no answer"))
    result = bucket.run()
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith("keyturn: storage_unavailable: no answer\n")


def _give_marks(monkeypatch: pytest.MonkeyPatch, bucket: Bench) -> dict[str, bytes]:
    """Give each keyring in the bucket its mark; returns their bodies."""
    keys = [SigningKey.from_seed(bytes([number]) * 32).verify_key() for number in (1, 2)]
    table = MarkTable()
    bodies: dict[str, bytes] = {}
    for project in ("acme", "other", "third"):
        body = asyncio.run(bucket.storage.read(keyring_s3_key(project)))[1]
        table.receive(project, mark_of(body, project))
        bodies[project] = body
    stream = SimpleNamespace(
        table=table,
        signed_before={"other": keys[1].id},
        is_current=True,
        check_current=lambda _project: None,
    )

    @asynccontextmanager
    async def opened(*_: object) -> AsyncIterator[Any]:
        yield stream

    settings = SimpleNamespace(read=lambda: SimpleNamespace(event_public_key=tuple(keys)))
    monkeypatch.setattr(status, "AuditReaderSettings", settings)
    monkeypatch.setattr(status, "open_marks", opened)
    return bodies


def test_keyrings_that_their_marks_contradict_come_first(
    bucket: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ring in (_FIRST, _OTHER, keyring("third")):
        bucket.enroll(ring)
    before = bucket.run("--no-objects")
    assert "keyrings were not compared with their marks" in before.stderr
    _give_marks(monkeypatch, bucket)
    assert "Act now" not in bucket.run("--no-objects").stdout
    older = build_keyring(replace(_OTHER, serial=0), MASTER_KEYS)
    bucket.storage.plant(keyring_s3_key("other"), older, Headers({}))
    asyncio.run(bucket.storage.delete(keyring_s3_key("third")))
    shown = bucket.run("--no-objects")
    assert shown.stdout.startswith("Act now\n")
    assert "keyturn recover other" in shown.stdout
    assert "keyturn enroll third --adopt" in shown.stdout
    assert shown.stderr == ""
    report = bucket.json("--no-objects")
    assert [(row["project"], row["state"]) for row in report["act_now"]] == [
        ("other", "rolled_back"),
        ("third", "removed"),
    ]
    assert [row["mark"] for row in report["keyrings"]] == ["current", "rolled_back"]
    one = bucket.json("third", "--no-objects")
    assert [row["state"] for row in one["act_now"]] == ["removed"]


def test_the_event_keys_that_marks_still_need_are_shown(
    bucket: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ring in (_FIRST, _OTHER, keyring("third")):
        bucket.enroll(ring)
    _give_marks(monkeypatch, bucket)
    counts = bucket.json("--no-objects")["marks_by_event_key"]
    assert list(counts.values()) == [2, 1]
    assert all(key in bucket.run("--no-objects").stdout for key in counts)
