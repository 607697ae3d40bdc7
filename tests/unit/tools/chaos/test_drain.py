"""The profile `load`: its arithmetic, and its checks of a complete run."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from keyturn.identifiers import is_object_key, is_uuid
from tools.chaos.drain import Uploads, _arguments, count_events
from tools.chaos.drained import Drained, DrainError, Outcome, Sample, paced, steady_per_s

_DONE = Outcome(
    uploads=10, stored=10, reported=10, reported_again=0, other_events=0, waiting=0, dead=0
)
_DEPLOYED = Drained("deploy", 2, 1.0, _DONE, peak_mib=1.0, times=2, created=10)


def _samples(depths: list[int], rss: list[int]) -> list[Sample]:
    """One worker, a sample a second."""
    return [
        Sample(n, depth, (held,)) for n, (depth, held) in enumerate(zip(depths, rss, strict=True))
    ]


def test_uploads_are_equal_in_every_process_and_differ_between_runs() -> None:
    one, same, other = Uploads("a", 3, 100), Uploads("a", 3, 100), Uploads("b", 3, 100)
    for of in (Uploads.key, Uploads.upload_id, Uploads.body):
        assert of(one, 1) == of(same, 1) != of(other, 1)
    assert len({one.body(number) for number in range(3)}) == 3
    assert len(one.body(0)) == 100
    assert is_object_key(one.key(0))
    assert is_uuid(one.upload_id(0))


def test_a_drain_is_summarized_by_tenths_of_its_objects() -> None:
    # Twice as fast in its second half.
    depths = [1000 - 50 * n for n in range(11)] + [500 - 100 * n for n in range(1, 6)]
    found = paced(_samples(depths, [100, 100, 120, *[132] * 13]))
    assert found.tenths_per_s == (50.0,) * 5 + (100.0,) * 5
    assert found.steady == 2.0


def test_the_rate_is_of_the_middle_of_a_drain() -> None:
    """Ten a second, but for the first and the last two."""
    moments = [0.0, 5.0, *(10 + n / 10 for n in range(6)), 20.0, 30.0]
    begin = datetime(2026, 11, 29, tzinfo=UTC)
    served = [{"timestamp": (begin + timedelta(seconds=at)).isoformat()} for at in moments]
    assert steady_per_s(served) == pytest.approx(10)


def test_memory_growth_is_measured_in_the_second_half() -> None:
    depths = [1000 - 100 * n for n in range(11)]
    grown = [100, 110, 120, 130, 140, 200, 200, 200, 230, 220, 220]
    assert paced(_samples(depths, grown)).growth == pytest.approx(1.15)
    assert paced(_samples(depths, [100, 110, 120, 130, 140, *[200] * 6])).growth == 1.0


def test_too_few_samples_of_a_drain_are_an_error() -> None:
    with pytest.raises(ValueError, match="faster"):
        paced(_samples([1000, *[999] * 10, 0], [1] * 12))
    with pytest.raises(ValueError, match="too few"):
        paced(_samples([10, 5, 0], [1] * 3))


@pytest.mark.parametrize(
    ("changes", "graceful", "broken"),
    [
        ({}, "", ""),
        ({"outcome": replace(_DONE, stored=9)}, "not every", "not every"),
        ({"outcome": replace(_DONE, reported=9)}, "not every", "not every"),
        ({"outcome": replace(_DONE, other_events=1)}, "not every", "not every"),
        ({"outcome": replace(_DONE, waiting=1)}, "not every", "not every"),
        ({"outcome": replace(_DONE, dead=1)}, "not every", "not every"),
        ({"created_again": 1}, "stored twice", "stored twice"),
        ({"created": 11}, "do not match", "do not match"),
        ({"created": 9}, "do not match", "do not match"),
        # A handler that was canceled never sees the response to its put.
        ({"created": 9, "unanswered": 1}, "do not match", ""),
        ({"unanswered": 1}, "interrupted", ""),
        # Events are published at least once.
        ({"outcome": replace(_DONE, reported_again=1)}, "reported twice", ""),
    ],
)
def test_what_fails_a_run(changes: dict[str, Any], graceful: str, broken: str) -> None:
    """Without a crash more is promised than after the broker was lost."""
    for part, problem in (("deploy", graceful), ("broker", broken)):
        found = replace(_DEPLOYED, part=part, **changes)
        if problem:
            with pytest.raises(DrainError, match=problem):
                found.check()
        else:
            found.check()
            assert False not in [row.met for row in found.rows("ceph")]


def test_events_are_counted_by_upload() -> None:
    uploads = Uploads("a", 2)

    def event(number: int, kind: str = "upload.stored", key: str = "") -> dict[str, str]:
        upload_id = uploads.upload_id(number)
        return {"type": kind, "upload_id": upload_id, "key": key or uploads.key(number)}

    other_run = {"type": "upload.stored", "upload_id": Uploads("b", 1).upload_id(0), "key": "b/0"}
    enrolled = {"type": "project.enrolled", "request_id": "x"}
    stored, other = count_events([event(0), event(1), event(1), other_run, enrolled], uploads)
    assert (len(stored), stored.total(), other) == (2, 3, 0)
    wrong = [event(0, kind="upload.rejected"), event(1, key=uploads.key(0))]
    assert count_events(wrong, uploads)[1] == 2


@pytest.mark.parametrize("wrong", [["--only", "drains"], ["--workers", "0"]])
def test_an_unknown_part_and_a_wrong_number_of_workers_are_usage_errors(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        _arguments(wrong)
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err
