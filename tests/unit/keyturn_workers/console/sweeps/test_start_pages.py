"""A sweep is started by its form; what cannot be undone is confirmed first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.keyturn_workers.console.sweeps.scene import HOSTILE

if TYPE_CHECKING:
    from tests.unit.keyturn_workers.console.sweeps.scene import Scene

_PATH = "/sweeps/new"


def _start(console: Scene, status: int = 303, **fields: str) -> Any:
    return console.post(_PATH, status, form=console.token(console.get(_PATH), _PATH), **fields)


def test_a_sweep_of_one_project_starts_at_once_and_only_once(console: Scene) -> None:
    token = console.token(console.get(_PATH), _PATH)
    response = console.post(_PATH, form=token, scope="project", project=" acme ", master_key="")
    ((method, sent),) = console.sent
    assert method == "sweep"
    assert (sent["project"], sent["actor"]) == ("acme", "kim")
    assert (sent["master_key"], sent["encrypt_plaintext"], sent["repair"]) == (None, False, False)
    location = response.headers["location"]
    assert location == f"/sweeps/acme/{sent['sweep_id']}"
    assert "Published, no answer yet" in console.get(location)
    again = console.post(_PATH, form=token, scope="project", project="acme")
    assert again.headers["location"] == location
    assert len(console.sent) == 1


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"scope": "project", "project": HOSTILE}, "Not a project"),
        ({"scope": "project"}, "Not a project"),
        ({"project": "acme"}, "Choose a project"),
        ({"scope": "all", "master_key": "m9", "typed": "all projects"}, "do not hold"),
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


@pytest.mark.parametrize(
    ("fields", "sent_as", "phrase", "words"),
    [
        ({"encrypt_plaintext": "yes"}, {"encrypt_plaintext": True}, "acme", "cannot be undone"),
        ({"repair": "yes"}, {"repair": True}, "acme", "under earlier keys"),
        ({"master_key": "m2"}, {"master_key": "m2"}, "acme", "again under the master key"),
        ({"scope": "all"}, {"project": "*"}, "all projects", "all projects"),
    ],
)
def test_what_cannot_be_undone_is_typed(
    console: Scene, fields: dict[str, str], sent_as: dict[str, Any], phrase: str, words: str
) -> None:
    console.add_master_keys()
    fields = {"scope": "project", "project": "acme"} | fields
    page = _start(console, 200, **fields).text
    assert words in page
    assert 'name="typed"' in page
    assert f">{phrase}<" in page
    token, hidden = console.token(page, _PATH), console.hidden(page, _PATH)
    assert {name: hidden[name] for name in fields} == fields
    for typed in ("", "zoo", phrase.upper()):
        refused = console.post(_PATH, 422, **hidden, typed=typed).text
        assert f"Type “{phrase}”" in refused
        assert console.hidden(refused, _PATH) == hidden
    assert not console.sent
    console.post(_PATH, 303, **hidden, typed=phrase)
    ((_, sent),) = console.sent
    assert sent_as.items() <= sent.items()
    # The form that was confirmed, and the one before it, are one request.
    console.post(_PATH, 303, form=token, **fields)
    assert len(console.sent) == 1


def test_a_form_of_another_session_is_refused(console: Scene) -> None:
    token = console.token(console.get(_PATH), _PATH)
    console.auth.sign_in("lee", "operate", "session-2")
    page = console.post(_PATH, 409, form=token, scope="project", project="acme").text
    assert "Nothing was published" in page
    console.post(_PATH, 409, form="", scope="all")
    assert not console.sent


def test_the_role_view_is_refused(console: Scene) -> None:
    token = console.token(console.get(_PATH), _PATH)
    console.auth.sign_in("kim", "view")
    console.get(_PATH, 403)
    console.post(_PATH, 403, form=token, scope="project", project="acme")
    assert not console.sent
