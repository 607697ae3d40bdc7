"""*Project*: its keyring, sweeps, evidence, and what may be done (SPEC 16.2)."""

from __future__ import annotations

from typing import Literal

import pytest

from keyturn.identifiers import format_time
from keyturn.messages import COUNT_FIELDS, ProjectStatus, SweepCompleted, SweepRequested
from tests.unit.keyturn_workers.console.web.shown import lived, shown
from tools.harness.console_data import (
    HOSTILE,
    NOW,
    Scale,
    add_evidence,
    digest,
    empty_model,
    filled_model,
    made_up_id,
    projects_report,
)
from tools.harness.console_preview import client, preview_app


def test_a_project_has_its_keyring_sweeps_evidence_and_records() -> None:
    page = shown(lived(), "/projects/acme")
    for words in ("Generation 1", "Master key m2", "Earlier keys held none", "Clean"):
        assert words in page.text
    assert f'href="/projects/acme/evidence/{digest("evidence acme 2")}"' in page.html
    assert "Does not verify" in page.text
    assert 'href="/audit?project=acme"' in page.html


def test_evidence_links_to_the_requests_that_it_answers_or_names_its_round() -> None:
    """A file is named after its round, which may answer several requests."""
    model = filled_model(Scale(uploads=0))
    add_evidence(model, "acme")
    for number in (1, 2):
        end = {
            **dict.fromkeys(COUNT_FIELDS, 0),
            "at": format_time(NOW),
            "publisher": "ops",
            "request": digest(f"request {number}"),
            "sweep_id": made_up_id(f"request {number}"),
            "project": "acme",
            "clean": True,
            "evidence": digest("evidence acme 2"),
        }
        model.apply_event(SweepCompleted.model_validate(end), 10**6 + number)
    page = shown(model, "/projects/acme")
    row, other = (
        next(each for each in page.rows if digest(f"evidence acme {number}") in each)
        for number in (2, 3)
    )
    for number in (1, 2):
        sweep_id = made_up_id(f"request {number}")
        assert f"sweep {sweep_id}" in row
        assert f'href="/sweeps/acme/{sweep_id}"' in page.html
    round_id = made_up_id("evidence acme 3")
    assert f"round {round_id}" in other
    assert f"/sweeps/acme/{round_id}" not in page.html


def test_only_who_may_act_sees_the_actions() -> None:
    actions = ("/sweeps/new?project=acme", "/projects/acme/rotate", "/projects/acme/delete")
    operate = shown(lived(), "/projects/acme", role="operate")
    view = shown(lived(), "/projects/acme", role="view")
    for action in actions:
        assert f'href="{action}"' in operate.html
        assert f'href="{action}"' not in view.html


def test_a_keyring_that_cannot_be_read_says_why_and_what_to_do() -> None:
    page = shown(lived(), "/projects/stark")
    assert "Its keyring cannot be read" in page.text
    assert "Add it to KEYTURN_MASTER_KEYS." in page.text
    assert HOSTILE not in page.html
    assert "/projects/stark/rotate" not in page.html


@pytest.mark.parametrize(
    ("mark", "title", "way_out"),
    [
        ("rolled_back", "Its keyring was rolled back", "keyturn recover umbra"),
        ("removed", "Its keyring was removed", "keyturn enroll umbra --adopt"),
        ("unknown", "Its keyring has no mark", "keyturn recover umbra"),
    ],
)
def test_a_keyring_that_its_mark_contradicts_comes_with_the_way_out(
    mark: Literal["rolled_back", "removed", "unknown"], title: str, way_out: str
) -> None:
    model = filled_model(Scale(projects=3, uploads=0))
    row = ProjectStatus(project="umbra", mark=mark)
    report = projects_report((row,))
    model.apply_report(report.model_copy(update={"project": "umbra"}))
    page = shown(model, "/projects/umbra")
    assert title in page.text
    assert way_out in page.text
    assert "/projects/umbra/rotate" not in page.html
    now = shown(model, "/")
    assert "umbra: the keyring is" in now.text
    assert 'href="/projects/umbra"' in now.html


def test_what_was_not_read_is_asked_for() -> None:
    app = preview_app(lived())
    answer = client(app).get("/projects/globex")
    assert "The evidence has not been read yet" in answer.text
    assert app.state.console.feeds.asked == ["evidence of globex"]


def test_who_requested_a_sweep_is_the_person_or_said_to_be_unknown() -> None:
    known, unknown = "2f6c9a0e-0000-4000-8000-000000000001", "2f6c9a0e-0000-4000-8000-000000000002"
    model = filled_model(Scale(uploads=0))
    for sweep_id, actor in ((known, "ada"), (unknown, None)):
        request = SweepRequested(requested_at=format_time(NOW), sweep_id=sweep_id, project="acme")
        model.apply_request(request, actor)
    for path in ("/projects/acme", "/sweeps"):
        rows = shown(model, path).rows
        assert any(f"{model.publisher} (person not known)" in row for row in rows)
        assert any("ada" in row and "not known" not in row for row in rows)
    page = shown(model, f"/sweeps/acme/{known}")
    assert f"Requested by ada by {model.publisher}" in page.text


def test_an_unknown_project_is_not_found() -> None:
    app = preview_app(lived())
    assert client(app).get("/projects/nothing").status_code == 404
    assert app.state.console.feeds.asked == []


def test_of_a_project_that_may_exist_the_keyring_is_asked_for() -> None:
    app = preview_app(empty_model())
    answer = client(app).get("/projects/acme")
    assert answer.status_code == 404
    assert "does not know the project “acme” yet" in answer.text
    assert "project acme" in app.state.console.feeds.asked
    assert client(app).get("/projects/%3Cb%3E").status_code == 404
