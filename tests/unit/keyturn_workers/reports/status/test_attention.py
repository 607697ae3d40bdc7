"""What needs a person: each rule fires when it should, and only then (SPEC 16.1)."""

from __future__ import annotations

from typing import Any

import pytest

from keyturn.messages import (
    CodeCount,
    CustomerKeyStatus,
    MasterKeyStatus,
    Progress,
    ProjectStatus,
    QueueStatus,
    SweepStatus,
    WorkerStatus,
)
from keyturn_workers.reports.status import attention
from keyturn_workers.reports.status.attention import Facts, ago, find_attention, listed
from keyturn_workers.reports.status.workers import WorkerBook
from tests.unit.keyturn_workers.reports.status.messages import Clock, at, text, uid, worker

DAY = 86400


def _workers(*reports: Any) -> dict[str, tuple[WorkerStatus, ...]]:
    book = WorkerBook(Clock(0))
    for report in reports:
        book.apply(report)
    return {"workers": book.rows()}


def _queue(growth: Any = (), **fields: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"queue": "keyturn.upload", "depth": 9, "consumers": 1}
    return {"queues": (QueueStatus(**(values | fields)),), "depths": lambda _: growth}


def _dead(code: str, queue: str = "keyturn.upload.dead", count: int = 2) -> dict[str, Any]:
    return {"dead_codes": (CodeCount(queue=queue, code=code, count=count),)}


def _project(**fields: Any) -> dict[str, Any]:
    return {"projects": (ProjectStatus(project="acme", **fields),)}


def _sweep(**fields: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "sweep_id": uid(1),
        "project": "acme",
        "kind": "rotation",
        "status": "running",
        "started_at": text(-4000),
    }
    return {"sweeps": (SweepStatus(**(values | fields)),)}


def _of_all(**fields: Any) -> dict[str, Any]:
    values = {"project": "*", "kind": "sweep", "status": "failed", "ended_at": text(-5)}
    return _sweep(**(values | {"clean": False} | fields))


def _master_key(**fields: Any) -> dict[str, Any]:
    row = MasterKeyStatus(master_key="old", provider="local", active=False, **fields)
    return {"master_keys": (row,)}


_GROWING = ((at(-300), 3), (at(-150), 5), (at(0), 9))
_SHRINKING = ((at(-300), 20), (at(-150), 12), (at(0), 9))
_CLOCKLESS = [worker(seconds, is_clock_known=False) for seconds in (-400, -15)]
_ERASED = {"erased_at": text(-DAY)}
_WAITS = Progress(phase="rewrapping", waits_for_key="customer_key_refused")


def _waiting(code: str | None, project: str = "acme", **fields: Any) -> ProjectStatus:
    since = None if code is None else text(-7200)
    key = CustomerKeyStatus(store="kms", key="k", code=code, since=since)
    return ProjectStatus(project=project, customer_key=key, **fields)


_KEPT = {"earlier_keks": 1, "rotated_at": text(-2 * DAY)}

_CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("queue_unserved", "act", _queue(consumers=0), _queue()),
    ("queue_unserved", "act", _queue(consumers=0), _queue(depth=0, consumers=0)),
    (
        "backlog_grows",
        "soon",
        _queue(_GROWING, oldest_s=400.0),
        _queue(_SHRINKING, oldest_s=400.0),
    ),
    ("backlog_grows", "soon", _queue(_GROWING, oldest_s=400.0), _queue(_GROWING, oldest_s=10.0)),
    ("workers_missing", "act", _workers(worker(-60)), _workers(worker(-30))),
    ("workers_missing", "soon", _workers(worker(-60), worker(0, 2)), {}),
    (
        "workers_differ",
        "info",
        _workers(worker(0), worker(0, 2, version="0.8.0")),
        _workers(worker(0), worker(0, 2)),
    ),
    (
        "workers_differ",
        "soon",
        _workers(
            worker(0, started_at=text(-7200)), worker(0, 2, lease_s=30, started_at=text(-3600))
        ),
        _workers(worker(0), worker(0, 2, lease_s=30, is_stopping=True)),
    ),
    (
        "workers_differ",
        "info",
        _workers(worker(0), worker(0, 2, event_keys=("e2", "e1"))),
        _workers(worker(0)),
    ),
    ("workers_differ", "info", _workers(worker(0), worker(0, 2, active_master_key="b")), {}),
    ("workers_differ", "info", _workers(worker(0), worker(0, 2, master_keys=("a", "b"))), {}),
    ("clock_unknown", "soon", _workers(*_CLOCKLESS), _workers(*_CLOCKLESS[1:])),
    (
        "dead_letters",
        "soon",
        _dead("already_exists"),
        _dead("bad_signature", "keyturn.unsigned.dead"),
    ),
    ("unsigned_messages", "soon", {"unsigned_depth": 2}, {"unsigned_depth": 0}),
    ("audit_gap", "act", {"audit_findings": {4: ("MISSING: record 3",)}}, {}),
    ("sources_unread", "soon", {"unread": {"queues": "the broker is away"}}, {}),
    ("index_cut", "info", {"is_complete": False}, {}),
    ("keyrings_broken", "act", _project(code="corrupt_object"), _project()),
    ("keyrings_contradicted", "act", _project(mark="rolled_back"), _project(mark="current")),
    ("keyrings_contradicted", "act", _project(mark="removed"), _project()),
    ("keyrings_contradicted", "act", _project(mark="unknown"), _project(mark="unmarked")),
    (
        "sweeps_not_clean",
        "act",
        _project(last_end_sweep=uid(1), last_end_clean=False),
        _project(last_end_sweep=uid(1), last_end_clean=True),
    ),
    (
        "sweeps_not_clean",
        "act",
        _project(last_end_sweep=uid(1), last_end_clean=False),
        _project(last_end_sweep=uid(1), last_end_clean=False, **_ERASED),
    ),
    *(
        ("customer_keys_missing", "act", {"projects": (_waiting(code),)}, quiet)
        for code in ("customer_key_refused", "customer_key_unavailable")
        for quiet in ({"projects": (_waiting(None),)}, _project())
    ),
    ("sweeps_not_clean", "act", _of_all(), _of_all(clean=True, status="done")),
    ("sweeps_not_clean", "act", _of_all(status="done"), _of_all(ended_at=None, status="running")),
    (
        "rotations_slow",
        "soon",
        _sweep(stepped_at=text(-5)),
        _sweep(started_at=text(-3000), stepped_at=text(-5)),
    ),
    (
        "sweeps_stuck",
        "act",
        _sweep(kind="sweep", stepped_at=text(-1000)),
        _sweep(kind="sweep", stepped_at=text(-5)),
    ),
    # Its earlier key still opens objects, so a rotation that waits is slow.
    (
        "rotations_slow",
        "soon",
        _sweep(waits_for_round=True),
        _sweep(kind="sweep", waits_for_round=True),
    ),
    ("sweeps_stuck", "act", _sweep(), _sweep(status="done")),
    # What waits for a customer key has an item of its own.
    ("sweeps_stuck", "act", _sweep(), _sweep(progress=_WAITS)),
    ("rotations_slow", "soon", _sweep(stepped_at=text(-5)), _sweep(progress=_WAITS)),
    ("earlier_keys_kept", "soon", _project(**_KEPT), _project(**_KEPT, running_sweeps=(uid(1),))),
    (
        "earlier_keys_kept",
        "soon",
        _project(**_KEPT),
        _project(earlier_keks=1, rotated_at=text(-3600)),
    ),
    (
        "keys_old",
        "info",
        _project(key_since=text(-366 * DAY)),
        _project(key_since=text(-364 * DAY)),
    ),
    (
        "keys_old",
        "info",
        _project(key_since=text(-366 * DAY)),
        _project(key_since=text(-366 * DAY), **_ERASED),
    ),
    ("master_keys_unusable", "act", _master_key(code="kms_unavailable"), _master_key()),
]


@pytest.mark.parametrize(("rule", "severity", "fires", "quiet"), _CASES)
def test_a_rule_fires_when_it_should_and_only_then(
    rule: str, severity: str, fires: dict[str, Any], quiet: dict[str, Any]
) -> None:
    (item,) = find_attention(Facts(now=at(0), **fires))
    assert (item.rule, item.severity) == (rule, severity)
    assert item.title
    assert item.remedy
    assert rule not in {each.rule for each in find_attention(Facts(now=at(0), **quiet))}


def test_every_rule_is_held_by_a_case() -> None:
    fired = {
        item.rule for _, _, fires, _ in _CASES for item in find_attention(Facts(now=at(0), **fires))
    }
    assert fired == {rule for rule, *_ in _CASES}
    assert len(attention.RULES) == len(fired) - 1  # one of them finds what is stuck, or slow


def test_the_most_urgent_comes_first() -> None:
    facts = Facts(
        now=at(0), unsigned_depth=1, is_complete=False, **_queue(consumers=0), **_project()
    )
    assert [item.severity for item in find_attention(facts)] == ["act", "soon", "info"]


