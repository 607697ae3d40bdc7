"""The census that an operator drops a master key by: what opens, never labels (SPEC 8.1, 14)."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import new_dek, to_base64
from keyturn.errors import StorageUnavailableError
from keyturn_workers.cli.census import AT_ONCE, take_census
from keyturn_workers.keyring import replace_keyring
from keyturn_workers.objects.operator_keys import OperatorKeys
from keyturn_workers.testing.memory_storage import MemoryStorage
from tests.unit.keyturn_workers.cli.status_bench import Bench, all_plan, bench, done, plan, sweep_id
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    enc,
    keyring,
    sealed_object,
    turned,
    v0_metadata,
)

if TYPE_CHECKING:
    from keyturn_workers.storage import ObjectHead

_FIRST = keyring()
_SECOND = turned(_FIRST)
_OTHER = keyring("other", master_key="m2")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return bench(monkeypatch)


def _objects(told: Any) -> dict[tuple[Any, ...], int]:
    return {
        (row["project"], row["kind"], row["generation"], row["master_key"], row["code"]): row[
            "objects"
        ]
        for row in told["objects"]
    }


def _verdicts(told: Any) -> list[str]:
    return [row["told"] for row in told["master_keys"]]


def test_objects_are_counted_by_project_kind_generation_and_master_key(bucket: Bench) -> None:
    bucket.enroll(_SECOND)
    bucket.enroll(_OTHER)
    bucket.put(_FIRST, "a", "b")
    bucket.put(_SECOND, "c")
    bucket.put(_OTHER, "a")
    bucket.bury(_SECOND, "gone")
    bucket.plant("acme/plain", {})
    bucket.plant("acme/old", v0_metadata(new_dek(), new_dek()))
    bucket.plant("acme/folder/", {})
    bucket.plant("Not A Project/x", {})
    bucket.plant("acme/rot", {"enc-algo": "ROT13"})
    bucket.plant(".keyturn/staging/api/x", {})
    assert _objects(bucket.told()) == {
        (None, "foreign", None, None, None): 1,
        ("acme", "encrypted", 2, "m1", None): 1,
        ("acme", "encrypted", 1, "m1", None): 2,
        ("acme", "foreign", None, None, None): 1,
        ("acme", "plaintext", None, None, None): 1,
        ("acme", "tombstone", None, "m1", None): 1,
        ("acme", "unreadable", None, None, "unknown_algorithm"): 1,
        ("acme", "v0", None, None, None): 1,
        ("other", "encrypted", 1, "m2", None): 1,
    }


def test_a_label_that_names_another_master_key_or_generation_changes_no_count(
    bucket: Bench,
) -> None:
    """By labels m1 would be dropped here, and the object lost with it."""
    ring = replace(_SECOND, master_key="m2")
    bucket.enroll(ring)
    bucket.put(_FIRST, "k", master_key="m2", generation=2, kek_id=ring.current.kek_id)
    told = bucket.told()
    assert _objects(told) == {("acme", "encrypted", 1, "m1", None): 1}
    assert _verdicts(told)[0] == "m1: still needed by 1 object, 0 records"


def test_an_object_whose_keyring_is_gone_needs_its_master_key_all_the_same(bucket: Bench) -> None:
    bucket.enroll(_OTHER)
    bucket.put(_FIRST, "k")
    assert "m1: still needed by 1 object, 0 records" in _verdicts(bucket.told())


def test_a_tombstone_and_records_need_their_master_key(bucket: Bench) -> None:
    bucket.enroll(_OTHER)
    bucket.bury(replace(_OTHER, master_key="m1"), "gone")
    bucket.add(done(1, "other"), done(2, "other"))
    rows = {row["master_key"]: row for row in bucket.told()["master_keys"]}
    assert rows["m1"]["told"] == "m1: still needed by 1 object, 2 records"
    assert (rows["m1"]["keyrings"], rows["m1"]["sweep_records"]) == (0, 2)
    assert (rows["m2"]["keyrings"], rows["m2"]["sweep_records"]) == (1, 0)


def test_a_master_key_may_be_dropped_where_nothing_stands_under_it(bucket: Bench) -> None:
    bucket.enroll(_OTHER)
    bucket.put(_OTHER, "k")
    bucket.add(done(1, "other"), master_key="m2")
    told = bucket.told(ACTIVE_MASTER_KEY="m2")
    assert _verdicts(told) == [
        "m1: 0 objects, 0 records: may be dropped",
        "m2: still needed by 1 object, 2 records",
    ]
    assert [row["may_be_dropped"] for row in told["master_keys"]] == [True, False]
    assert bucket.run().stdout.splitlines()[-2:] == _verdicts(told)


@pytest.mark.parametrize("hindrance", ["active", "running", "object", "record", "keyring"])
def test_what_is_not_known_for_sure_hinders_a_drop(bucket: Bench, hindrance: str) -> None:
    bucket.enroll(_OTHER)
    match hindrance:
        case "running":
            bucket.add(plan(1, "other"), master_key="m2")
        case "object":
            metadata = enc(replace(_wraps("k"), admin=bytes(104)))
            bucket.plant("other/k", metadata)
        case "record":
            bucket.plant(f".keyturn/sweeps/{sweep_id(1)}/other/results/x.json", {})
        case "keyring":
            bucket.plant(".keyturn/keyrings/acme.json", {})
    told = bucket.told(ACTIVE_MASTER_KEY="m1" if hindrance == "active" else "m2")
    row = told["master_keys"][0]
    assert row["told"].startswith("m1: 0 objects, 0 records: may be dropped ")
    assert row["may_be_dropped"] is False


def _wraps(key: str) -> Any:
    return sealed_object(_OTHER.desired(MASTER_KEYS), key)[0]


def test_one_project_is_counted_alone_and_says_nothing_of_dropping(bucket: Bench) -> None:
    bucket.enroll(_FIRST)
    bucket.enroll(keyring("acme-2"))
    bucket.put(_FIRST, "a")
    bucket.put(keyring("acme-2"), "a", "b")
    bucket.add(done(1), done(2, "acme-2"))
    told = bucket.told("acme")
    assert _objects(told) == {("acme", "encrypted", 1, "m1", None): 1}
    assert _verdicts(told) == [
        "m1: 1 object, 2 records of acme",
        "m2: 0 objects, 0 records of acme",
    ]
    assert [row["project"] for row in told["keyrings"] + told["sweeps"]] == ["acme", "acme"]


def test_a_project_without_a_keyring_is_shown_and_exits_1(bucket: Bench) -> None:
    bucket.put(_FIRST, "a")
    result = bucket.run("acme")
    assert (result.exit_code, result.stderr) == (1, "keyturn: unknown_project: acme\n")
    assert "m1: 1 object, 0 records of acme" in result.stdout


def test_without_objects_none_is_looked_at(bucket: Bench) -> None:
    bucket.enroll(_FIRST)
    bucket.put(_FIRST, "a")
    told = bucket.told("--no-objects")
    assert told["objects"] is None
    assert _verdicts(told)[0] == "m1: 1 record; objects were not looked at"
    assert {row["may_be_dropped"] for row in told["master_keys"]} == {None}
    assert bucket.storage.calls["head"] == 0


def test_a_keyring_shows_what_it_allows_and_what_it_still_holds(bucket: Bench) -> None:
    cleared = replace(_FIRST.current, kek=None)
    ring = replace(turned(_SECOND), plaintext_allowed=True, v0_allowed=True)
    bucket.enroll(replace(ring, history=(cleared, ring.history[1])))
    row = bucket.told("--no-objects")["keyrings"][0]
    assert row == {
        "project": "acme",
        "generation": 3,
        "master_key": "m1",
        "plaintext": "allowed",
        "v0": "allowed",
        "earlier_keks": 1,
        "enrolled_at": "2026-11-24T10:00:00Z",
        "turned_at": "2026-11-24T10:00:00Z",
        "code": None,
        "detail": None,
    }


def test_records_that_do_not_open_are_rows_with_their_codes(bucket: Bench) -> None:
    bucket.enroll(_FIRST)
    bucket.enroll(_OTHER)
    bucket.plant(".keyturn/keyrings/zed.json", {}, b"{}")
    bucket.plant(f".keyturn/sweeps/{sweep_id(1)}/acme/sweep.json", {}, b"nothing")
    bucket.plant(f".keyturn/sweeps/{sweep_id(1)}/acme/failures/x.json", {}, b"nothing")
    bucket.master_keys = ("m1",)
    told = bucket.told()
    assert {row["project"]: row["code"] for row in told["keyrings"]} == {
        "acme": None,
        "other": "unknown_master_key",
        "zed": "corrupt_object",
    }
    assert [(row["sweep_id"], row["code"]) for row in told["sweeps"]] == [
        (sweep_id(1), "corrupt_object")
    ]
    assert [row["code"] for row in told["records_that_do_not_open"]] == ["corrupt_object"]
    assert _verdicts(told)[-1] == "m2: not held here, but named by 1 record"
    table = bucket.run("--no-objects").stdout
    for code in ("unknown_master_key", "corrupt_object", "Records that do not open"):
        assert code in table


def test_a_relabelled_keyring_does_not_count_for_the_key_that_it_names(bucket: Bench) -> None:
    bucket.enroll(_FIRST)
    _, body = asyncio.run(bucket.storage.read(".keyturn/keyrings/acme.json"))
    lying = json.loads(body) | {"master_key": "m2"}
    bucket.plant(".keyturn/keyrings/acme.json", {}, json.dumps(lying).encode())
    told = bucket.told()
    assert told["keyrings"][0]["code"] == "corrupt_object"
    assert [row["may_be_dropped"] for row in told["master_keys"]] == [False, False]


def test_a_huge_record_is_not_read(bucket: Bench) -> None:
    bucket.plant(".keyturn/keyrings/acme.json", {}, bytes(17 * 2**20))
    assert bucket.told()["keyrings"][0]["code"] == "corrupt_object"
    assert bucket.storage.calls["read"] == 0


def test_a_keyring_below_its_objects_is_told(bucket: Bench) -> None:
    bucket.enroll(_FIRST)
    bucket.put(_SECOND, "k")
    assert bucket.told()["keyrings"][0]["code"] == "keyring_rolled_back"


def test_a_keyring_that_turned_meanwhile_is_not_taken_for_a_rolled_back_one(bucket: Bench) -> None:
    bucket.enroll(_FIRST)
    bucket.put(_SECOND, "k")

    async def turn() -> None:
        head = await bucket.storage.head(".keyturn/keyrings/acme.json")
        assert await replace_keyring(bucket.storage, _SECOND, head.etag, MASTER_KEYS, lease_s=15)

    bucket.storage.before_next("versioning", turn)
    assert bucket.told()["keyrings"][0]["code"] is None


def test_noncurrent_versions_are_counted_and_need_their_master_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = bench(monkeypatch, MemoryStorage(versioned=True))
    bucket.enroll(_OTHER)
    bucket.put(replace(_OTHER, master_key="m1"), "k")
    bucket.put(_OTHER, "k")
    told = bucket.told()
    assert _objects(told) == {
        ("other", "encrypted", 1, "m2", None): 1,
        ("other", "noncurrent", 1, "m1", None): 1,
    }
    assert _verdicts(told)[0] == ("m1: still needed by 0 objects, 1 noncurrent version, 0 records")


def test_running_sweeps_come_first_and_parts_of_a_sweep_of_all_stay_hidden(
    bucket: Bench,
) -> None:
    bucket.enroll(_FIRST)
    bucket.add(
        plan(1),
        done(2),
        done(3, clean=False),
        plan(4, status="failed", code="keyring_rolled_back", detail="below"),
        all_plan(5),
        plan(5, asked={"of_all": True}),
    )
    shown = [(row["sweep_id"], row["status"], row["clean"]) for row in bucket.told()["sweeps"]]
    assert shown == [
        (sweep_id(5), "running", None),
        (sweep_id(1), "running", None),
        (sweep_id(4), "failed", False),
        (sweep_id(3), "done", False),
        (sweep_id(2), "done", True),
    ]
    assert bucket.told()["sweeps"][2]["code"] == "keyring_rolled_back"
    assert len(bucket.told("acme")["sweeps"]) == 5  # its part, and not the whole


def test_a_table_shows_the_last_sweeps_and_says_that_there_are_more(bucket: Bench) -> None:
    bucket.add(*(done(number) for number in range(25)))
    result = bucket.run("--no-objects")
    assert result.exit_code == 0
    assert sum(sweep_id(0)[:23] in line for line in result.stdout.splitlines()) == 20
    assert "5 more sweeps have ended" in result.stderr
    assert len(bucket.told("--no-objects")["sweeps"]) == 25


def test_no_secret_is_shown(bucket: Bench) -> None:
    bucket.enroll(_SECOND)
    bucket.put(_SECOND, "k")
    secrets = [*MASTER_KEYS.values(), *_SECOND.user_keks.values()]
    for arguments in ((), ("--json",), ("acme",)):
        output = bucket.run(*arguments).output
        for secret in secrets:
            assert to_base64(secret.reveal()) not in output
            assert secret.reveal().hex() not in output


def test_a_storage_that_does_not_answer_makes_no_census(bucket: Bench) -> None:
    bucket.enroll(_FIRST)
    bucket.put(_FIRST, "k")
    bucket.storage.fail_next("head", StorageUnavailableError("no answer"))
    result = bucket.run()
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "keyturn: storage_unavailable: no answer\n"


class _Crowded(MemoryStorage):
    """Knows how many heads are read at once."""

    now_reading = 0
    most = 0

    async def head(self, key: str) -> ObjectHead:
        self.now_reading += 1
        self.most = max(self.most, self.now_reading)
        await asyncio.sleep(0)
        try:
            return await super().head(key)
        finally:
            self.now_reading -= 1


async def test_so_many_objects_are_read_at_once_and_no_more() -> None:
    storage = _Crowded()
    crowd = Bench(storage)
    crowd.put(_FIRST, *(f"k{n}" for n in range(3 * AT_ONCE + 1)))
    found = await take_census(storage, OperatorKeys(MASTER_KEYS), {})
    assert sum(found.values()) == 3 * AT_ONCE + 1
    assert storage.most == AT_ONCE


async def test_an_object_that_goes_between_listing_and_look_is_not_counted() -> None:
    storage = MemoryStorage()
    Bench(storage).put(_FIRST, "a", "b")

    async def go() -> None:
        await storage.delete("acme/a")

    storage.before_next("head", go)
    found = await take_census(storage, OperatorKeys(MASTER_KEYS), {})
    assert sum(found.values()) == 1


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MemoryStorage()
    Bench(storage).put(_FIRST, *(f"k{n}" for n in range(AT_ONCE + 2)))
    terminal = _Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    found = await take_census(storage, OperatorKeys(MASTER_KEYS), {})
    assert found == Counter({next(iter(found)): AT_ONCE + 2})
    assert "census: acme" in terminal.getvalue()
    assert "66/66" in terminal.getvalue()
