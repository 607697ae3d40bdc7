"""Where a master key rotation is: a step is done only when something shows it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from keyturn_workers.console.model.rows import Census, MasterKeyRow, SweepRow, WorkerRow
from keyturn_workers.console.sweeps.key_rotation import KeyUse, key_rotation, key_use

_AT = datetime(2026, 11, 26, 10, tzinfo=UTC)
_OLD = MasterKeyRow("m1", is_held=True, provider="local", projects=2)
_NEW = MasterKeyRow("m2", is_held=True, provider="local", active=True)
_SWEPT = SweepRow(
    sweep_id="2f6c9a0e-0000-4000-8000-000000000001",
    project="*",
    status="done",
    clean=True,
    master_key="m2",
    ended_at=_AT,
)
_COUNTED = Census(started_at=_AT, ended_at=_AT)


def _worker(active: str = "m2", keys: tuple[str, ...] = ("m1", "m2")) -> WorkerRow:
    return WorkerRow(
        worker_id="2f6c9a0e-0000-4000-8000-000000000009",
        roles=("control",),
        host=f"host-{active}",
        version="0.9.0",
        started_at=_AT,
        interval_s=15.0,
        is_stopping=False,
        lease_s=15,
        is_clock_known=True,
        active_master_key=active,
        master_keys=keys,
        event_keys=(),
        intake_keys=(),
        queues=(),
        as_of=_AT,
    )


def _states(*args: object) -> list[str]:
    keys, workers, sweeps, census = args
    return [step.state for step in key_rotation(keys, workers, sweeps, census).steps]  # type: ignore[arg-type]


def test_with_one_key_the_first_step_is_next() -> None:
    only = MasterKeyRow("m1", is_held=True, active=True, projects=2)
    assert _states([only], [_worker("m1", ("m1",))], [], None) == ["next", *["later"] * 4]
    assert not key_rotation([only], [], [], None).is_under_way


def test_the_steps_are_done_one_after_the_other() -> None:
    workers = [_worker()]
    not_yet = [_OLD, replace(_NEW, active=False)]
    assert _states(not_yet, workers, [], None)[:2] == ["done", "next"]
    assert _states([_OLD, _NEW], workers, [], None)[:3] == ["done", "done", "next"]
    moved = replace(_OLD, projects=0)
    assert _states([moved, _NEW], workers, [_SWEPT], None)[2:] == ["done", "next", "later"]
    unused = replace(moved, safe_to_drop=True)
    assert _states([unused, _NEW], workers, [_SWEPT], _COUNTED)[3:] == ["done", "next"]


def test_a_second_key_that_nothing_is_under_yet_is_to_be_made_active() -> None:
    active, spare = replace(_OLD, active=True), replace(_NEW, active=False)
    rotation = key_rotation([active, spare], [_worker("m1")], [], _COUNTED)
    assert [step.state for step in rotation.steps][:2] == ["done", "next"]
    assert "no project under it: m2" in rotation.steps[1].detail
    assert not rotation.is_under_way


def test_workers_that_disagree_about_the_active_key_are_named() -> None:
    rotation = key_rotation([_OLD, _NEW], [_worker(), _worker("m1", ("m1",))], [], None)
    assert rotation.steps[1].state == "next"
    assert "m1, m2" in rotation.steps[1].detail
    assert "host-m1" in rotation.steps[0].detail


def test_a_sweep_that_is_not_clean_or_to_another_key_moves_nothing() -> None:
    moved = replace(_OLD, projects=0, counts={"encrypted": 5})
    for sweep in (
        replace(_SWEPT, clean=False),
        replace(_SWEPT, master_key="m1"),
        replace(_SWEPT, master_key=None),
    ):
        assert _states([moved, _NEW], [_worker()], [sweep], None)[2] == "next"


def test_a_project_under_the_old_key_keeps_the_sweep_open() -> None:
    assert _states([_OLD, _NEW], [_worker()], [_SWEPT], None)[2] == "next"


def test_the_count_names_the_keys_that_are_still_in_use() -> None:
    moved = replace(_OLD, projects=0, safe_to_drop=False)
    step = key_rotation([moved, _NEW], [_worker()], [_SWEPT], _COUNTED).steps[3]
    assert step.state == "next"
    assert step.detail.endswith("not certain: m1.")


def test_what_depends_on_a_key_is_summed_by_kind() -> None:
    counts = {"encrypted": 5, "tombstone": 1, "noncurrent": 2, "keyring": 3, "sweep_record": 4}
    assert key_use(counts) == KeyUse(objects=6, noncurrent=2, records=7)
    assert key_use(None) == KeyUse(None, None, None)
