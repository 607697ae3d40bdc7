"""A sweep begins with a dry run; for real it takes the dry run's options, and a confirmation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keyturn.messages import SweepCounts
from tests.unit.keyturn_workers.console.sweeps.scene import DRY_ID, HOSTILE

if TYPE_CHECKING:
    from tests.unit.keyturn_workers.console.sweeps.scene import Scene

_RUN = f"/sweeps/acme/{DRY_ID}/run"


def _start(console: Scene, status: int = 303, **fields: str) -> Any:
    token = console.token(console.get("/sweeps/new"), "/sweeps/new")
    return console.post("/sweeps/new", status, form=token, **fields)


def test_the_form_starts_a_dry_run_and_nothing_else(console: Scene) -> None:
    response = _start(console, scope="project", project="acme", repair="yes", dry_run="")
    ((method, sent),) = console.sent
    assert method == "sweep"
    assert sent["dry_run"]
    assert (sent["project"], sent["repair"], sent["actor"]) == ("acme", True, "kim")
    location = response.headers["location"]
    assert location == f"/sweeps/acme/{sent['sweep_id']}"
    assert "Published, no answer yet" in console.get(location)


def test_all_projects_and_a_master_key(console: Scene) -> None:
    console.add_master_keys()
    _start(console, scope="all", project="ignored", master_key="m2")
    ((_, sent),) = console.sent
    assert (sent["project"], sent["master_key"]) == ("*", "m2")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"scope": "project", "project": HOSTILE}, "Not a project"),
        ({"scope": "project"}, "Not a project"),
        ({"project": "acme"}, "Choose a project"),
        ({"scope": "all", "master_key": "m9"}, "do not hold"),
    ],
)
def test_what_is_malformed_is_not_sent(
    console: Scene, fields: dict[str, str], problem: str
) -> None:
    page = _start(console, 422, **fields).text
    assert problem in page
    assert "<script>alert" not in page
    assert not console.sent


def test_the_form_can_be_filled_by_a_link(console: Scene) -> None:
    console.add_master_keys()
    page = console.get("/sweeps/new?scope=all&master_key=m2&encrypt_plaintext=yes")
    assert 'value="m2" selected' in page
    assert 'value="all" checked' in page
    assert 'name="encrypt_plaintext" type="checkbox" value="yes" checked' in page


def test_a_dry_run_is_run_for_real_with_its_own_options(console: Scene) -> None:
    console.add_sweep()
    page = console.get(_RUN)
    assert "change 2 of 10 objects" in page
    assert "f-typed" not in page
    token = console.token(page, _RUN)
    response = console.post(_RUN, form=token, project="zoo", repair="yes")
    ((_, sent),) = console.sent
    assert not sent["dry_run"]
    assert (sent["project"], sent["repair"], sent["encrypt_plaintext"]) == ("acme", False, False)
    assert sent["sweep_id"] != DRY_ID
    again = console.post(_RUN, form=token)
    assert again.headers["location"] == response.headers["location"]
    assert len(console.sent) == 1


@pytest.mark.parametrize(
    ("project", "fields", "phrase"),
    [
        ("acme", {"encrypt_plaintext": True}, "acme"),
        ("acme", {"repair": True}, "acme"),
        ("acme", {"master_key": "m2"}, "acme"),
        ("*", {}, "all projects"),
    ],
)
def test_what_cannot_be_undone_is_typed(
    console: Scene, project: str, fields: dict[str, Any], phrase: str
) -> None:
    console.add_sweep(project=project, **fields)
    run = _RUN if project == "acme" else f"/sweeps/_all/{DRY_ID}/run"
    token = console.token(console.get(run), run)
    for typed in ("", "zoo", phrase.upper()):
        assert f"Type “{phrase}”" in console.post(run, 422, form=token, typed=typed).text
    assert not console.sent
    console.post(run, form=token, typed=phrase)
    assert len(console.sent) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"age_h": 25}, "more than 24 hours"),
        ({"dry_run": False}, "not a dry run"),
        ({"status": "running", "ended_at": None}, "not ended yet"),
        ({"status": "failed", "code": "unknown_project"}, "did not end"),
    ],
)
def test_without_a_dry_run_of_the_last_day_nothing_is_sent(
    console: Scene, fields: dict[str, Any], words: str
) -> None:
    console.add_sweep()
    token = console.token(console.get(_RUN), _RUN)
    console.model.__init__("console")  # type: ignore[misc]
    console.add_sweep(**fields)
    assert words in console.get(_RUN, 409)
    assert words in console.post(_RUN, 409, form=token).text
    assert not console.sent


def test_a_dry_run_with_nothing_to_do_says_so(console: Scene) -> None:
    console.add_sweep(counts=SweepCounts(objects=3, current=3))
    assert "all 3 are at the desired state" in console.get(_RUN)
    console.add_sweep(counts=SweepCounts(objects=3, current=2, failed=1))
    page = console.get(_RUN)
    assert "all 3 are" not in page
    assert "leave 1 object alone" in page


def test_a_form_of_another_dry_run_or_session_is_refused(console: Scene) -> None:
    console.add_sweep()
    other = DRY_ID[:-1] + "9"
    console.add_sweep(other)
    other_run = f"/sweeps/acme/{other}/run"
    token = console.token(console.get(other_run), other_run)
    assert "Nothing was published" in console.post(_RUN, 409, form=token).text
    token = console.token(console.get(_RUN), _RUN)
    console.auth.sign_in("lee", "operate", "session-2")
    assert "Nothing was published" in console.post(_RUN, 409, form=token).text
    console.post("/sweeps/new", 409, form="", scope="all")
    assert not console.sent


@pytest.mark.parametrize(
    "path", ["/sweeps/acme/nothing/run", f"/sweeps/Acme/{DRY_ID}/run", f"/sweeps/zoo/{DRY_ID}/run"]
)
def test_an_unknown_dry_run_is_not_found(console: Scene, path: str) -> None:
    console.add_sweep()
    console.get(path, 404)


def test_the_role_view_is_refused(console: Scene) -> None:
    console.add_sweep()
    token = console.token(console.get(_RUN), _RUN)
    console.auth.sign_in("kim", "view")
    console.get("/sweeps/new", 403)
    console.get(_RUN, 403)
    console.post(_RUN, 403, form=token)
    console.post("/sweeps/new", 403, form=token, scope="all")
    assert not console.sent
