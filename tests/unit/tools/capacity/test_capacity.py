"""The capacity model: its formulas by hand-made figures, and its committed files (SPEC 6 to 9)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import sealed_size
from tools.capacity import check, document, model
from tools.capacity.__main__ import main
from tools.capacity.check import Calibrated, Compared, calibrated, worst
from tools.capacity.measured import AtSize, Broker, Measured, Operation, committed, parsed
from tools.capacity.model import Setting
from tools.capacity.plan import GIB, CapacityRequest, sections, size, span

if TYPE_CHECKING:
    from pathlib import Path

_MIB = 2**20


def _one(
    cpu_ms: float, *, own_ms: float = 0.0, writes: float = 0.0, reads: float = 1.0
) -> Operation:
    return Operation((AtSize(4096, cpu_ms),), own_ms, writes, reads)


_MEASURED = Measured(
    machine="a machine",
    upload=Operation((AtSize(4096, 2.0), AtSize(262144, 4.0)), 10.0, 1.0, 0.0),
    staged=Operation((AtSize(_MIB, 10.0), AtSize(16 * _MIB, 100.0)), 10.0, 2.0, 1.0),
    writing=_one(1.5, own_ms=10.0, writes=1.0),
    proving=_one(0.6, own_ms=5.0),
    read=Operation((AtSize(4096, 0.4), AtSize(_MIB, 2.0)), 3.0, 0.0, 1.0),
    broker=Broker(
        message_bytes=2000.0,
        event_bytes=500.0,
        disk_factor=1.25,
        memory_factor=0.5,
        cpu_ms=0.5,
        publisher_cpu_ms=0.8,
    ),
    page_requests=7.0,
)
_NEAR = Setting(latency_ms=0.0, share=1.0)


def test_a_loop_that_waits_most_of_its_time_is_as_many_as_are_under_way() -> None:
    assert model.loop(4, 100.0, 0.0) == pytest.approx(40.0)
    # The core is idle 98 % of the time: one hardly ever waits for another.
    assert model.loop(4, 99.0, 0.5) == pytest.approx(4000 / 99.5, rel=0.01)


def test_a_loop_whose_core_is_full_is_as_fast_as_the_core() -> None:
    assert model.loop(64, 10.0, 2.0) == pytest.approx(500.0, rel=0.001)
    assert model.loop(64, 10.0, 2.0) <= 500.0


def test_a_single_object_waits_for_no_other() -> None:
    assert model.loop(1, 8.0, 2.0) == pytest.approx(100.0)


@pytest.mark.parametrize("at_once", [1, 4, 64])
def test_a_loop_is_never_faster_than_either_bound(at_once: int) -> None:
    for wait_ms in (0.5, 5.0, 50.0, 500.0):
        rate = model.loop(at_once, wait_ms, 2.0)
        assert rate <= min(500.0, 1000 * at_once / (wait_ms + 2.0)) * (1 + 1e-9)
        # And not much slower than the smaller one: the worst is where they meet.
        assert rate >= 0.5 * min(500.0, 1000 * at_once / (wait_ms + 2.0))


def test_an_upload_waits_for_its_put_half_a_read_and_a_read() -> None:
    # Reads begin 30 ms apart, and follow each other where one takes longer.
    assert model.upload_wait_ms(1.0, 10.0) == 1 + 10 + 10 + 15
    assert model.upload_wait_ms(1.0, 80.0) == 1 + 80 + 80 + 40


def test_a_share_of_the_core_bounds_the_rate() -> None:
    assert model.bounded(100.0, 2.0, 0.7) == model.Rate(100.0, "latency")
    assert model.bounded(400.0, 2.0, 0.7) == model.Rate(350.0, "CPU")


def test_cpu_time_is_straight_between_sizes_and_beyond_them() -> None:
    upload = _MEASURED.upload
    assert upload.cpu_ms(4096) == 2.0
    assert upload.cpu_ms((4096 + 262144) / 2) == pytest.approx(3.0)
    assert _MEASURED.staged.cpu_ms(31 * _MIB) == pytest.approx(190.0)
    assert upload.cpu_ms(0) == pytest.approx(2.0, rel=0.02)
    assert _MEASURED.writing.cpu_ms(10**9) == 1.5


def test_processes_are_rounded_up() -> None:
    assert model.processes(1000, 10, 50.0) == 2
    assert model.processes(1001, 10, 50.0) == 3


def test_uploads_of_a_million_in_an_hour() -> None:
    need = model.uploads(_MEASURED, 1e6, 1, 4096, _NEAR, disk_bytes=10 * GIB)
    assert need.per_s == pytest.approx(277.8, abs=0.1)
    assert need.rate.per_s == pytest.approx(500.0, rel=0.01)
    assert need.rate.bound == "CPU"
    assert need.workers == 1
    assert need.publisher_cores == pytest.approx(0.222, abs=0.001)
    assert need.broker_cores == pytest.approx(0.139, abs=0.001)
    assert need.storage.writes_per_s == need.per_s
    # One worker's keyring reads begin 30 ms apart.
    assert need.storage.reads_per_s == pytest.approx(1000 / 30)
    one = 2000 + 4 / 3 * sealed_size(4096)
    assert need.message_bytes == one
    assert need.backlog_bytes == pytest.approx(1e6 * 1.25 * one)
    assert need.ahead == pytest.approx(10 * GIB / (1.25 * one))
    assert need.events_hours == pytest.approx(4 * GIB / (need.per_s * 500) / 3600)


def test_a_staged_upload_waits_in_a_stream_and_not_on_the_broker() -> None:
    assert model.message_bytes(_MEASURED, 256 * 1024) > 300_000
    assert model.message_bytes(_MEASURED, 256 * 1024 + 1) == 2000
    near = model.upload_rate(_MEASURED, _MIB, replace(_NEAR, latency_ms=200.0))
    # Four streams, each for staging's answer, the leave to send the body, and the put's answer.
    assert near.per_s == pytest.approx(4 / 0.62, rel=0.05)
    assert near.bound == "latency"


def test_a_rotation_writes_and_proves_every_object() -> None:
    need = model.rotation(_MEASURED, 1e6, 1, _NEAR)
    assert (need.pages, need.takes, need.listings) == (2000, 4000, 5000)
    assert need.least_s == 30 + 32
    work_s = 1e6 / need.writing.per_s + 1e6 / need.proving.per_s
    assert need.workers == -(-work_s // (3600 - 30))
    assert need.storage.writes_per_s == pytest.approx(1e6 / 3600)
    assert need.storage.reads_per_s == pytest.approx(2e6 / 3600 + 4000 * 7 / 3600)


def test_no_number_of_workers_shortens_the_planning_of_one_project() -> None:
    need = model.rotation(_MEASURED, 1e9, 1, _NEAR)
    assert need.workers == 0
    assert need.least_s == 30 + 2_000_000 / 64
    assert model.rotation(_MEASURED, 1e9, 24, _NEAR).workers > 0


def test_downloads_tell_the_network_that_they_need() -> None:
    need = model.reads(_MEASURED, 3.6e6, 1, _MIB, _NEAR)
    assert need.per_s == 1000.0
    assert need.rate.per_s == pytest.approx(500.0, rel=0.01)
    assert need.gateways == 2
    assert need.bits_per_s == 8 * _MIB * 1000


def test_the_busier_kind_of_request_says_how_many_prefixes() -> None:
    assert model.storage(3500, 5500).prefixes == 1
    assert model.storage(3501, 0).prefixes == 2
    assert model.storage(10, 5501).prefixes == 2


def test_workers_read_keyrings_one_after_the_other() -> None:
    assert model.keyring_reads_per_s(2, 1000.0, 5.0) == pytest.approx(2000 / 30)
    assert model.keyring_reads_per_s(2, 1000.0, 100.0) == 20.0
    # No more than one an upload.
    assert model.keyring_reads_per_s(50, 3.0, 5.0) == 3.0


def test_what_was_calibrated_predicts_the_run_that_it_came_from() -> None:
    for operation in ("uploads", "writing", "proving"):
        found = calibrated(operation, 60.0, 2.0)
        assert found.per_s(1, 0.0) == pytest.approx(60.0, rel=0.001)
        assert found.per_s(2, 0.0) == pytest.approx(120.0, rel=0.001)
        assert found.per_s(1, 20.0) < 50.0


def test_an_own_time_is_never_less_than_nothing() -> None:
    assert calibrated("uploads", 1900.0, 2.0).own_ms == 0.0


def test_full_cores_are_no_part_of_the_claim() -> None:
    good = Compared("uploads", 20, 1, predicted=110.0, seen=100.0, busy=0.5)
    full = replace(good, predicted=300.0, busy=0.95)
    assert good.error == pytest.approx(0.1)
    assert worst([good, full]) == pytest.approx(0.1)
    assert worst([full]) == 0.0
    table = document.compared([good, full])
    assert "+10%" in table
    assert "no (above 85%)" in table
    assert "2 rows 1 left" in document.claim([good, full])


def test_measured_figures_survive_their_file() -> None:
    assert parsed(_MEASURED.as_json()) == _MEASURED
    with pytest.raises(TypeError):
        parsed(json.dumps({**json.loads(_MEASURED.as_json()), "more": 1}))


def test_checked_rows_survive_their_file() -> None:
    calibrations = [Calibrated("uploads", 2.0, 10.0)]
    rows = [Compared("uploads", 20, 1, 110.0, 100.0, 0.5)]
    text = json.loads(check.as_json(calibrations, rows))
    assert [Compared(**row) for row in text["compared"]] == rows
    assert [Calibrated(**each) for each in text["calibrations"]] == calibrations


def test_a_check_of_one_half_keeps_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "CHECKED", tmp_path / "checked.json")
    old, new = Calibrated("uploads", 2.0, 10.0), Calibrated("uploads", 3.0, 5.0)
    other = Calibrated("writing", 1.0, 7.0)
    rows = [Compared("uploads", 20, n, 110.0, 100.0, 0.5) for n in (1, 2)]
    kept = Compared("writing", 20, 1, 50.0, 50.0, 0.5)
    check.keep([old, other], [rows[0], kept])
    check.keep([new], [rows[1]])
    assert check.committed() == ([new, other], [rows[1], kept])


def test_the_document_holds_the_committed_figures() -> None:
    """Else: make capacity ARGS=--document."""
    _, rows = check.committed()
    text = document.DOCUMENT.read_text()
    assert document.filled(text, committed(), rows) == text


def test_a_document_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no place"):
        document.filled("<!-- costs -->", _MEASURED, [])


def test_the_command_answers_all_three_questions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--objects", "1e9", "--hours", "24", "--latency-ms", "30"]) == 0
    shown = capsys.readouterr().out
    for text in ("1,000,000,000 objects in 24 h", "upload workers", "sweep workers", "gateways"):
        assert text in shown


@pytest.mark.parametrize(
    "wrong",
    [
        ["--objects", "0"],
        ["--hours", "-1"],
        ["--share", "2"],
        ["--objects", "inf"],
        ["--check", "page"],
    ],
)
def test_what_is_no_amount_is_wrong_usage(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == 2


def test_every_answer_is_text_for_a_person() -> None:
    made = sections(_MEASURED, CapacityRequest(1e9, 1.0))
    assert len(made) == 3
    assert (
        "one project needs"
        in dict(made["1,000,000,000 objects in 1 h: a rotation of one project"])["sweep workers"]
    )
    assert [size(n) for n in (12, 4096, 3 * GIB)] == ["12 bytes", "4 KiB", "3 GiB"]
    assert [span(n) for n in (90, 600, 7200)] == ["90 s", "10 min", "2 h"]
