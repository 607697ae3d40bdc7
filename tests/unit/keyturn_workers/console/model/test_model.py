"""The fold as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.messages import SweepRequested
from keyturn_workers.console.model import AuditQuery, Feed, Model, ProjectQuery, SweepQuery, audit
from keyturn_workers.console.model.rows import DeadSummary, QueueDepth, QueueSnapshot
from tests.unit.keyturn_workers.console.model.messages import (
    CONSOLE,
    Clock,
    accepted,
    at,
    audit_record,
    enrolled,
    failures_report,
    keys_report,
    make_model,
    progressed,
    project_status,
    projects_report,
    report,
    rotation_completed,
    rotation_failed,
    stored,
    sweep_completed,
    sweep_rejected,
    sweep_status,
    sweeps_report,
    text,
    uid,
    worker,
)

if TYPE_CHECKING:
    import pytest

    from keyturn.messages import Event
    from keyturn_workers.console.model.changes import Topic


def test_a_rotation_is_seen_from_its_events_alone() -> None:
    model = make_model()
    events: list[Event] = [accepted(1), progressed(2, objects=2), rotation_completed(3)]
    for offset, event in enumerate(events):
        model.apply_event(event, offset)
    row = model.project("acme")
    assert row is not None
    assert (row.generation, row.key_since, row.last_proof_at) == (2, at(1), at(3))
    assert (row.last_proof_sweep, row.running_sweeps) == (uid(3), ())


def test_an_event_that_is_read_twice_counts_once() -> None:
    model = make_model()
    for offset in (5, 5, 6):
        model.apply_event(stored(1), offset)
    assert model.history.total("stored", at(0)) == 2


def test_only_own_reports_count() -> None:
    model = make_model()
    model.apply_report(projects_report(1, project_status("acme"), publisher="shop"))
    assert model.projects(ProjectQuery()).total == 0


def test_a_request_of_this_console_is_shown_before_a_worker_begins() -> None:
    model = make_model()
    request = SweepRequested(requested_at=text(1), sweep_id=uid(8), project="acme", repair=True)
    model.apply_request(request, "ada")
    row = model.sweeps(SweepQuery()).rows[0]
    assert (row.status, row.actor, row.repair) == ("requested", "ada", True)


def test_after_a_restart_the_audit_trail_says_who_requested_a_sweep() -> None:
    model = make_model()
    record = audit_record(
        1,
        actor="ada",
        publisher=CONSOLE,
        request_type="sweep.requested",
        request_id=uid(8),
    )
    model.apply_audit(record, 0)
    row = model.sweeps(SweepQuery()).rows[0]
    assert (row.status, row.actor, row.project) == ("requested", "ada", "acme")
    assert model.audit(AuditQuery()).total == 1


def test_a_restarted_console_names_the_same_person_without_the_audit_trail() -> None:
    """The trail may have grown by more records than a starting console reads."""
    request = SweepRequested(requested_at=text(0), sweep_id=uid(4), project="acme", actor="ada")
    served = audit_record(1, actor="ada", publisher=CONSOLE, request_type="sweep.requested")
    served = served.model_copy(update={"request_id": uid(4)})
    ended = sweep_completed(3, clean=True).model_copy(update={"publisher": CONSOLE})
    status = sweep_status(
        "acme", 4, "done", publisher=CONSOLE, actor="ada", clean=True, requested_at=text(0)
    )
    live, restarted = make_model(), make_model()
    live.apply_request(request, "ada")
    live.apply_audit(served, 0)
    for model in (live, restarted):
        model.apply_event(ended, 0)
        model.apply_report(sweeps_report(4, status))
    row = restarted.sweep(uid(4), "acme")
    assert row is not None
    assert (row.row.publisher, row.row.actor) == (CONSOLE, "ada")
    assert row == live.sweep(uid(4), "acme")


def test_a_part_of_a_sweep_of_all_names_the_person_of_the_whole() -> None:
    model = make_model()
    model.apply_event(progressed(2, sweep=4, objects=1), 0)
    whole = SweepRequested(requested_at=text(0), sweep_id=uid(4), project="*")
    model.apply_request(whole, "ada")
    view = model.sweep(uid(4), "acme")
    assert view is not None
    assert (view.row.part_of_all, view.row.actor) == (True, "ada")


def test_another_publishers_sweep_is_not_given_this_consoles_person() -> None:
    model = make_model()
    model.apply_request(
        SweepRequested(requested_at=text(5), sweep_id=uid(4), project="acme"), "ada"
    )
    model.apply_report(sweeps_report(6, sweep_status("acme", 4, publisher="shop")))
    view = model.sweep(uid(4), "acme")
    assert view is not None
    assert (view.row.publisher, view.row.actor) == ("shop", None)


def test_after_a_restart_the_audit_trail_says_who_was_refused() -> None:
    refused = audit_record(
        2,
        action="request.refused",
        actor="ada",
        publisher=CONSOLE,
        request_type="sweep.requested",
        request_id=uid(4),
        outcome="unknown_project",
    )
    for event_first in (True, False):
        model = make_model()
        if event_first:
            model.apply_event(sweep_rejected(1), 0)
        model.apply_audit(refused, 0)
        row = model.sweeps(SweepQuery()).rows[0]
        assert (row.status, row.code, row.actor) == ("rejected", "unknown_project", "ada")
        assert row.detail == ("no keyring" if event_first else None)


def test_a_record_that_is_too_old_to_be_kept_says_who_requested_a_sweep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit, "MAX_RECORDS", 1)
    model = make_model()
    model.apply_audit(audit_record(2, 2), 9)
    requested: dict[str, Any] = {"request_type": "sweep.requested", "request_id": uid(4)}
    model.apply_audit(audit_record(1, actor="ada", publisher=CONSOLE, **requested), 8)
    assert [row.actor for row in model.sweeps(SweepQuery()).rows] == ["ada"]
    assert model.audit(AuditQuery()).total == 1


def test_the_series_of_rewrapped_objects_comes_from_progress() -> None:
    model = make_model(Clock(200))
    for offset, (seconds, number) in enumerate(((10, 5), (70, 9), (75, 12))):
        model.apply_event(progressed(seconds, rewrapped=number, objects=20), offset)
    assert [value for _, value in model.series("rewrapped", at(0), 10)] == [5, 7, 0, 0]


def test_what_is_held_is_named_by_its_digest() -> None:
    model = make_model()
    model.apply_report(projects_report(1, project_status("acme"), digest="1" * 64))
    assert model.digest_of_page("projects", "*", None) == "1" * 64
    assert model.digest_of_page("projects", "acme", None) is None
    model.apply_report(report(5, "projects", digest="1" * 64, unchanged=True))
    assert model.projects(ProjectQuery()).as_of == at(5)


def test_changes_name_the_topics() -> None:
    model = make_model()
    version = model.changes.version
    model.apply_event(stored(1), 0)
    model.apply_event(stored(1), 0)
    assert model.changes.version == version + 1


def test_the_overview_counts_what_is_known() -> None:
    model = make_model()
    model.apply_event(accepted(1), 0)
    overview = model.overview()
    assert (overview.projects, overview.sweeps_running, overview.backlog) == (1, 1, None)
    assert overview.broker_lost_at == model.started_at


def test_dead_letters_are_counted_by_what_saw_more_of_them() -> None:
    """The broker's count is newer; while letters are read, it misses those that are held."""
    model = make_model()
    depths = (QueueDepth("keyturn.upload.dead", 5, 0), QueueDepth("keyturn.unsigned.dead", 2, 0))
    model.apply_queues(QueueSnapshot(at(2), (QueueDepth("keyturn.upload", 0, 1), *depths)))
    assert model.overview().dead_letters is None
    model.set_dead(DeadSummary((), 3, at(1), is_complete=True))
    assert model.overview().dead_letters == 7
    model.set_dead(DeadSummary((), 9, at(1), is_complete=True))
    assert model.overview().dead_letters == 9


