"""*Sweeps* and *Sweep*: what is shown, what is offered to whom, and hostile names."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from keyturn.messages import SweepCounts
from tests.unit.keyturn_workers.console.actions.publishers import event
from tests.unit.keyturn_workers.console.sweeps.scene import DRY_ID, HOSTILE, SWEEP_ID

if TYPE_CHECKING:
    from tests.unit.keyturn_workers.console.sweeps.scene import Scene

_PAGE = f"/sweeps/acme/{DRY_ID}"


def test_the_list_says_progress_in_words_and_links_to_each(console: Scene) -> None:
    console.add_sweep()
    console.add_sweep(
        SWEEP_ID,
        status="running",
        clean=None,
        dry_run=False,
        ended_at=None,
        expected_objects=40,
        counts=SweepCounts(objects=10, rewrapped=10, current=0),
        rate_per_s=5.0,
        left_s=6.0,
    )
    page = console.get("/sweeps")
    assert _PAGE in page
    assert "Counted, 1 failing" in page
    assert "of 40 objects" in page
    assert "<progress" in page
    running, ended = page.index(SWEEP_ID), page.index(DRY_ID)
    assert running < ended


def test_the_list_can_be_filtered(console: Scene) -> None:
    console.add_sweep()
    console.add_sweep(SWEEP_ID, "zoo")
    page = console.get("/sweeps?text=zoo&state=done&kind=sweep")
    assert SWEEP_ID in page
    assert DRY_ID not in page
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
                sweep_id=SWEEP_ID,
                objects=100 * second,
                current=100 * second,
                clean=False,
            ),
            second,
        )
    page = console.get(f"/sweeps/acme/{SWEEP_ID}")
    assert "Objects per second" in page
    assert "<svg" in page
    assert "Running" in page


def test_a_running_sweep_says_that_an_unproven_object_counts_as_half(console: Scene) -> None:
    console.add_sweep(
        SWEEP_ID,
        status="running",
        clean=None,
        dry_run=False,
        ended_at=None,
        expected_objects=40,
        counts=SweepCounts(objects=10, rewrapped=10, current=0),
        rate_per_s=5.0,
        left_s=6.0,
    )
    assert "counts as half until it is proven" in console.get(f"/sweeps/acme/{SWEEP_ID}")


def test_a_dry_run_says_what_a_sweep_for_real_would_change(console: Scene) -> None:
    console.add_sweep()
    page = console.get(_PAGE)
    assert "would change 2 of 10 objects" in page
    assert f'href="{_PAGE}/run"' in page
    assert 'href="/sweeps/new?project=acme"' in page
    console.auth.sign_in("kim", "view")
    page = console.get(_PAGE)
    assert "would change 2 of 10 objects" in page
    assert "/run" not in page
    assert "/sweeps/new" not in page


def test_a_dry_run_that_is_too_old_is_not_offered(console: Scene) -> None:
    console.add_sweep(age_h=25)
    page = console.get(_PAGE)
    assert "more than 24 hours ago" in page
    assert f'href="{_PAGE}/run"' not in page


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
    assert console.feeds.asked == [("failures", "acme", DRY_ID)]


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
    console.add_sweep(
        dry_run=False, clean=True, evidence="a" * 64, counts=SweepCounts(objects=2, current=2)
    )
    page = console.get(_PAGE)
    assert "a" * 64 in page
    assert "Sweep again" in page
    assert ("evidence", "acme") in console.feeds.asked


def test_a_sweep_that_is_not_clean_says_what_to_do(console: Scene) -> None:
    console.add_sweep(dry_run=False)
    page = console.get(_PAGE)
    assert "Not clean" in page
    assert "left alone" in page


def test_a_sweep_that_stopped_links_to_its_dead_letter(console: Scene) -> None:
    console.add_sweep(dry_run=False, status="failed", code="corrupt_object", detail=HOSTILE)
    page = console.get(_PAGE)
    assert "It cannot go on" in page
    assert "/dead?" in page
    assert "<script>alert" not in page


@pytest.mark.parametrize(
    "path", ["/sweeps/acme/x", f"/sweeps/.../{DRY_ID}", f"/sweeps/zoo/{DRY_ID}"]
)
def test_an_unknown_sweep_is_not_found(console: Scene, path: str) -> None:
    console.get(path, 404)
    console.get(f"{path}/failures.txt", 404)
