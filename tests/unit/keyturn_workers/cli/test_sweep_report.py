"""`keyturn status ID`: the progress, the failures and the end of a sweep (SPEC 8.5, 14)."""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.counts import Counts
from keyturn.identifiers import format_time
from keyturn.messages.status import SweepStatus
from keyturn.progress import Progress
from keyturn_workers.cli.sweep_status import OwnRequest, sentence
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.sweep_record import Failure, KeyRange, OpenPage, PartEnd
from keyturn_workers.keys.sweep_records import part_path
from tests.unit.keyturn_workers.cli.fakes import event
from tests.unit.keyturn_workers.cli.status_bucket import Bench, bench
from tests.unit.keyturn_workers.factories import keyring
from tests.unit.keyturn_workers.reports.status.bucket import (
    BEGIN,
    ROUND_ID,
    WALK_ID,
    all_record,
    done,
    failed,
    origin,
    part,
    record,
    round_id,
    sweep_id,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from keyturn.messages import Event
    from keyturn_workers.cli.watch import Followed
    from keyturn_workers.core.sweep_record import Origin

_ID = sweep_id(1)
_NOT_CLEAN = "keyturn: not clean: 2 failed, 0 stale noncurrent versions\n"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return bench(monkeypatch)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], Awaitable[object]]]:
    """What happens while a sweep is watched: one call for each time its state is shown."""
    calls: list[Callable[[], Awaitable[object]]] = []
    tasks = set[asyncio.Task[object]]()

    @contextmanager
    def display(*, as_json: bool) -> Iterator[Callable[[Followed], None]]:
        del as_json

        def show(_: Followed) -> None:
            if calls:
                tasks.add(asyncio.ensure_future(calls.pop(0)()))

        yield show

    monkeypatch.setattr("keyturn_workers.cli.sweep_status.open_display", display)
    monkeypatch.setattr("keyturn_workers.cli.sweep_status._POLL_S", 0.01)
    return calls


def _fail(bucket: Bench, count: int, *, page: int = 0, of: str = round_id(1)) -> None:
    failures = tuple(Failure(f"p{page}/{n:03}", "no_usable_wrap") for n in range(count))
    asyncio.run(bucket.store.add_failures("acme", of, page, failures, "m1"))


def test_a_running_sweep_shows_its_progress(bucket: Bench) -> None:
    began = BEGIN + timedelta(minutes=1)
    until = began + timedelta(seconds=45)
    bucket.add(
        record(
            origin(1),
            stepped_at=began + timedelta(seconds=10),
            round_fields={
                "ranges": (KeyRange("m", "m", planned=True), KeyRange("q", "")),
                "next_page": 3,
                "open_pages": (OpenPage(2, "a", "c", not_before=until, seen=Counts(objects=20)),),
                "proven": Counts(objects=30, current=30, foreign=1),
            },
            written=Counts(rewrapped=20),
        )
    )
    for number in range(61):
        bucket.plant(f"acme/k{number}", {})
    report = bucket.json(_ID)
    shown: dict[str, Any] = {
        "status": "running",
        "clean": None,
        "waits_for_round": False,
        "round": ROUND_ID,
        "round_also_answers": [],
        "proves_generation": 3,
        "proves_master_key": "m1",
        "ranges": 2,
        "ranges_planned": 1,
        "pages": 3,
        "pages_not_proven": 1,
        "proof_not_before": "2026-11-24T10:01:45Z",
        "rate_per_s": 4.0,  # half of 50 seen and 30 proven, in ten seconds
        "left_s": 35.0,  # not the 5 s that follow from the rate: the proof has to wait
        "failures": [],
        "more_failures": False,
    }
    assert {name: report[name] for name in shown} == shown
    assert report["counts"]["rewrapped"] == 20
    assert report["counts"]["objects"] == 50


def test_a_sweep_names_what_its_round_answers_too_or_that_it_waits_for_one(bucket: Bench) -> None:
    of = record(origin(1), origin(2), origin(3, options=SweepOptions(repair=True)))
    assert of.round is not None
    of = replace(of, round=replace(of.round, origins=(of.origins[0].name, of.origins[1].name)))
    bucket.add(of)
    assert bucket.json(_ID)["round_also_answers"] == [sweep_id(2)]
    assert sweep_id(2) in bucket.run(_ID, "--verbose").stdout
    waiting = bucket.json(sweep_id(3))
    assert (waiting["waits_for_round"], waiting["round"]) == (True, None)
    assert (waiting["round_also_answers"], waiting["pages"]) == ([], None)
    assert waiting["repair"] is True


