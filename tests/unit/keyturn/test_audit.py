"""What is missing, changed, moved or forged in an audit trail is found, and nothing else (15.3)."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any
from uuid import uuid4

import pytest

from keyturn import audit
from keyturn.audit import AuditChains, Checked, Problem
from keyturn.crypto import EventVerifier, SigningKey, VerifyKey
from keyturn.messages import AuditRecorded, body_digest, encode_audit
from tools.generate.examples import audit_records, compact, events

KEY = SigningKey.from_seed(b"e" * 32)
OLD_KEY = SigningKey.from_seed(b"o" * 32)
DEPLOYMENT = "test"
_EXAMPLE: dict[str, Any] = audit_records()["audit.recorded"]["served"]
Signed = tuple[bytes, str, str]


def sign(body: bytes, key: SigningKey = KEY) -> Signed:
    return body, key.sign_event(DEPLOYMENT, body), key.id


def chain(count: int, process: str | None = None, **fields: Any) -> list[Signed]:
    """The first records of one process."""
    process, previous, made = process or str(uuid4()), None, []
    for counter in range(1, count + 1):
        place = {"process": process, "counter": counter, "previous": previous}
        body = encode_audit(AuditRecorded.model_validate(_EXAMPLE | fields | place))
        previous = body_digest(body)
        made.append(sign(body))
    return made


def chains_of(**options: bool) -> AuditChains:
    keys = [VerifyKey.from_bytes(key.public_bytes) for key in (KEY, OLD_KEY)]
    return AuditChains(EventVerifier(DEPLOYMENT, keys), **options)


def check(records: list[Signed], **options: bool) -> list[Checked]:
    chains = chains_of(**options)
    return [chains.add(*record) for record in records]


def problems(records: list[Signed], **options: bool) -> list[Problem]:
    return [finding.problem for each in check(records, **options) for finding in each.findings]


def test_a_whole_trail_of_several_processes_has_no_finding() -> None:
    one, other = chain(4), chain(3)
    records = [one[0], other[0], one[1], one[2], other[1], other[2], one[3]]
    chains = chains_of(is_whole=True)
    for record in records:
        checked = chains.add(*record)
        assert checked.record is not None
        assert not checked.findings
    assert [(c.first, c.last, c.records) for c in chains.chains] == [(1, 4, 4), (1, 3, 3)]


@pytest.mark.parametrize("removed", [1, 2, 3])
def test_a_removed_record_leaves_a_gap(removed: int) -> None:
    records = chain(5)
    del records[removed]
    checked = check(records)
    (finding,) = [finding for each in checked for finding in each.findings]
    assert finding.problem is Problem.MISSING
    assert f"record {removed + 1} is missing before record {removed + 2}" in str(finding)


def test_several_removed_records_are_one_gap() -> None:
    records = chain(9)
    del records[2:6]
    (finding,) = [f for each in check(records) for f in each.findings]
    assert finding.detail == "records 3 to 6 are missing before record 7"
    assert finding.counter == 7


def test_a_chain_may_begin_late_unless_the_trail_is_whole() -> None:
    """A stream drops its oldest records, for their age or its size."""
    records = chain(5)[2:]
    assert problems(records) == []
    assert problems(records, is_whole=True) == [Problem.MISSING]
    chains = chains_of()
    chains.add(*records[0])
    assert chains.chains[0].first == 3


@pytest.mark.parametrize("order", [o for o in permutations(range(4)) if o != (0, 1, 2, 3)])
def test_reordered_records_are_noticed(order: tuple[int, ...]) -> None:
    records = chain(4)
    assert problems([records[number] for number in order]) != []


def test_a_late_record_is_out_of_order() -> None:
    records = chain(3)
    found = problems([records[0], records[2], records[1]])
    assert found == [Problem.MISSING, Problem.OUT_OF_ORDER]


def test_the_same_record_twice_is_no_finding() -> None:
    """Delivery is at least once."""
    records = chain(4)
    again = [*records[:3], records[1], records[2], records[3], records[0]]
    assert problems(again) == []
    assert [each.is_repeated for each in check(again)] == [False] * 3 + [True] * 2 + [False, True]


def test_a_changed_record_is_forged() -> None:
    records = chain(3)
    body, signature, key_id = records[1]
    records[1] = (body.replace(b"Kim Doe", b"Sam Roe"), signature, key_id)
    assert body != records[1][0]
    assert problems(records) == [Problem.FORGED, Problem.MISSING]


def test_a_record_signed_for_another_deployment_is_forged() -> None:
    body = chain(1)[0][0]
    assert problems([(body, KEY.sign_event("other", body), KEY.id)]) == [Problem.FORGED]
    assert problems([(body, "", "")]) == [Problem.FORGED]


def test_records_of_an_earlier_event_key_verify() -> None:
    body = chain(1)[0][0]
    assert problems([sign(body, OLD_KEY)]) == []


def test_a_second_record_with_the_same_counter_is_a_change() -> None:
    """Only who holds the event key can make one."""
    process = str(uuid4())
    records, others = chain(3, process), chain(3, process, outcome="bad_seal")
    assert problems([*records, others[2]]) == [Problem.CHANGED]
    assert problems([*records[:2], others[2]]) == [Problem.CHANGED]
    same_place = json.loads(records[2][0]) | {"outcome": "bad_seal"}
    assert problems([*records, sign(compact(same_place))]) == [Problem.CHANGED]


def test_a_genuine_event_is_no_record() -> None:
    event = compact(next(iter(events()["upload.stored"].values())))
    (checked,) = check([sign(event)])
    assert [finding.problem for finding in checked.findings] == [Problem.UNREADABLE]
    assert checked.link is None


def test_a_record_of_a_later_version_keeps_its_place() -> None:
    first, second, third = (json.loads(record[0]) for record in chain(3))
    second["action"] = "object.teleported"
    body = compact(second)
    third["previous"] = body_digest(body)
    checked = check([sign(compact(first)), sign(body), sign(compact(third))])
    # The first one's bytes are others than those that the second names, so that too is noticed.
    assert checked[1].record is None
    assert checked[1].link is not None
    assert checked[2].findings == ()


def test_gaps_of_a_filtered_trail_mean_nothing() -> None:
    records = chain(6)
    kept = [records[1], records[2], records[5]]
    assert problems(kept, is_filtered=True, is_whole=True) == []
    assert problems([records[5], records[2]], is_filtered=True) == [Problem.OUT_OF_ORDER]
    changed = chain(3, json.loads(records[0][0])["process"], outcome="bad_seal")[2]
    assert problems([records[1], changed], is_filtered=True) == [Problem.CHANGED]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "REMEMBERED", 3)
    records = chain(6)
    assert problems([*records, records[5]]) == []
    # What was forgotten cannot be told from a record that was moved here.
    assert problems([*records, records[0]]) == [Problem.OUT_OF_ORDER]


def test_a_finding_is_one_line() -> None:
    records = chain(3)
    del records[1]
    (finding,) = [f for each in check(records) for f in each.findings]
    process = json.loads(records[0][0])["process"]
    assert str(finding) == (f"MISSING: record 2 is missing before record 3 (process {process})")
