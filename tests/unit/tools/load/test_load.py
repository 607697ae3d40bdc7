"""The arithmetic of `make load`, and its checks of a complete run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyturn.identifiers import is_object_key, is_uuid
from tools.bench.processes import BenchError
from tools.load.__main__ import _arguments
from tools.load.disruptions import DisruptionResult, rows
from tools.load.drain_summary import Sample, summarize
from tools.load.outcome import Outcome, count_events
from tools.load.uploads import Uploads

_DONE = Outcome(
    uploads=10,
    stored=10,
    reported=10,
    reported_again=0,
    other_events=0,
    waiting=0,
    dead=0,
    opened=3,
)
_DEPLOYED = DisruptionResult(
    "deploy",
    times=2,
    wall_s=1.0,
    created=10,
    created_again=0,
    unanswered=0,
    served_again=0,
    peak_mib=1.0,
    outcome=_DONE,
)


def _samples(depths: list[int], rss: list[int], *, every_s: float = 1.0) -> list[Sample]:
    """One worker that uses half a core."""
    return [
        Sample(n * every_s, depth, (n * every_s / 2,), (held,))
        for n, (depth, held) in enumerate(zip(depths, rss, strict=True))
    ]


def test_uploads_are_equal_in_every_process_and_differ_between_runs() -> None:
    one, same, other = Uploads("a", 3, 100), Uploads("a", 3, 100), Uploads("b", 3, 100)
    assert (one.key(1), one.upload_id(1), one.body(1)) == (
        same.key(1),
        same.upload_id(1),
        same.body(1),
    )
    assert one.upload_id(1) != other.upload_id(1)
    assert len({one.body(number) for number in range(3)}) == 3
    assert len(one.body(0)) == 100
    assert is_object_key(one.key(0))
    assert is_uuid(one.upload_id(0))


def test_a_drain_is_summarized_by_tenths_of_its_objects() -> None:
    # Twice as fast in its second half.
    depths = [1000 - 50 * n for n in range(11)] + [500 - 100 * n for n in range(1, 6)]
    found = summarize(_samples(depths, [100, 100, 120, *[132] * 13]))
    assert found.objects == 1000
    assert found.wall_s == 15.0
    assert found.per_s == pytest.approx(1000 / 15)
    assert found.cpu_ms == pytest.approx(7.5)
    assert [tenth.per_s for tenth in found.tenths] == [50.0] * 5 + [100.0] * 5
    assert found.steady == 2.0


def test_memory_growth_is_measured_in_the_second_half() -> None:
    depths = [1000 - 100 * n for n in range(11)]
    grown = [100, 110, 120, 130, 140, 200, 200, 200, 230, 220, 220]
    assert summarize(_samples(depths, grown)).growth == pytest.approx(1.15)
    assert summarize(_samples(depths, [100, 110, 120, 130, 140, *[200] * 6])).growth == 1.0


def test_too_few_samples_of_a_drain_are_an_error() -> None:
    depths = [1000, *[999] * 10, 0]
    with pytest.raises(ValueError, match="faster"):
        summarize(_samples(depths, [1] * 12))
    with pytest.raises(ValueError, match="too few"):
        summarize(_samples([10, 5, 0], [1] * 3))


@pytest.mark.parametrize(
    "missing",
    [{"stored": 9}, {"reported": 9}, {"other_events": 1}, {"waiting": 1}, {"dead": 1}],
)
def test_an_incomplete_upload_fails_the_run(missing: dict[str, int]) -> None:
    _DONE.check()
    with pytest.raises(BenchError):
        replace(_DONE, **missing).check()


def test_an_upload_stored_twice_fails_the_run() -> None:
    _DEPLOYED.check()
    with pytest.raises(BenchError, match="stored twice"):
        replace(_DEPLOYED, created_again=1).check()
    with pytest.raises(BenchError, match="do not match"):
        replace(_DEPLOYED, created=11).check()


def test_an_unanswered_put_counts_only_if_the_broker_was_lost() -> None:
    unanswered = replace(_DEPLOYED, created=9, unanswered=1)
    with pytest.raises(BenchError, match="do not match"):
        unanswered.check()
    replace(unanswered, part="broker").check()
    with pytest.raises(BenchError, match="do not match"):
        replace(unanswered, part="broker", unanswered=0).check()


def test_a_graceful_stop_interrupts_no_put() -> None:
    cut = replace(_DEPLOYED, unanswered=1)
    with pytest.raises(BenchError, match="interrupted"):
        cut.check()
    replace(cut, part="broker").check()


def test_an_upload_reported_twice_fails_a_run_without_a_crash() -> None:
    twice = replace(_DEPLOYED, outcome=replace(_DONE, reported_again=1))
    with pytest.raises(BenchError, match="reported twice"):
        twice.check()
    # Events are published at least once: after a broker loss there may be duplicates.
    replace(twice, part="broker").check()
    assert [row.met for row in rows("ceph", twice)].count(False) == 1
    assert False not in [row.met for row in rows("ceph", replace(twice, part="broker"))]


def test_events_are_counted_by_upload() -> None:
    uploads = Uploads("a", 2)

    def event(number: int, kind: str = "upload.stored", key: str = "") -> dict[str, str]:
        upload_id = uploads.upload_id(number)
        return {"type": kind, "upload_id": upload_id, "key": key or uploads.key(number)}

    other_run = {"type": "upload.stored", "upload_id": Uploads("b", 1).upload_id(0), "key": "b/0"}
    enrolled = {"type": "project.enrolled", "request_id": "x"}
    reported = [event(0), event(1), event(1), other_run, enrolled]
    stored, other = count_events(reported, uploads)
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
