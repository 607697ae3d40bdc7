"""A sweep in words: its state is never its color alone, and unknown numbers are not zero."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from keyturn.messages import COUNT_FIELDS
from keyturn_workers.console.model.rows import SweepCounts, SweepRow, SweepView
from keyturn_workers.console.web import sweep_words

_ROW = SweepRow(sweep_id="2f6c9a0e-0000-4000-8000-000000000001", project="acme")
_COUNTS = SweepCounts(objects=10, current=4, plaintext=1, deleted=2, failed=1, noncurrent_stale=3)


@pytest.mark.parametrize(
    ("change", "kind", "word"),
    [
        ({"status": "requested"}, "off", "Requested"),
        ({"status": "running"}, "busy", "Running"),
        ({"status": "rejected"}, "bad", "Refused"),
        ({"status": "failed"}, "bad", "Stopped"),
        ({"status": "done", "clean": True}, "ok", "Clean"),
        ({"status": "done", "clean": False, "counts": _COUNTS}, "warn", "Not clean, 1 failed"),
        ({"status": "done", "clean": False}, "warn", "Not clean"),
    ],
)
def test_states(change: dict[str, Any], kind: str, word: str) -> None:
    assert sweep_words.state_badge(replace(_ROW, **change)) == sweep_words.Badge(kind, word)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "rotation"}, "Rotation"),
        ({"master_key": "m2"}, "Master key sweep"),
        ({}, "Sweep"),
    ],
)
def test_kinds(change: dict[str, Any], words: str) -> None:
    assert sweep_words.kind_words(replace(_ROW, **change)) == words


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, sweep_words.Progress("not counted yet")),
        ({"objects_done": 5.5}, sweep_words.Progress("6 objects done")),
        (
            {"objects_done": 5.0, "expected_objects": 20},
            sweep_words.Progress("25 %, 5 of 20 objects", 5.0, 20.0),
        ),
        (
            # The project has grown since it was counted.
            {"objects_done": 30.0, "expected_objects": 20},
            sweep_words.Progress("100 %, 20 of 20 objects", 20.0, 20.0),
        ),
        ({"project": "*"}, sweep_words.Progress("not counted yet")),
        ({"project": "*", "parts_ended": 3}, sweep_words.Progress("3 projects done")),
        ({"status": "done"}, sweep_words.Progress("—")),
        ({"status": "done", "counts": _COUNTS}, sweep_words.Progress("10 objects")),
    ],
)
def test_progress(change: dict[str, Any], expected: sweep_words.Progress) -> None:
    assert sweep_words.progress(replace(_ROW, **change)) == expected


def test_the_pace_is_that_of_a_running_sweep() -> None:
    row = replace(_ROW, rate_per_s=120.0, left_s=90.0)
    assert sweep_words.pace(row) == "120 objects/s, 1 min 30 s left"
    assert sweep_words.pace(replace(row, left_s=None)) == "120 objects/s"
    assert not sweep_words.pace(replace(row, status="done"))
    assert not sweep_words.pace(_ROW)


def test_each_count_has_its_meaning() -> None:
    rows = sweep_words.counts(replace(_ROW, counts=_COUNTS))
    assert tuple(row.name for row in rows) == COUNT_FIELDS
    assert all(row.meaning for row in rows)
    assert [row.value for row in rows] == [10, 0, 4, 1, 0, 2, 0, 1, 3]
    assert sweep_words.counts(_ROW) == ()


def test_a_sweep_of_all_shows_what_its_parts_have_done() -> None:
    done = SweepRow(sweep_id="id", project="acme", status="done", counts=_COUNTS)
    going = SweepRow(sweep_id="id", project="zoo", status="running", counts=_COUNTS)
    whole = replace(_ROW, project="*", parts_ended=0, counts=SweepCounts())
    row = sweep_words.with_parts(SweepView(whole, parts=(done, going)))
    assert row.parts_ended == 1
    assert row.counts is not None
    assert (row.counts.objects, row.counts.failed) == (20, 2)
    ended = replace(whole, status="done", counts=_COUNTS)
    assert sweep_words.with_parts(SweepView(ended, parts=(done, going))) == ended
    assert sweep_words.with_parts(SweepView(whole)) == whole


def test_all_projects_have_a_segment_that_no_project_can_have() -> None:
    assert sweep_words.project_of_segment("_all") == "*"
    assert sweep_words.project_of_segment("acme") == "acme"
    for hostile in ("*", "..", "a/b", "Acme", "", "a" * 64):
        assert sweep_words.project_of_segment(hostile) is None
    assert sweep_words.sweep_path("*", "id") == "/sweeps/_all/id"
    assert sweep_words.project_words("*") == "all projects"
    assert sweep_words.project_words("acme") == "acme"


def test_options_are_phrases() -> None:
    row = replace(_ROW, master_key="m2", encrypt_plaintext=True, repair=True)
    assert len(sweep_words.options_words(row)) == 3
    assert sweep_words.options_words(_ROW) == ()