def test_a_source_that_is_lost_or_found_again_concerns_every_page() -> None:
    model = make_model()
    audit: frozenset[Topic] = frozenset({"audit"})
    for is_connected in (True, False):
        before = model.changes.version
        model.set_feed(Feed("events", is_connected=is_connected))
        assert model.changes.has_changed_since(before, audit)
    before = model.changes.version
    model.set_feed(Feed("events", problem="the broker cannot be reached"))
    assert model.changes.has_changed_since(before, audit)
    before = model.changes.version
    model.set_feed(Feed("events", problem="the broker cannot be reached", as_of=at(5)))
    assert not model.changes.has_changed_since(before, audit)


_SECONDS = st.integers(0, 50)
_PROJECTS = st.sampled_from(["acme", "beta"])
_SWEEPS = st.integers(3, 5)
_COUNTS = st.fixed_dictionaries(
    {"objects": st.integers(0, 9), "rewrapped": st.integers(0, 9), "failed": st.integers(0, 1)}
)


def _event_strategy() -> st.SearchStrategy[Any]:
    def counted(make: Any, *, whole: bool = False, **more: Any) -> st.SearchStrategy[Any]:
        projects = st.sampled_from(["acme", "*"]) if whole else _PROJECTS
        return st.builds(
            lambda at_s, project, sweep, clean, counts: make(
                at_s, project, sweep, clean=clean, **counts, **more
            ),
            *(_SECONDS, projects, _SWEEPS, st.booleans(), _COUNTS),
        )

    return st.one_of(
        st.builds(stored, _SECONDS),
        st.builds(enrolled, _SECONDS, _PROJECTS),
        st.builds(accepted, _SECONDS, _PROJECTS, st.integers(2, 4), _SWEEPS),
        st.builds(rotation_failed, _SECONDS, _PROJECTS, _SWEEPS),
        st.builds(sweep_rejected, _SECONDS, _PROJECTS, _SWEEPS),
        counted(progressed),
        counted(rotation_completed),
        counted(sweep_completed, whole=True),
        counted(sweep_completed, whole=True, late_writes_refused=None),
    )