def test_the_time_left_is_known_only_if_objects_are_counted(bucket: Bench) -> None:
    stepped = BEGIN + timedelta(minutes=1, seconds=10)
    proven = {"proven": Counts(objects=10, current=10)}
    bucket.add(record(origin(1), stepped_at=stepped, round_fields=proven))
    for number in range(30):
        bucket.plant(f"acme/k{number}", {})
    assert bucket.json(_ID)["left_s"] == 20
    assert bucket.json(_ID, "--no-objects")["left_s"] is None


def test_no_rate_is_shown_before_the_first_step(bucket: Bench) -> None:
    bucket.add(record(origin(1)))
    report = bucket.json(_ID)
    assert (report["rate_per_s"], report["left_s"]) == (None, None)


def test_failures_are_limited_unless_all_are_requested(bucket: Bench) -> None:
    bucket.add(record(done(1, clean=False)))
    for page in range(5):
        _fail(bucket, 10, page=page)
    reads = bucket.storage.calls["read"]
    report = bucket.json(_ID)
    assert report["failures"][0] == {"project": "acme", "key": "p0/000", "code": "no_usable_wrap"}
    assert [row["key"] for row in report["failures"]] == [
        f"p{page}/{n:03}" for page in (0, 1) for n in range(10)
    ]
    assert report["more_failures"] is True
    # The record, to find its project, to show it and for its failures, the text that proves the
    # master key, and three pages of five.
    assert bucket.storage.calls["read"] - reads == 7
    every = bucket.json(_ID, "--failures")
    assert (len(every["failures"]), every["more_failures"]) == (50, False)
    result = bucket.run(_ID)
    assert "p1/009" in result.stdout
    assert "add --failures to see all" in result.stderr


def test_a_clean_sweep_has_no_failures_to_show(bucket: Bench) -> None:
    bucket.add(record(done(1)))
    result = bucket.run(_ID, "--failures")
    assert (result.exit_code, result.stdout) == (0, "no failures\n")
    assert bucket.json(_ID, "--failures")["failures"] == []


def test_exactly_the_limit_of_failures_leaves_no_more(bucket: Bench) -> None:
    bucket.add(record(done(1, clean=False)))
    _fail(bucket, 20)
    report = bucket.json(_ID)
    assert (len(report["failures"]), report["more_failures"]) == (20, False)


def test_an_unreadable_record_of_failures_is_a_row(bucket: Bench) -> None:
    bucket.add(record(done(1, clean=False)))
    bucket.plant(f".keyturn/sweeps/acme/{round_id(1)}/failures/00000001.json", {}, b"{}")
    report = bucket.json(_ID)
    assert report["failures"] == [{"project": "acme", "key": None, "code": "corrupt_object"}]


def test_a_sweep_of_all_shows_its_parts(bucket: Bench) -> None:
    sums = Counts(objects=10, current=8, failed=2)
    bucket.add(
        all_record(origin(1), open_parts=("b",), sums=sums, projects=3),
        record(part(1), project="b", round_fields={"proven": Counts(objects=7, current=7)}),
    )
    for project, end in {
        "a": PartEnd(Counts(), clean=True),
        "acme": PartEnd(Counts(failed=2), clean=False, round_id=round_id(1)),
        "d": PartEnd(Counts(failed=1), clean=False, code="corrupt_object"),
    }.items():
        asyncio.run(bucket.store.add_part_end(WALK_ID, project, end, "m1"))
    _fail(bucket, 2)
    report = bucket.json(_ID)
    assert (report["project"], report["status"], report["counts"]["objects"]) == (
        "*",
        "running",
        17,
    )
    parts = report["parts"]
    assert parts["ended_clean"] == 1
    assert [(row["project"], row["status"]) for row in parts["live"]] == [("b", "running")]
    assert [(row["project"], row["status"]) for row in parts["ended_not_clean"]] == [
        ("acme", "done"),
        ("d", "failed"),
    ]
    assert [row["project"] for row in report["failures"]] == ["acme", "acme"]
    assert "Projects: 1 ended clean; the others:" in bucket.run(_ID).stdout
    ended = bucket.json(_ID, "--project", "acme")  # its record does not have it any more
    assert (ended["status"], ended["clean"], len(ended["failures"])) == ("done", False, 2)


