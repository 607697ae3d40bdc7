"""*Master keys*: what depends on each, whether it can be dropped, and the count."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyturn.messages import ObjectGroupStatus

if TYPE_CHECKING:
    from tests.unit.keyturn_workers.console.sweeps.scene import Scene


def test_without_a_count_no_key_is_called_safe_to_drop(console: Scene) -> None:
    console.add_master_keys()
    console.add_project()
    page = console.get("/keys")
    assert "objects were not inspected" in page
    assert "No count is complete yet" in page
    assert "safe to drop: no object" not in page
    assert 'href="/projects?master_key=m1"' in page
    assert 'href="/sweeps/new?scope=all&amp;master_key=m2"' in page


def test_a_count_says_what_depends_on_each_key(console: Scene) -> None:
    console.add_project()
    console.add_master_keys()
    console.add_census(
        ObjectGroupStatus(kind="encrypted", count=1234, generation=3, master_key="m1"),
        ObjectGroupStatus(kind="unreadable", count=2, code="no_usable_wrap"),
    )
    page = console.get("/keys")
    assert "in use by 1234 objects, 1 record" in page
    assert "1,234" in page
    assert "no_usable_wrap" in page


def test_the_count_is_begun_and_stopped_in_the_name_of_the_person(console: Scene) -> None:
    assert console.post("/keys/count").headers["location"] == "/keys#census"
    console.model.set_census_running(is_running=True)
    assert "Stop counting" in console.get("/keys")
    console.post("/keys/count/cancel")
    assert console.feeds.asked == [("census", "kim"), ("cancel",)]


def test_the_role_view_sees_no_button_and_is_refused(console: Scene) -> None:
    console.add_master_keys()
    console.auth.sign_in("kim", "view")
    page = console.get("/keys")
    assert 'method="post" action="/keys' not in page
    assert "/sweeps/new" not in page
    console.post("/keys/count", 403)
    console.post("/keys/count/cancel", 403)
    assert not console.feeds.asked


def test_before_any_report_the_page_says_so(console: Scene) -> None:
    page = console.get("/keys")
    assert "not known yet" in page
    assert "Give every worker and gateway a second master key" in page
