"""The profiles `load` and `capacity` of `make chaos`: arithmetic and checks (SPEC 6 to 9)."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from keyturn.crypto import sealed_size
from keyturn.identifiers import is_object_key, is_uuid
from tools.chaos import capacity
from tools.chaos.capacity import GIB, Ask, Broker, Measured, Operation, loop, main, parsed
from tools.chaos.drain import Uploads, _arguments, count_events
from tools.chaos.drained import Drained, DrainError, Outcome, Sample, paced, steady_per_s

# `load`: a queue of uploads is drained.


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


# `capacity`: its formulas by hand-made figures, and its own.


_MIB = 2**20
_MEASURED = Measured(
    machine="a machine",
    upload=Operation({4096: 2.0, 262144: 4.0}, 10.0, 1.0, 0.0),
    staged=Operation({_MIB: 10.0, 16 * _MIB: 100.0}, 10.0, 2.0, 1.0),
    writing=Operation({4096: 1.5}, 10.0, 1.0, 1.0),
    proving=Operation({4096: 0.6}, 5.0, 0.0, 1.0),
    read=Operation({4096: 0.4, _MIB: 2.0}, 3.0, 0.0, 1.0),
    broker=Broker(2000.0, 500.0, 1.25, 0.5, 0.5, 0.8),
    page_requests=7.0,
)
_NEAR = Ask(1e6, 1, latency_ms=0.0, share=1.0, disk_bytes=10 * GIB)


@pytest.mark.parametrize(
    ("at_once", "wait_ms", "cpu_ms", "per_s"),
    [
        (4, 100.0, 0.0, 40.0),
        # The core is idle 98 % of the time: one hardly ever waits for another.
        (4, 99.0, 0.5, 4000 / 99.5),
        # The core is full.
        (64, 10.0, 2.0, 500.0),
        # A single object waits for no other.
        (1, 8.0, 2.0, 100.0),
    ],
)
def test_a_loop_through_one_queue_and_one_delay(
    at_once: int, wait_ms: float, cpu_ms: float, per_s: float
) -> None:
    assert loop(at_once, wait_ms, cpu_ms) == pytest.approx(per_s, rel=0.01)


@pytest.mark.parametrize("at_once", [1, 4, 64])
def test_a_loop_is_never_faster_than_either_bound(at_once: int) -> None:
    for wait_ms in (0.5, 5.0, 50.0, 500.0):
        bound = min(500.0, 1000 * at_once / (wait_ms + 2.0))
        # And not much slower than the smaller one: the worst is where they meet.
        assert 0.5 * bound <= loop(at_once, wait_ms, 2.0) <= bound * (1 + 1e-9)


def test_a_share_of_the_core_bounds_the_rate() -> None:
    near = capacity.upload_rate(_MEASURED, replace(_NEAR, share=0.7))
    assert (near.bound, near.per_s) == ("CPU", 350.0)
    # 64 at once, each for its put, a keyring read and half of the one before.
    far = capacity.upload_rate(_MEASURED, replace(_NEAR, latency_ms=1000.0))
    assert far.per_s == pytest.approx(64 / 2.512, rel=0.01)
    assert far.bound == "latency"


def test_a_staged_upload_waits_in_a_stream_and_not_on_the_broker() -> None:
    assert capacity.message_bytes(_MEASURED, 256 * 1024) > 300_000
    assert capacity.message_bytes(_MEASURED, 256 * 1024 + 1) == 2000
    # Four streams, each for staging's answer, the leave to send the body, and the put's answer.
    staged = capacity.upload_rate(_MEASURED, replace(_NEAR, size_bytes=_MIB, latency_ms=200.0))
    assert staged.per_s == pytest.approx(4 / 0.62, rel=0.05)


def test_cpu_time_is_straight_between_sizes_and_beyond_them() -> None:
    assert _MEASURED.upload.cpu_ms((4096 + 262144) / 2) == pytest.approx(3.0)
    assert _MEASURED.staged.cpu_ms(31 * _MIB) == pytest.approx(190.0)
    assert _MEASURED.writing.cpu_ms(10**9) == 1.5


def test_uploads_of_a_million_in_an_hour() -> None:
    one = 2000 + 4 / 3 * sealed_size(4096)
    assert capacity.uploads(_MEASURED, _NEAR) == {
        "objects a second": "278",
        "one worker": "500 /s, bounded by CPU",
        "upload workers": "1",
        "cores of publishers": "0.222",
        "cores of the broker": "0.139",
        # One worker's keyring reads begin 30 ms apart.
        "storage, writes and reads a second": "278 and 33.3",
        "prefixes by AWS's floor": "1",
        "a request on the broker": capacity.size(one),
        "all at once would take": f"{capacity.size(1.25e6 * one)} of the broker's disk",
        "10 GiB hold": f"{10 * GIB / 1.25 / one:,.0f} requests: publish no more ahead",
        "the stream of events holds": "8.59 h (14 days at most)",
    }


def test_a_rotation_writes_and_proves_every_object() -> None:
    found = capacity.rotation(_MEASURED, _NEAR)
    assert found["pages of 500 keys"] == "2,000"
    assert found["takes of pages, each a message and a record"] == "4,000 or more"
    assert found["listings"] == "5,000"
    assert found["at least, with any number"] == "62 s"  # two leases, and 32 steps
    assert found["sweep workers"] == "1"
    assert found["storage, writes and reads a second"] == "278 and 563"


def test_no_number_of_workers_shortens_the_planning_of_one_project() -> None:
    found = capacity.rotation(_MEASURED, replace(_NEAR, objects=1e9))
    assert found["sweep workers"] == "none: one project needs 8.69 h at least"
    day = capacity.rotation(_MEASURED, replace(_NEAR, objects=1e9, hours=24))
    assert day["sweep workers"] == "25"


def test_downloads_tell_the_network_that_they_need() -> None:
    found = capacity.downloads(_MEASURED, replace(_NEAR, objects=3.6e6, size_bytes=_MIB))
    assert found["one gateway"] == "500 /s, bounded by CPU"
    assert (found["gateways"], found["network, each way"]) == ("2", "8.39 Gbit/s")


def test_the_busier_kind_of_request_says_how_many_prefixes() -> None:
    assert [capacity.prefixes(*each) for each in ((3500, 5500), (3501, 0), (10, 5501))] == [1, 2, 2]


def test_workers_read_keyrings_one_after_the_other() -> None:
    reads = capacity.keyring_reads_per_s
    assert reads(2, 1000.0, 5.0) == pytest.approx(2000 / 30)
    assert reads(2, 1000.0, 100.0) == 20.0
    assert reads(50, 3.0, 5.0) == 3.0  # no more than one an upload


def test_measured_figures_survive_their_file() -> None:
    text = json.dumps(asdict(_MEASURED))
    assert parsed(text) == _MEASURED
    with pytest.raises(TypeError):
        parsed(json.dumps({**json.loads(text), "more": 1}))
    assert parsed(capacity.MEASURED.read_text()).upload.cpu_ms(4096) > 0


def test_the_command_answers_all_three_questions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--objects", "1e9", "--hours", "24", "--latency-ms", "30"]) == 0
    shown = capsys.readouterr().out
    for text in ("1,000,000,000 objects in 24 h", "upload workers", "sweep workers", "gateways"):
        assert text in shown


@pytest.mark.parametrize(
    "wrong", [["--objects", "0"], ["--hours", "-1"], ["--share", "2"], ["--objects", "inf"]]
)
def test_what_is_no_amount_is_wrong_usage(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == 2


def test_sizes_and_times_are_for_a_person() -> None:
    assert [capacity.size(n) for n in (12, 4096, 3 * GIB)] == ["12 bytes", "4 KiB", "3 GiB"]
    assert [capacity.span(n) for n in (90, 600, 7200)] == ["90 s", "10 min", "2 h"]