@pytest.mark.parametrize(
    ("facts", "link"),
    [
        (_project(code="corrupt_object"), {"page": "project", "project": "acme"}),
        (
            {"projects": [_waiting("customer_key_refused", name) for name in ("a", "b")]},
            {"page": "projects", "filter": {"state": "waits_for_key"}},
        ),
        (
            {"projects": [ProjectStatus(project=name, mark="removed") for name in ("a", "b")]},
            {"page": "projects", "filter": {"state": "attention"}},
        ),
        (_sweep(), {"page": "sweep", "project": "acme", "sweep_id": uid(1)}),
        (
            {"sweeps": [*_sweep()["sweeps"], *_sweep(project="b")["sweeps"]]},
            {"page": "sweeps", "filter": {"state": "running"}},
        ),
        (
            _dead("already_exists"),
            {
                "page": "dead_letters",
                "filter": {"code": "already_exists", "queue": "keyturn.upload.dead"},
            },
        ),
        (_dead("made_up"), {"page": "dead_letters", "filter": {"queue": "keyturn.upload.dead"}}),
    ],
)
def test_an_item_links_to_what_shows_it(facts: dict[str, Any], link: dict[str, Any]) -> None:
    (item,) = find_attention(Facts(now=at(0), **facts))
    assert item.link.model_dump(exclude_none=True) == link


@pytest.mark.parametrize(
    ("queue", "role"),
    [
        ("keyturn.upload", "upload"),
        ("keyturn.control", "control"),
        ("keyturn.plan", "sweep"),
        ("keyturn.sweep", "sweep"),
    ],
)
def test_an_unserved_queue_names_the_worker_that_consumes_it(queue: str, role: str) -> None:
    items = find_attention(Facts(**_queue(queue=queue, consumers=0)))
    assert [each.command for each in items] == [f"keyturn worker {role}"]


def test_many_projects_are_one_item_and_a_few_have_their_own() -> None:
    many = [
        ProjectStatus(project=f"p{n}", last_end_sweep=uid(n), last_end_clean=False)
        for n in range(9)
    ]
    (item,) = find_attention(Facts(now=at(0), projects=many))
    assert "9 projects" in item.title
    assert "and 4 more" in item.detail
    assert len(find_attention(Facts(now=at(0), projects=many[:3]))) == 3


@pytest.mark.parametrize(
    ("code", "words", "remedy"),
    [
        ("customer_key_refused", "gives no secret", "Ask the customer whether this was intended"),
        ("customer_key_unavailable", "did not respond", "KEYTURN_CUSTOMER_KEY_STORES"),
    ],
)
def test_a_project_that_waits_for_its_key_says_for_which_how_long_and_what_to_do(
    code: str, words: str, remedy: str
) -> None:
    (item,) = find_attention(Facts(now=at(0), projects=(_waiting(code),)))
    assert item.title == f"1 project waits for its customer key: {code}"
    assert item.detail.startswith("acme (store kms): ")
    assert words in item.detail
    assert "2 hours" in item.detail
    assert remedy in item.remedy


def test_an_erasure_that_makes_no_progress_is_called_one() -> None:
    (item,) = find_attention(Facts(now=at(0), **_sweep(kind="erasure")))
    assert item.title.startswith("1 erasure without progress")


def test_letters_of_invented_codes_are_one_item() -> None:
    counts = [CodeCount(queue="keyturn.upload.dead", code=f"c{n}", count=1) for n in range(9)]
    (item,) = find_attention(Facts(now=at(0), dead_codes=counts))
    assert item.title == "9 dead letters: other codes"
    assert item.detail == "No code, or one that this version does not know."


def test_letters_without_their_body_can_only_be_discarded() -> None:
    for code, remedy in (("already_exists", "Then discard them."), ("bad_seal", "Then replay or")):
        (item,) = find_attention(Facts(now=at(0), **_dead(code)))
        assert remedy in item.remedy


def test_the_remedy_of_one_letter_names_one() -> None:
    (item,) = find_attention(Facts(now=at(0), **_dead("already_exists", count=1)))
    assert item.remedy == "Use a new object key. Then discard the letter."


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 seconds"), (119, "119 seconds"), (120, "2 minutes"), (2 * DAY, "2 days")],
)
def test_lengths_of_time_are_words(seconds: float, words: str) -> None:
    assert ago(at(seconds) - at(0)) == words


def test_names_are_listed_up_to_a_few() -> None:
    assert listed("abcde") == "a, b, c, d, e"
    assert listed("abcdefg") == "a, b, c, d, e and 2 more"
