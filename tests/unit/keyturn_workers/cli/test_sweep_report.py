"""`keyturn status ID`: the progress, the failures and the end of a sweep (SPEC 8.5, 14)."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.counts import Counts
from keyturn.crypto import IntakeKey, SigningKey, to_base64
from keyturn.identifiers import format_time
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.sweep_record import Failure, KeyRange, OpenPage, PartEnd
from keyturn_workers.keys.sweep_records import part_path
from tests.unit.keyturn_workers.cli.fakes import FakePublisher, event
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
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from datetime import datetime

    from keyturn.messages import Event
    from keyturn_workers.core.sweep_record import Origin

_ID = sweep_id(1)
_PUBLISHER = {
    "AMQP_URL": "amqp://nobody@127.0.0.1:1/",
    "PUBLISHER_NAME": "api",
    "PUBLISHER_KEY": to_base64(bytes(32)),
    "INTAKE_PUBLIC_KEY": f"main:{to_base64(IntakeKey.from_seed(bytes(32)).public_bytes)}",
    "EVENT_PUBLIC_KEY": to_base64(SigningKey.from_seed(bytes(32)).public_bytes),
}


class _ScriptedPublisher(FakePublisher):
    """Yields the events of its script, and records since when they were requested."""

    since: datetime | None = None
    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def events(self, since: Any = None) -> AsyncGenerator[Event, None]:
        self.since = since
        if self.meanwhile is not None:
            await self.meanwhile()
        for scripted in self.script(""):
            yield scripted
        if self.interrupt:
            raise KeyboardInterrupt


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return bench(monkeypatch)


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> _ScriptedPublisher:
    fake = _ScriptedPublisher()
    monkeypatch.setattr("keyturn_workers.cli.status.Publisher", fake)
    return fake


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
    assert sweep_id(2) in bucket.run(_ID).stdout
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
    assert "Parts: 1 ended clean; the others:" in bucket.run(_ID).stdout
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


def test_the_same_id_in_another_project_is_never_watched_by_mistake(
    bucket: Bench, publisher: _ScriptedPublisher
) -> None:
    """A publisher that may sweep `aaa` can do so under the id of acme's rotation."""
    bucket.add(record(done(1), project="aaa"), record(origin(1, kind="rotation")))
    ambiguous = bucket.run(_ID, "--watch", **_PUBLISHER)
    assert ambiguous.exit_code == 1
    assert (
        "several projects have a sweep with this id; add --project: aaa, acme" in ambiguous.stderr
    )
    assert publisher.since is None
    unclean: dict[str, Any] = {"objects": 5, "failed": 2, "clean": False}
    publisher.script = lambda _: [
        event("sweep.completed", sweep_id=_ID, project="aaa", objects=1),
        event("sweep.completed", sweep_id=_ID, objects=1),
        event("rotation.completed", rotation_id=_ID, project="aaa", objects=1),
        event("rotation.rejected", rotation_id=_ID, code="kek_reused", detail=""),
        event("rotation.completed", rotation_id=_ID, publisher="other", objects=1),
        event("rotation.completed", rotation_id=_ID, **unclean),
    ]
    watched = bucket.run(_ID, "--project", "acme", "--watch", "--json", **_PUBLISHER)
    assert watched.exit_code == 1, watched.output
    assert json.loads(watched.stdout)["event"]["failed"] == 2
    assert bucket.json(_ID, "--project", "acme")["project"] == "acme"
    assert bucket.json(_ID, "--project", "aaa")["project"] == "aaa"
    assert bucket.run(_ID, "--project", "bob").exit_code == 1


def test_a_part_of_a_sweep_of_all_is_shown_and_not_watched(
    bucket: Bench, publisher: _ScriptedPublisher
) -> None:
    bucket.add(all_record(origin(1), open_parts=("acme",)), record(part(1)))
    assert bucket.json(_ID, "--project", "acme")["project"] == "acme"
    assert bucket.json(_ID, "--project", "*")["project"] == "*"
    result = bucket.run(_ID, "--project", "acme", "--watch", **_PUBLISHER)
    assert result.exit_code == 1
    assert "one part of a sweep of all" in result.stderr
    assert publisher.since is None