def test_an_unknown_id_is_not_found(bucket: Bench) -> None:
    for arguments in ([_ID], [_ID, "--json"], [_ID, "--failures"]):
        result = bucket.run(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("keyturn: not_found: ")


def test_a_project_whose_id_looks_like_that_of_a_sweep_is_shown(bucket: Bench) -> None:
    bucket.enroll(keyring(_ID))
    assert bucket.json(_ID)["keyrings"][0]["project"] == _ID


def test_an_id_shared_by_sweeps_of_several_projects_is_pointed_out(bucket: Bench) -> None:
    bucket.add(record(done(1), project="a"), record(done(1), project="b"))
    result = bucket.run(_ID)
    assert result.exit_code == 0
    assert result.stderr == "keyturn: other projects have a sweep with this id: b\n"


def test_a_forged_record_is_named_and_hides_no_other(bucket: Bench) -> None:
    bucket.plant(".keyturn/sweeps/acme.json", {}, b"{}")
    result = bucket.run(_ID)
    assert (result.exit_code, result.stderr.splitlines()[0]) == (
        1,
        "keyturn: the records of these projects do not open: acme",
    )
    result = bucket.run(_ID, "--project", "acme")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("keyturn: corrupt_object: ")
    bucket.add(record(done(1), project="other"))
    result = bucket.run(_ID)
    assert (result.exit_code, result.stderr) == (0, "")


def test_a_forged_end_of_a_part_is_reported_and_stays(bucket: Bench) -> None:
    """Status only reads: a worker deletes what is forged."""
    bucket.add(all_record(origin(1)))
    forged = part_path(WALK_ID, "b")
    bucket.plant(forged, {}, b"{}")
    rows = bucket.json(_ID)["parts"]["ended_not_clean"]
    assert [(row["project"], row["code"]) for row in rows] == [("b", "corrupt_object")]
    assert forged in bucket.storage.stored_keys()


def test_the_same_id_in_another_project_is_never_watched_by_mistake(bucket: Bench) -> None:
    """A publisher that may sweep `aaa` can do so under the id of acme's rotation."""
    bucket.add(record(done(1), project="aaa"), record(done(1, clean=False, kind="rotation")))
    ambiguous = bucket.run(_ID, "--watch")
    assert ambiguous.exit_code == 1
    assert (
        "several projects have a sweep with this id; add --project: aaa, acme" in ambiguous.stderr
    )
    watched = bucket.run(_ID, "--project", "acme", "--watch")
    assert (watched.exit_code, watched.stderr) == (1, _NOT_CLEAN)
    assert bucket.json(_ID, "--project", "aaa")["project"] == "aaa"
    assert bucket.run(_ID, "--project", "aaa", "--watch").exit_code == 0
    assert bucket.run(_ID, "--project", "bob").exit_code == 1


def test_a_part_of_a_sweep_of_all_is_shown(bucket: Bench) -> None:
    bucket.add(all_record(origin(1), open_parts=("acme",)), record(part(1)))
    assert bucket.json(_ID, "--project", "acme")["project"] == "acme"
    assert bucket.json(_ID, "--project", "*")["project"] == "*"


def test_an_erasure_is_shown_as_one(bucket: Bench) -> None:
    bucket.add(record(origin(1, kind="erase")))
    assert bucket.json(_ID)["kind"] == "erasure"
    assert bucket.run(_ID).stdout.startswith("The erasure of acme waits for a worker.\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--watch"],
        ["--failures"],
        ["--verbose"],
        ["acme", "--watch"],
        ["No Project"],
        ["acme", "--project", "acme"],
        ["--project", "acme"],
        [_ID, "--project", "No Project"],
    ],
)
def test_wrong_usage_exits_2(bucket: Bench, arguments: list[str]) -> None:
    result = bucket.run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")


def test_a_failed_object_key_cannot_control_the_terminal(bucket: Bench) -> None:
    bucket.add(record(done(1, clean=False)))
    failures = (Failure("\x1b[2Jx", "no_usable_wrap"),)
    asyncio.run(bucket.store.add_failures("acme", round_id(1), 0, failures, "m1"))
    for arguments in ([_ID], [_ID, "--json"]):
        assert "\x1b" not in bucket.run(*arguments).output


@pytest.mark.parametrize(
    ("ended", "exit_code", "message"),
    [
        (done(1), 0, ""),
        (done(1, clean=False), 1, _NOT_CLEAN),
        (failed(1, "keyring_rolled_back"), 1, "keyturn: keyring_rolled_back\n"),
    ],
)
def test_of_an_ended_sweep_watching_gives_the_exit_status(
    bucket: Bench, ended: Origin, exit_code: int, message: str
) -> None:
    bucket.add(record(ended))
    result = bucket.run(_ID, "--watch")
    assert (result.exit_code, result.stderr) == (exit_code, message)
    assert bucket.run(_ID).exit_code == 0  # without --watch the end does not matter


@pytest.mark.parametrize("clean", [True, False])
def test_watching_reads_the_record_until_it_has_the_end(
    bucket: Bench, meanwhile: list[Callable[[], Awaitable[object]]], *, clean: bool
) -> None:
    """It needs no broker and no publisher's key: the file of a worker is enough."""
    bucket.add(record(origin(1)))

    async def end() -> None:
        stored = await bucket.store.read("acme")
        assert await bucket.store.change(record(done(1, clean=clean)), stored.etag, "m1")

    async def nothing() -> None: ...

    meanwhile += [nothing, end]
    result = bucket.run(_ID, "--watch", "--json")
    assert result.exit_code == (0 if clean else 1), result.output
    report = json.loads(result.stdout)
    assert (report["status"], report["clean"]) == ("done", clean)
    assert meanwhile == []


