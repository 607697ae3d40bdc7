"""Replays and discards are prepared, confirmed with their number, and only by operators."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from keyturn_workers.console.dead.jobs import Failure
from tests.unit.keyturn_workers.console.dead.letters import UPLOADS
from tests.unit.keyturn_workers.console.dead.pages import Pages

if TYPE_CHECKING:
    from httpx2 import Response

    from keyturn_workers.console.dead.letters import IndexedLetter


@pytest.fixture
def pages() -> Pages:
    return Pages()


def _selected(*letters: IndexedLetter) -> list[str]:
    return [f"{letter.queue}/{letter.digest_text}" for letter in letters]


def _path(page: Response) -> str:
    return page.url.path


def test_one_discard_states_that_it_cannot_be_undone_and_needs_its_number(pages: Pages) -> None:
    letter = pages.letter("bad_seal")
    plan = pages.post("/dead/plans", move="discard", letter=_selected(letter))
    assert "permanently discards 1 dead letter " in plan.text
    assert "1 from <code>keyturn.upload.dead</code>" in plan.text
    wrong = pages.post(_path(plan), typed="2")
    assert (wrong.status_code, "Type 1 to confirm" in wrong.text) == (422, True)
    assert pages.dead.jobs() == ()
    job = pages.post(_path(plan), typed="1", reason=" too  old ")
    assert "Discard of 1 dead letter" in job.text
    (started,) = pages.dead.jobs()
    assert (started.person, started.reason, started.wanted) == ("ada", "too old", 1)


def test_a_few_letters_are_replayed_without_a_number_and_a_form_is_served_once(
    pages: Pages,
) -> None:
    letters = [pages.letter("bad_seal"), pages.letter("unknown_project")]
    plan = pages.post("/dead/plans", move="replay", letter=_selected(*letters))
    assert "sends 2 dead letters" in plan.text
    assert "2 to <code>keyturn.upload</code>" in plan.text
    assert letters[1].message_id in plan.text
    assert 'name="typed"' not in plan.text
    first, second = (pages.post(_path(plan)) for _ in range(2))
    assert _path(first) == _path(second) == _path(pages.get(_path(plan)))
    assert len(pages.dead.jobs()) == 1


def test_all_that_match_leave_out_what_cannot_be_replayed(pages: Pages) -> None:
    plan = pages.post("/dead/plans", move="replay", scope="filter", queue=UPLOADS)
    assert "Some letters cannot be replayed" in plan.text
    assert "1: Its body was not kept" in plan.text
    assert "sends 132 dead letters" in plan.text
    assert "all with queue: keyturn.upload.dead" in plan.text
    assert pages.post(_path(plan), typed="131").status_code == 422
    assert pages.post(_path(plan), typed="132").status_code == 200


def test_a_number_may_be_typed_as_it_is_shown(pages: Pages) -> None:
    plan = pages.post("/dead/plans", move="discard", scope="filter")
    assert pages.post(_path(plan), typed=" 1,36 ").status_code == 200


def test_nothing_that_can_be_done_is_said(pages: Pages) -> None:
    expired = pages.letter("request_expired")
    plan = pages.post("/dead/plans", move="replay", letter=_selected(expired))
    assert "None of the selected letters can be replayed" in plan.text
    assert pages.post(_path(plan)).status_code == 422
    assert "is in the index" in pages.post("/dead/plans", move="discard").text


@pytest.mark.parametrize("reason", ["x" * 501, "a\u202eb"])
def test_a_reason_is_one_printable_line(pages: Pages, reason: str) -> None:
    plan = pages.post("/dead/plans", move="replay", letter=_selected(pages.letter("bad_seal")))
    refused = pages.post(_path(plan), reason=reason)
    assert (refused.status_code, pages.dead.jobs()) == (422, ())


@pytest.mark.parametrize("fields", [{}, {"move": "x"}, {"move": "replay", "letter": "a/b"}])
def test_a_malformed_form_is_refused(pages: Pages, fields: dict[str, str]) -> None:
    assert pages.post("/dead/plans", **fields).status_code == 400


def test_a_way_back_leads_to_this_site(pages: Pages) -> None:
    plan = pages.post("/dead/plans", move="discard", scope="filter", back="//evil.example/")
    assert "evil.example" not in plan.text


def test_a_plan_of_another_person_is_gone(pages: Pages) -> None:
    plan = pages.post("/dead/plans", move="discard", scope="filter")
    other = pages.browser_of("eve")
    for answer in (other.get(_path(plan)), other.post(_path(plan), data={"typed": "136"})):
        assert (answer.status_code, "Nothing was moved" in answer.text) == (404, True)


def test_a_job_shows_what_became_of_it_and_can_be_stopped(pages: Pages) -> None:
    plan = pages.post("/dead/plans", move="discard", scope="filter")
    page = pages.post(_path(plan), typed="136")
    (job,) = pages.dead.jobs()
    job.state, job.done, job.gone = "running", 100, 2
    job.fail(Failure(UPLOADS, 5, "", "malformed_request", "<script>"))
    shown = pages.get(_path(page)).text
    assert "103 of 136" in shown
    assert "/dead/keyturn.upload.dead/h-0000000000000005" in shown
    assert "&lt;script&gt;" in shown
    assert "/events?topics=dead" in shown
    pages.post(f"{_path(page)}/stop")
    assert pages.dead.jobs()[0].state == "stopping"
    job.state, job.problem, job.uncertain = "failed", "the broker was lost", 3
    shown = pages.get(_path(page)).text
    assert "33 letters were not moved" in shown
    assert "3 of them may have been moved" in shown
    assert "/stop" not in shown
    assert re.search(r"Failed</span>", pages.get("/dead/jobs").text)
    assert "Replays and discards" in pages.get("/dead").text


def test_a_job_of_an_earlier_run_is_not_known(pages: Pages) -> None:
    assert pages.get("/dead/jobs/none").status_code == 404
    assert "None since the console was started" in pages.get("/dead/jobs").text


def test_read_again_reads_at_once(pages: Pages) -> None:
    assert _path(pages.post("/dead/read")) == "/dead"


def test_a_viewer_may_do_none_of_it() -> None:
    viewer = Pages("view")
    for path in ("/dead/read", "/dead/plans", "/dead/plans/x", "/dead/jobs/x/stop"):
        assert viewer.post(path, move="discard", scope="filter").status_code == 403, path
    assert viewer.get("/dead/plans/x").status_code == 403
    assert viewer.dead.jobs() == ()
