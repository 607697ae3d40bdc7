"""*Sweeps* and *Sweep*: what is shown, what is offered to whom, and hostile names."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from keyturn.messages import Counts
from tests.unit.keyturn_workers.console.actions.publishers import event
from tests.unit.keyturn_workers.console.sweeps.scene import HOSTILE, OTHER_ID, SWEEP_ID

if TYPE_CHECKING:
    from tests.unit.keyturn_workers.console.sweeps.scene import Scene

_PAGE = f"/sweeps/acme/{SWEEP_ID}"


def test_the_list_says_progress_in_words_and_links_to_each(console: Scene) -> None:
    console.add_sweep()
    console.add_sweep(
        OTHER_ID,
        status="running",
        clean=None,
        ended_at=None,
        expected_objects=40,
        counts=Counts(objects=10, rewrapped=10, current=0),
        rate_per_s=5.0,
        left_s=6.0,
    )
    page = console.get("/sweeps")
    assert _PAGE in page
    assert "Not clean, 1 failed" in page
    assert "of 40 objects" in page
    assert "<progress" in page
    running, ended = page.index(OTHER_ID), page.index(SWEEP_ID)
    assert running < ended


def test_the_list_can_be_filtered(console: Scene) -> None:
    console.add_sweep()
    console.add_sweep(OTHER_ID, "zoo")
    page = console.get("/sweeps?text=zoo&state=done&kind=sweep")
    assert OTHER_ID in page
    assert SWEEP_ID not in page
    page = console.get("/sweeps?text=%3Cscript%3E&state=nonsense&page=-1")
    assert "No sweep matches" in page
    assert 'value="&lt;script&gt;"' in page


def test_an_empty_list_says_what_a_sweep_is(console: Scene) -> None:
    assert "No sweep is known" in console.get("/sweeps")


def test_a_running_sweep_has_a_chart_of_its_rate(console: Scene) -> None:
    for second in range(6):
        at = (datetime.now(UTC) - timedelta(seconds=60 - 10 * second)).isoformat()
        console.model.apply_event(
            event(
                "sweep.progressed",
                at.replace("+00:00", "Z"),
                sweep_id=OTHER_ID,
                objects=100 * second,
                current=100 * second,
                clean=False,
            ),
            second,
        )
    page = console.get(f"/sweeps/acme/{OTHER_ID}")
    assert "Objects per second" in page
    assert "<svg" in page
    assert "Running" in page


def test_a_running_sweep_says_that_an_unproven_object_counts_as_half(console: Scene) -> None:
    console.add_sweep(
        OTHER_ID,
        status="running",
        clean=None,
        ended_at=None,
        expected_objects=40,
        counts=Counts(objects=10, rewrapped=10, current=0),
        rate_per_s=5.0,
        left_s=6.0,
    )
    assert "counts as half until it is proven" in console.get(f"/sweeps/acme/{OTHER_ID}")


def test_only_who_may_operate_is_offered_to_sweep_again(console: Scene) -> None:
    console.add_sweep(repair=True)
    offer = 'href="/sweeps/new?project=acme&amp;repair=yes"'
    assert offer in console.get(_PAGE)
    console.auth.sign_in("kim", "view")
    assert "/sweeps/new" not in console.get(_PAGE)


def test_failures_are_explained_filtered_and_taken_away(console: Scene) -> None:
    console.add_sweep()
    console.add_failures((HOSTILE, "corrupt_object"), ("b", "no_usable_wrap"), (None, "not_found"))
    page = console.get(_PAGE)
    assert "<script>alert" not in page
    assert "U+202E" in page
    assert "restore the object from a backup" in page
    assert "the whole project" in page
    only = console.get(f"{_PAGE}?code=no_usable_wrap&text=B")
    assert "1 to 1 of 1 failures" in only
    text = console.get(f"{_PAGE}/failures.txt?code=no_usable_wrap")
    assert text == "no_usable_wrap\tacme\tb\n"
    response = console.client.get(f"{_PAGE}/failures.csv")
    assert response.headers["content-type"].startswith("text/csv")
    assert "attachment" in response.headers["content-disposition"]
    assert response.text.count("\r\n") == 4
    link = re.search(r'href="([^"]*/delete\?key=[^"]*)"', page)
    assert link is not None
    assert "&lt;script&gt;" in console.get(link[1].replace("&amp;", "&"))


def test_what_is_missing_is_asked_for_once(console: Scene) -> None:
    console.add_sweep()
    for _ in range(3):
        assert "has not been read yet" in console.get(_PAGE)
    assert console.feeds.asked == [("failures", "acme", SWEEP_ID)]


def test_a_sweep_that_was_just_requested_has_a_page(console: Scene) -> None:
    token = console.token(console.get("/sweeps/new"), "/sweeps/new")
    path = console.post("/sweeps/new", form=token, scope="project", project="acme").headers[
        "location"
    ]
    sweep_id = path.rpartition("/")[2]
    assert "appears here once a worker starts it" in console.get(path)
    refusal = event(
        "sweep.rejected", sweep_id=sweep_id, code="unknown_project", detail="no keyring"
    )
    assert console.client.portal is not None
    console.client.portal.call(console.publisher.answers.put, refusal)
    page = console.get(path)
    assert "Refused: unknown_project" in page
    assert "enroll it" in page


def test_a_clean_sweep_shows_its_evidence(console: Scene) -> None:
    console.add_sweep(clean=True, evidence="a" * 64, counts=Counts(objects=2, current=2))
    page = console.get(_PAGE)
    assert "a" * 64 in page
    assert "Sweep again" in page
    assert ("evidence", "acme") in console.feeds.asked


def test_a_sweep_that_is_not_clean_says_what_to_do(console: Scene) -> None:
    console.add_sweep()
    page = console.get(_PAGE)
    assert "Not clean" in page
    assert "left alone" in page


def test_a_sweep_that_waits_for_the_next_round_says_so_while_it_runs(console: Scene) -> None:
    console.add_sweep(status="running", waits_for_round=True)
    assert "It waits for the next round" in console.get(_PAGE)
    console.add_sweep(waits_for_round=True)
    assert "It waits for the next round" not in console.get(_PAGE)


def test_a_sweep_that_stopped_links_to_its_dead_letter(console: Scene) -> None:
    console.add_sweep(status="failed", code="corrupt_object", detail=HOSTILE)
    page = console.get(_PAGE)
    assert "It cannot go on" in page
    assert "/dead?" in page
    assert "<script>alert" not in page


@pytest.mark.parametrize(
    "path", ["/sweeps/acme/x", f"/sweeps/.../{SWEEP_ID}", f"/sweeps/zoo/{SWEEP_ID}"]
)
def test_an_unknown_sweep_is_not_found(console: Scene, path: str) -> None:
    console.get(path, 404)
    console.get(f"{path}/failures.txt", 404)