def test_ctrl_c_says_how_to_follow_the_sweep(
    bucket: Bench, meanwhile: list[Callable[[], Awaitable[object]]]
) -> None:
    bucket.add(record(origin(1)))

    def interrupt() -> Awaitable[object]:
        raise KeyboardInterrupt

    meanwhile.append(interrupt)
    result = bucket.run(_ID, "--watch")
    assert result.exit_code == 130
    assert result.stderr.endswith(f"keyturn status {_ID} --project acme --watch\n")


# In words.

_BEGAN = BEGIN + timedelta(minutes=1)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"status": "running"}, "waits for a worker."),
        ({"status": "running", "waits_for_round": True}, "waits for the one under way to end."),
        (
            {
                "status": "running",
                "progress": Progress(phase="rewrapping", done=46, total=91),
                "counts": Counts(failed=2),
                "left_s": 31.6,
            },
            "is running: rewrapping 46 of 91, 2 failed, about 32 s left.",
        ),
        (
            {
                "status": "running",
                "progress": Progress(
                    phase="proving",
                    total=91,
                    proof_possible_at=format_time(_BEGAN + timedelta(seconds=29)),
                ),
            },
            "is running: all rewrapped; waiting 29 s, so that no late write can slip past.",
        ),
        (
            {
                "status": "done",
                "clean": True,
                "started_at": format_time(BEGIN),
                "ended_at": format_time(_BEGAN),
            },
            "ended clean after 60 s: no wrap under earlier keys is left.",
        ),
        (
            {"status": "done", "clean": False, "counts": Counts(failed=2, noncurrent_stale=1)},
            "ended, but not clean: 2 failed, 1 stale noncurrent versions.",
        ),
        (
            {"status": "failed", "code": "keyring_rolled_back", "detail": "it is older"},
            "failed: keyring_rolled_back: it is older",
        ),
    ],
)
def test_one_sentence_says_how_it_is(fields: dict[str, Any], text: str) -> None:
    row = SweepStatus(sweep_id=_ID, project="acme", kind="rotation", generation=4, **fields)
    assert sentence(row, _BEGAN) == f"The rotation of acme to generation 4 {text}"


def test_a_person_sees_counts_that_are_not_zero_and_with_verbose_every_field(
    bucket: Bench,
) -> None:
    bucket.add(record(done(1, clean=False)))
    short = bucket.run(_ID).stdout
    assert "rewrapped" not in short
    assert "failed" in short
    assert "round" not in short
    verbose = bucket.run(_ID, "--verbose").stdout
    for field in ("sweep_id", "round_also_answers", "rewrapped", "proves_generation"):
        assert (field in verbose) is (field != "round_also_answers")


# A publisher's own request.


def _own(*events: Event) -> OwnRequest:
    own = OwnRequest(_ID)
    for each in events:
        own.add(each)
    return own


def _row(own: OwnRequest) -> SweepStatus:
    report = own.report()
    assert report is not None
    return report.row


def test_a_publishers_own_rotation_is_known_by_its_events() -> None:
    accepted = event("rotation.accepted", rotation_id=_ID, generation=4)
    progressed = event(
        "sweep.progressed", sweep_id=_ID, objects=5, progress={"phase": "proving", "done": 5}
    )
    ended = event("rotation.completed", rotation_id=_ID, objects=5, failed=1, clean=False)
    row = _row(_own(accepted))
    assert (row.kind, row.status, row.generation) == ("rotation", "running", 4)
    row = _row(_own(accepted, progressed))
    assert row.progress is not None
    assert (row.kind, row.status, row.progress.done) == ("rotation", "running", 5)
    row = _row(_own(accepted, progressed, ended))
    assert (row.status, row.clean, row.counts) == ("done", False, Counts(objects=5, failed=1))


def test_a_resumed_request_is_running_again_and_a_later_rejection_changes_nothing() -> None:
    refused = {"code": "keyring_rolled_back", "detail": "older", "sweep_id": _ID}
    own = _own(event("sweep.failed", **refused))
    assert (_row(own).status, _row(own).code) == ("failed", "keyring_rolled_back")
    assert own.add(event("sweep.progressed", sweep_id=_ID, objects=1))
    assert (_row(own).status, _row(own).code) == ("running", None)
    assert not own.add(event("sweep.rejected", sweep_id=_ID, code="stale_request", detail=""))
    assert _row(own).status == "running"


def test_other_requests_have_no_report() -> None:
    assert (
        _own(event("upload.stored", upload_id=_ID, key="k", size=5, generation=2)).report() is None
    )
