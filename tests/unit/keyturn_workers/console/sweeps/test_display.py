"""A sweep in words: its state is never its color alone, and unknown numbers are not zero."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from keyturn.messages import COUNT_FIELDS
from keyturn_workers.console.model.rows import SweepCounts, SweepRow
from keyturn_workers.console.sweeps import display

_ROW = SweepRow(sweep_id="2f6c9a0e-0000-4000-8000-000000000001", project="acme")
_COUNTS = SweepCounts(objects=10, current=4, plaintext=1, deleted=2, failed=1, noncurrent_stale=3)


@pytest.mark.parametrize(
    ("change", "kind", "word"),
    [
        ({"status": "requested"}, "off", "requested"),
        ({"status": "running"}, "busy", "running"),
        ({"status": "rejected"}, "bad", "refused"),
        ({"status": "failed"}, "bad", "stopped"),
        ({"status": "done", "clean": True}, "ok", "clean"),
        ({"status": "done", "clean": False, "counts": _COUNTS}, "warn", "1 failed"),
        ({"status": "done", "clean": False}, "warn", "not clean"),
        ({"status": "done", "dry_run": True}, "ok", "counted"),
        ({"status": "done", "dry_run": True, "counts": _COUNTS}, "warn", "counted, 1 failing"),
    ],
)
def test_states(change: dict[str, Any], kind: str, word: str) -> None:
    assert display.state_badge(replace(_ROW, **change)) == display.Badge(kind, word)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "rotation"}, "Rotation"),
        ({"dry_run": True, "master_key": "m2"}, "Dry run"),
        ({"master_key": "m2"}, "Master key sweep"),
        ({}, "Sweep"),
    ],
)
def test_kinds(change: dict[str, Any], words: str) -> None:
    assert display.kind_words(replace(_ROW, **change)) == words


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, display.Progress("not counted yet")),
        ({"objects_done": 5.5}, display.Progress("6 objects done")),
        (
            {"objects_done": 5.0, "expected_objects": 20},
            display.Progress("25 %, 5 of 20 objects", 5.0, 20.0),
        ),
        (
            # The project has grown since it was counted.
            {"objects_done": 30.0, "expected_objects": 20},
            display.Progress("100 %, 20 of 20 objects", 20.0, 20.0),
        ),
        ({"project": "*"}, display.Progress("not counted yet")),
        ({"project": "*", "parts_ended": 3}, display.Progress("3 projects done")),
        ({"status": "done"}, display.Progress("—")),
        ({"status": "done", "counts": _COUNTS}, display.Progress("10 objects")),
    ],
)
def test_progress(change: dict[str, Any], expected: display.Progress) -> None:
    assert display.progress(replace(_ROW, **change)) == expected


def test_the_pace_is_that_of_a_running_sweep() -> None:
    row = replace(_ROW, rate_per_s=120.0, left_s=90.0)
    assert display.pace(row) == "120 objects/s, 1 min 30 s left"
    assert display.pace(replace(row, left_s=None)) == "120 objects/s"
    assert not display.pace(replace(row, status="done"))
    assert not display.pace(_ROW)


def test_each_count_has_its_meaning() -> None:
    rows = display.counts(replace(_ROW, counts=_COUNTS))
    assert tuple(row.name for row in rows) == COUNT_FIELDS
    assert all(row.meaning for row in rows)
    assert [row.value for row in rows] == [10, 0, 4, 1, 0, 2, 0, 1, 3]
    assert display.counts(_ROW) == ()


def test_a_dry_run_says_what_a_sweep_for_real_would_change() -> None:
    row = replace(_ROW, status="done", dry_run=True, counts=_COUNTS)
    assert display.change(row) == display.Change(to_change=2, failing=1, stale_versions=3)
    assert display.change(replace(row, dry_run=False)) is None
    assert display.change(replace(row, status="running")) is None


def test_all_projects_have_a_segment_that_no_project_can_have() -> None:
    assert display.project_of_segment("_all") == "*"
    assert display.project_of_segment("acme") == "acme"
    for hostile in ("*", "..", "a/b", "Acme", "", "a" * 64):
        assert display.project_of_segment(hostile) is None
    assert display.sweep_path("*", "id") == "/sweeps/_all/id"
    assert display.project_words("*") == "all projects"
    assert display.project_words("acme") == "acme"


def test_options_are_phrases() -> None:
    row = replace(_ROW, dry_run=True, master_key="m2", encrypt_plaintext=True, repair=True)
    assert len(display.options_words(row)) == 4
    assert display.options_words(_ROW) == ()