def test_an_erasure_is_shown_as_one_and_not_watched(
    bucket: Bench, publisher: _ScriptedPublisher
) -> None:
    bucket.add(record(origin(1, kind="erase")))
    assert bucket.json(_ID)["kind"] == "erasure"
    result = bucket.run(_ID, "--watch", **_PUBLISHER)
    assert result.exit_code == 1
    assert "an erasure has no progress to watch" in result.stderr
    assert publisher.since is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["--watch"],
        ["--failures"],
        ["acme", "--watch"],
        ["No Project"],
        ["acme", "--project", "acme"],
        ["--project", "acme"],
        [_ID, "--project", "No Project"],
    ],
)
def test_wrong_usage_exits_2(bucket: Bench, arguments: list[str]) -> None:
    result = bucket.run(*arguments, **_PUBLISHER)
    assert (result.exit_code, result.stdout) == (2, "")


def test_watching_needs_the_settings_of_a_publisher(bucket: Bench) -> None:
    bucket.add(record(origin(1)))
    result = bucket.run(_ID, "--watch")
    assert result.exit_code == 2
    assert "KEYTURN_PUBLISHER_KEY is missing" in result.stderr


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
        (done(1, clean=False), 1, "not clean: 2 failed"),
        (failed(1, "keyring_rolled_back"), 1, "keyring_rolled_back"),
    ],
)
def test_watching_an_ended_sweep_needs_no_broker(
    bucket: Bench, publisher: _ScriptedPublisher, ended: Origin, exit_code: int, message: str
) -> None:
    bucket.add(record(ended))
    result = bucket.run(_ID, "--watch", **_PUBLISHER)
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr
    assert bucket.run(_ID).exit_code == 0  # without --watch the end does not matter
    assert publisher.since is None


@pytest.mark.parametrize("clean", [True, False])
def test_watching_continues_to_the_end_and_shows_the_final_record(
    bucket: Bench, publisher: _ScriptedPublisher, *, clean: bool
) -> None:
    running, ended = origin(1), done(1, clean=clean)
    bucket.add(record(running))

    async def end() -> None:
        stored = await bucket.store.read("acme")
        assert await bucket.store.change(record(ended), stored.etag, "m1")

    publisher.meanwhile = end
    publisher.script = lambda _: [
        event("sweep.progressed", sweep_id=_ID, objects=2),
        event("sweep.completed", sweep_id=_ID, objects=5, failed=int(not clean), clean=clean),
    ]
    result = bucket.run(_ID, "--watch", "--json", **_PUBLISHER)
    assert result.exit_code == (0 if clean else 1), result.output
    report = json.loads(result.stdout)
    assert (report["event"]["objects"], report["status"], report["clean"]) == (5, "done", clean)
    assert publisher.since == running.added_at


def test_ctrl_c_says_how_to_follow_the_sweep(bucket: Bench, publisher: _ScriptedPublisher) -> None:
    bucket.add(record(origin(1)))
    publisher.interrupt = True
    result = bucket.run(_ID, "--watch", **_PUBLISHER)
    assert result.exit_code == 130
    assert result.stderr.endswith(f"keyturn status {_ID} --project acme --watch\n")


def test_a_resumed_sweep_is_watched_past_its_failure(
    bucket: Bench, publisher: _ScriptedPublisher
) -> None:
    """Its dead letter was replayed; the event stream still contains the failure."""
    failed_at, resumed_at = BEGIN + timedelta(minutes=2), BEGIN + timedelta(minutes=9)
    bucket.add(record(origin(1), stepped_at=resumed_at))
    refused = {"code": "keyring_rolled_back", "detail": "", "sweep_id": _ID}
    publisher.script = lambda _: [
        event("sweep.failed", format_time(failed_at), **refused),
        event("sweep.completed", format_time(resumed_at), sweep_id=sweep_id(2)),
        event("sweep.completed", format_time(resumed_at), sweep_id=_ID, objects=5),
    ]
    result = bucket.run(_ID, "--watch", "--json", **_PUBLISHER)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["event"]["type"] == "sweep.completed"
    publisher.script = lambda _: [event("sweep.failed", format_time(resumed_at), **refused)]
    again = bucket.run(_ID, "--watch", "--json", **_PUBLISHER)
    assert again.exit_code == 1
    assert "keyring_rolled_back" in again.stderr