def _report_strategy() -> st.SearchStrategy[Any]:
    statuses = st.builds(
        sweep_status,
        st.sampled_from(["acme", "*"]),
        _SWEEPS,
        st.sampled_from(["running", "done", "failed"]),
        clean=st.booleans(),
        repair=st.booleans(),
        expected_objects=st.none() | st.integers(1, 9),
        publisher=st.sampled_from(["shop", CONSOLE]),
        actor=st.none() | st.just("ada"),
    )
    keyrings = st.builds(project_status, _PROJECTS, st.integers(1, 4))
    digests = st.sampled_from(["1" * 64, "2" * 64])
    return st.one_of(
        st.builds(sweeps_report, _SECONDS, statuses),
        st.builds(projects_report, _SECONDS, keyrings, digest=digests),
        st.builds(
            lambda at_s, digest: report(at_s, "projects", digest=digest, unchanged=True),
            *(_SECONDS, digests),
        ),
        st.builds(failures_report, _SECONDS, st.text("ab", min_size=1, max_size=2)),
        st.builds(keys_report, _SECONDS, st.sampled_from(["main", "old"])),
    )


def _audit_strategy() -> st.SearchStrategy[Any]:
    def make(at_s: int, project: str, sweep: int, action: str, actor: str) -> Any:
        return audit_record(
            at_s,
            action=action,
            outcome="unknown_project" if action == "request.refused" else "done",
            actor=actor,
            publisher=CONSOLE,
            request_type="sweep.requested",
            request_id=uid(sweep),
            project=project,
        )

    actions = st.sampled_from(["request.served", "request.refused", "kek.derived"])
    projects, actors = st.sampled_from(["acme", "*"]), st.sampled_from(["ada", "kim"])
    return st.builds(make, _SECONDS, projects, _SWEEPS, actions, actors)


_MESSAGES = st.lists(
    st.one_of(
        _event_strategy(),
        _report_strategy(),
        _audit_strategy(),
        st.builds(worker, _SECONDS, st.integers(1, 2), served=st.integers(0, 99)),
    ),
    min_size=1,
    max_size=14,
    unique_by=lambda message: (message.at, message.type, getattr(message, "view", None)),
)


def _fold(messages: list[tuple[int, Any]]) -> Model:
    model = make_model()
    for offset, message in messages:
        match message.type:
            case "status.reported":
                model.apply_report(message)
            case "worker.reported":
                model.apply_worker(message)
            case "audit.recorded":
                model.apply_audit(message, offset)
            case _:
                model.apply_event(message, offset)
    return model


def _shown(model: Model) -> dict[str, Any]:
    sweeps = model.sweeps(SweepQuery(parts=True))
    projects = model.projects(ProjectQuery(sort="last_proof_at"))
    return {
        "sweeps": {(row.project, row.sweep_id): row for row in sweeps.rows},
        "sweep": {row.ref: model.sweep(row.sweep_id, row.project) for row in sweeps.rows},
        "projects": {row.project: row for row in projects.rows},
        "as_of": (sweeps.as_of, projects.as_of, projects.is_complete),
        "stored": model.series("stored", at(0), 10),
        "rewrapped": model.series("rewrapped", at(0), 10),
        "keys": model.master_keys(),
        "workers": model.workers(),
        "audit": model.audit(AuditQuery()).rows,
        "queues": model.queues(),
        "running": set(model.running_sweeps()),
    }


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data(), messages=_MESSAGES)
def test_any_order_and_repetition_of_messages_gives_the_same_model(
    data: st.DataObject, messages: list[Any]
) -> None:
    numbered = list(enumerate(messages))
    repeated = data.draw(st.permutations(numbered + numbered[::2]))
    assert _shown(_fold(numbered)) == _shown(_fold(repeated))


def test_what_is_dated_in_the_future_hides_nothing_that_follows() -> None:
    """A control worker's clock is a year ahead; after a minute, another one answers."""
    clock = Clock(60)
    model, year_s = make_model(clock), 365 * 86400
    model.apply_report(projects_report(year_s, project_status("acme", 1)))
    model.apply_event(accepted(year_s, generation=2), 1)
    model.apply_worker(worker(year_s))
    row = model.project("acme")
    assert row is not None
    assert (row.generation, row.as_of) == (2, at(60))
    assert any("clock" in note for note in model.notes())
    clock.set(120)
    model.apply_report(projects_report(119, project_status("acme", 3)))
    row = model.project("acme")
    assert row is not None
    assert (row.generation, row.as_of) == (3, at(119))
    assert model.workers()[0].is_missing
    clock.set(3600)
    assert not model.notes()
