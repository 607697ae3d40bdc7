"""Addresses of pages, codes, and what pages say about sweeps (SPEC 8.6, 12, 16.2)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
from starlette.datastructures import QueryParams

from keyturn.errors import all_errors
from keyturn.identifiers import parse_time
from keyturn.messages import AttentionLink, AuditStatus, Counts, Progress, SweepStatus
from keyturn.messages.audit import AuditAction
from keyturn.progress import WHY_WAIT, KeyProblem
from keyturn.topology import REQUESTS
from keyturn_workers.console.rendering import words
from keyturn_workers.process.code_help import CODES, code_help

if TYPE_CHECKING:
    from datetime import datetime

_ID = "2f6c9a0e-0000-4000-8000-000000000001"
_NOW = parse_time("2026-11-26T09:30:00Z")
_SOON = "2026-11-26T09:30:12Z"
_ROW = SweepStatus(sweep_id=_ID, project="acme", kind="sweep", status="running")
_COUNTS = Counts(objects=10, current=4, plaintext=1, deleted=2, failed=1, noncurrent_stale=3)


def _row(**change: Any) -> SweepStatus:
    return _ROW.model_copy(update=change)


def test_paths_of_pages() -> None:
    assert words.project_path("a/b?c") == "/projects/a%2Fb%3Fc"
    assert words.sweep_path("acme", "id") == "/sweeps/acme/id"
    assert words.sweep_path("*", "id") == "/sweeps/_all/id"
    assert words.project_of_segment("_all") == "*"
    assert words.project_of_segment("Not one") is None


@pytest.mark.parametrize(
    ("link", "path"),
    [
        (AttentionLink(page="project", project="acme"), "/projects/acme"),
        (AttentionLink(page="sweep", project="*", sweep_id=_ID), f"/sweeps/_all/{_ID}"),
        (AttentionLink(page="sweep"), "/"),
        (
            AttentionLink(page="dead_letters", filter={"queue": "keyturn.upload.dead"}),
            "/dead?queue=keyturn.upload.dead",
        ),
        (AttentionLink(page="master_keys"), "/keys"),
        (
            AttentionLink(page="projects", filter={"state": "old_key", "order": "-key_since"}),
            "/projects?state=old_key&sort=key_since&order=desc",
        ),
    ],
)
def test_what_needs_attention_leads_to_its_page(link: AttentionLink, path: str) -> None:
    assert words.attention_link(link) == path


def test_an_address_keeps_what_is_set_and_changes_what_is_named() -> None:
    params = QueryParams("text=a%26b&page=3&empty=")
    assert words.address("/projects", params, page=4) == "/projects?text=a%26b&page=4"
    assert words.address("/projects", params, page=None, text="") == "/projects"


@pytest.mark.parametrize(
    ("typed", "page"), [("", 1), ("0", 1), ("-1", 1), ("x", 1), ("7", 7), ("9" * 99, 1_000_000)]
)
def test_the_number_of_a_page(typed: str, page: int) -> None:
    assert words.page_of(QueryParams({"page": typed})) == page


def test_what_is_malformed_is_the_default() -> None:
    params = QueryParams({"state": "x", "text": " a " + "b" * 2000})
    assert words.choice_of(params, "state", ("any", "ok"), "any") == "any"
    assert words.choice_of(QueryParams("state=ok"), "state", ("any", "ok"), "any") == "ok"
    assert len(words.text_of(params, "text")) == 200


@pytest.mark.parametrize(
    ("change", "kind", "word"),
    [
        ({}, "busy", "Running"),
        ({"status": "failed"}, "bad", "Failed"),
        ({"status": None}, "bad", "Unreadable"),
        ({"status": "done", "clean": True}, "ok", "Clean"),
        ({"status": "done", "clean": False, "counts": _COUNTS}, "warn", "Not clean, 1 failed"),
        ({"status": "done", "clean": False}, "warn", "Not clean"),
        ({"kind": "erasure"}, "busy", "Running"),
        ({"kind": "erasure", "status": "failed"}, "bad", "Refused"),
        ({"kind": "erasure", "status": "done", "clean": True}, "ok", "Erased"),
    ],
)
def test_the_state_of_a_sweep_is_a_word_and_never_its_color_alone(
    change: dict[str, Any], kind: str, word: str
) -> None:
    assert words.sweep_badge(_row(**change)) == words.Badge(kind, word)


@pytest.mark.parametrize(
    ("action", "outcome", "word"),
    [
        ("request.served", "done", "Done"),
        ("request.refused", "not_permitted", "Refused"),
        ("dead_letter.replayed", "started", "Replayed"),
        ("object.opened_as_operator", "started", "Attempted"),
        ("object.opened_as_operator", "corrupt_object", "Refused"),
    ],
)
def test_no_record_shows_as_if_its_action_still_went_on(
    action: str, outcome: str, word: str
) -> None:
    """After what a command did, there is a record only if it failed."""
    row = AuditStatus(
        audit_id=_ID,
        at="2026-11-26T09:30:00Z",
        process=_ID,
        counter=1,
        role="download",
        host="worker-1",
        action=action,
        actor="ada",
        outcome=outcome,
        offset=0,
    )
    assert words.audit_outcome(row).word == word
    assert words.audit_outcome(row).kind != "busy"


_RECORD = AuditStatus(
    audit_id=_ID,
    at="2026-11-26T09:30:00Z",
    process=_ID,
    counter=1,
    role="worker control",
    host="worker-1",
    action="request.served",
    actor="kim",
    project="bulk",
    outcome="done",
    offset=0,
)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"request_type": "rotation.requested", "generation": 4},
            "kim rotated bulk to generation 4",
        ),
        (
            {"request_type": "sweep.requested", "project": "*"},
            "kim started a sweep of all projects",
        ),
        (
            {"request_type": "delete.requested", "object_key": "q3 <b>"},
            "kim deleted q3 &lt;b&gt; of bulk",
        ),
        ({"request_type": "delete.requested", "object_count": 3}, "kim deleted 3 objects of bulk"),
        (
            {
                "action": "request.refused",
                "request_type": "rotation.requested",
                "outcome": "not_permitted",
            },
            "kim tried to rotate bulk",
        ),
        (
            {"action": "request.refused", "outcome": "malformed_request"},
            "kim tried to send a request",
        ),
        (
            {"action": "dead_letter.replayed", "outcome": "started", "project": None},
            "kim replayed a dead letter",
        ),
        (
            {"action": "object.opened_as_operator", "outcome": "started"},
            "kim opened objects of bulk with a master key",
        ),
        ({"request_type": "of_tomorrow.requested"}, "kim sent of_tomorrow.requested"),
        ({"actor": "<script>", "action": "of.tomorrow"}, "&lt;script&gt; sent of.tomorrow"),
    ],
)
def test_an_audit_record_is_a_sentence(change: dict[str, Any], sentence: str) -> None:
    said = words.audit_sentence(_RECORD.model_copy(update=change))
    assert re.sub(r"</?(a|bdi|strong)\b[^>]*>", "", said).strip() == sentence


def test_each_recorded_request_and_action_has_its_words() -> None:
    actions = set(get_args(AuditAction)) - {"request.served", "request.refused"}
    assert words._ACTS.keys() == actions | set(REQUESTS)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"kind": "rotation"}, "Rotation"),
        ({"master_key": "m2"}, "Master key sweep"),
        ({"kind": "erasure"}, "Erasure"),
        ({}, "Sweep"),
    ],
)
def test_kinds_of_sweeps(change: dict[str, Any], shown: str) -> None:
    assert words.sweep_kind(_row(**change)) == shown


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, words.SweepProgress("not counted yet")),
        ({"progress": Progress(phase="waiting")}, words.SweepProgress("Waiting for a worker")),
        (
            {"progress": Progress(phase="waiting"), "waits_for_round": True},
            words.SweepProgress("Waiting for the next round"),
        ),
        (
            {"progress": Progress(phase="rewrapping", done=5)},
            words.SweepProgress("Rewrapping, 5 objects so far"),
        ),
        (
            {"progress": Progress(phase="rewrapping", done=5, total=20, proof_possible_at=_SOON)},
            words.SweepProgress("Rewrapping 5 of 20 objects", 0.125),
        ),
        (
            # The project has grown since it was counted.
            {"progress": Progress(phase="rewrapping", done=30, total=20)},
            words.SweepProgress("Rewrapping 30 of 20 objects", 0.5),
        ),
        (
            {"progress": Progress(phase="proving", done=46, total=92, proof_possible_at=_SOON)},
            words.SweepProgress(f"Proved 46 of 92 objects; waiting 12 s, {WHY_WAIT}", 0.75),
        ),
        (
            {
                "progress": Progress(
                    phase="proving", done=46, total=92, proof_possible_at="2026-11-26T09:29:00Z"
                )
            },
            words.SweepProgress("Proving 46 of 92 objects", 0.75),
        ),
        (
            # The second half of the bar begins where the first ended.
            {"progress": Progress(phase="proving", total=9, proof_possible_at=_SOON)},
            words.SweepProgress(f"All rewrapped; waiting 12 s, {WHY_WAIT}", 0.5),
        ),
        (
            {"project": "*", "progress": Progress(phase="rewrapping", done=3, total=9)},
            words.SweepProgress("Rewrapping 3 of 9 projects", 1 / 6),
        ),
        (
            {"progress": Progress(phase="rewrapping", done=1, total=1)},
            words.SweepProgress("Rewrapping 1 of 1 object", 0.5),
        ),
        (
            # As on the page of the project: tombstones are no objects.
            {"status": "done", "counts": _COUNTS},
            words.SweepProgress("8 objects, 2 deleted"),
        ),
        (
            {"progress": Progress(phase="waiting", waits_for_key="customer_key_refused")},
            words.SweepProgress("Waiting for the customer key"),
        ),
        (
            {
                "progress": Progress(
                    phase="rewrapping", done=5, waits_for_key="customer_key_unavailable"
                )
            },
            words.SweepProgress("Rewrapping, 5 objects so far, waiting for the customer key"),
        ),
        (
            {
                "progress": Progress(
                    phase="proving",
                    done=46,
                    total=92,
                    proof_possible_at=_SOON,
                    waits_for_key="customer_key_refused",
                )
            },
            words.SweepProgress("Proving 46 of 92 objects, waiting for the customer key", 0.75),
        ),
        (
            {"kind": "erasure", "progress": Progress(phase="waiting")},
            words.SweepProgress("Asking the stores of the customer keys"),
        ),
        (
            {"kind": "erasure", "status": "done", "counts": Counts()},
            words.SweepProgress("—"),
        ),
        ({"status": "done", "counts": Counts(objects=1)}, words.SweepProgress("1 object")),
        ({"status": "done"}, words.SweepProgress("—")),
    ],
)
def test_progress_is_that_of_the_phase(
    change: dict[str, Any], expected: words.SweepProgress
) -> None:
    assert words.sweep_progress(_row(**change), _NOW) == expected


def _moments(row: SweepStatus, now: datetime = _NOW) -> list[tuple[str, str]]:
    return [(each.title, each.state) for each in words.sweep_moments(row, now)]


def test_the_moments_of_a_sweep_pass_one_after_the_other() -> None:
    names = ["Requested", "First rewrap", "All rewrapped", "Proof possible from", "Proven"]
    begun = _row(requested_at="2026-11-26T09:20:00Z")
    assert _moments(begun) == list(
        zip(names, ["done", "next", "later", "later", "later"], strict=True)
    )
    proving = begun.model_copy(
        update={
            "progress": Progress(
                phase="proving",
                first_rewrap_at="2026-11-26T09:21:00Z",
                all_rewrapped_at="2026-11-26T09:22:00Z",
                proof_possible_at=_SOON,
            )
        }
    )
    assert [state for _, state in _moments(proving)] == ["done", "done", "done", "next", "later"]
    # While objects are rewrapped, that moment may still move.
    rewrapping = begun.model_copy(
        update={"progress": Progress(phase="rewrapping", proof_possible_at="2026-11-26T09:00:00Z")}
    )
    assert words.sweep_moments(rewrapping, _NOW)[3] == words.Moment(names[3], "later", None)
    later = parse_time("2026-11-26T09:31:00Z")
    assert [state for _, state in _moments(proving, later)][-2:] == ["done", "next"]
    ended = proving.model_copy(
        update={"status": "done", "clean": True, "ended_at": "2026-11-26T09:30:20Z"}
    )
    assert {state for _, state in _moments(ended)} == {"done"}
    assert words.sweep_moments(ended, _NOW)[-1].at == parse_time("2026-11-26T09:30:20Z")


@pytest.mark.parametrize(
    ("change", "title"),
    [
        ({"status": "done", "clean": False}, "Ended, not clean"),
        ({"status": "failed"}, "Failed"),
        ({"kind": "erasure", "status": "failed"}, "Refused"),
        ({"kind": "erasure"}, "Erased"),
        ({}, "Proven"),
    ],
)
def test_the_end_of_a_sweep_is_called_what_it_is(change: dict[str, Any], title: str) -> None:
    assert words.sweep_moments(_row(**change), _NOW)[-1].title == title


def test_a_sweep_that_failed_did_not_reach_the_later_moments() -> None:
    failed = _row(
        status="failed",
        ended_at="2026-11-26T09:22:00Z",
        progress=Progress(phase="ended", first_rewrap_at="2026-11-26T09:21:00Z"),
    )
    assert [(each.state, each.note) for each in words.sweep_moments(failed, _NOW)] == [
        ("done", ""),
        ("done", ""),
        ("later", "not reached"),
        ("later", "not reached"),
        ("done", ""),
    ]


def test_a_sweep_of_all_projects_has_no_moments_of_rewrapping() -> None:
    """Those are in the parts. An erasure has none."""
    assert _moments(_row(project="*")) == [("Requested", "done"), ("Proven", "next")]
    assert _moments(_row(kind="erasure")) == [("Requested", "done"), ("Erased", "next")]


def test_why_a_customer_key_gives_no_secret_is_said_in_words() -> None:
    codes = get_args(KeyProblem)
    assert {words.key_wait_words(code) for code in codes} == {"refused", "unavailable"}
    assert set(codes) <= CODES.keys()


def test_where_nothing_had_to_be_rewrapped_that_is_said() -> None:
    progress = Progress(phase="proving", all_rewrapped_at="2026-11-26T09:22:00Z")
    first = words.sweep_moments(_row(progress=progress), _NOW)[1]
    assert (first.state, first.note) == ("done", "nothing had to be rewrapped")


def test_each_count_has_its_meaning() -> None:
    shown = words.sweep_counts(_COUNTS)
    assert [each.value for each in shown] == [
        getattr(_COUNTS, name) for name in Counts.model_fields
    ]
    assert all(each.meaning for each in shown)
    assert words.sweep_counts(None) == ()


def test_options_are_phrases() -> None:
    row = _row(master_key="m2", encrypt_plaintext=True, repair=True)
    assert words.sweep_options(row)[:2] == ("master key m2", "encrypt plaintext")
    assert words.sweep_options(_ROW) == ()


def test_each_action_of_the_audit_trail_has_words() -> None:
    assert words.AUDIT_ACTIONS.keys() == set(get_args(AuditAction))
    assert words.audit_action("of tomorrow") == "of tomorrow"


_REFERENCE = Path(__file__).parents[4] / "docs" / "reference" / "errors.md"


def _plain(markdown: str) -> str:
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown).replace("`", "")


def test_the_help_is_that_of_the_reference() -> None:
    section = _REFERENCE.read_text().partition("## Codes")[2].partition("\n## ")[0]
    rows = [line.strip()[1:-1].split("|") for line in section.splitlines() if line[:3] == "| `"]
    documented = {
        code.strip().strip("`"): (_plain(meaning.strip()), _plain(remedy.strip()))
        for code, _, _, meaning, remedy in rows
    }
    assert {code: (help_.meaning, help_.remedy) for code, help_ in CODES.items()} == documented


def test_each_code_has_its_help() -> None:
    assert CODES.keys() == all_errors().keys()


def test_an_unknown_code_is_shown_as_unknown() -> None:
    assert "does not know" in code_help("code_of_tomorrow").meaning
