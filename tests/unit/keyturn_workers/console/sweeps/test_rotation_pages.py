"""A key is shown once and published once; whatever a browser repeats, nothing else happens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import check_api_key
from keyturn.errors import OutcomeUnknownError
from keyturn_workers.console.actions import ActionState

if TYPE_CHECKING:
    from tests.unit.keyturn_workers.console.sweeps.scene import Scene

_PATH = "/projects/acme/rotate"
_MAKE = f"{_PATH}/key"


def _make(console: Scene, token: str | None = None) -> tuple[str, str]:
    """The page with a fresh key, and the key."""
    token = token or console.token(console.get(_PATH), _MAKE)
    page = console.post(_MAKE, 200, form=token).text
    found = re.search(r'<pre class="secret"[^>]*>([^<]*)</pre>', page)
    assert found is not None
    return page, check_api_key(found[1])


@pytest.fixture(autouse=True)
def _project(console: Scene) -> None:
    console.add_project()


def test_a_key_is_published_after_it_was_shown_and_confirmed(console: Scene) -> None:
    page, key = _make(console)
    token = console.token(page, _PATH)
    response = console.post(_PATH, form=token, saved="yes", typed="acme")
    ((method, sent),) = console.sent
    assert method == "rotate"
    assert sent["api_key"].get_secret_value() == key
    assert (sent["project"], sent["expected_generation"], sent["actor"]) == ("acme", 3, "kim")
    outcome = console.get(response.headers["location"])
    assert "Published, no answer yet" in outcome
    assert key not in outcome


def test_what_a_browser_repeats_publishes_once_and_shows_no_key_again(console: Scene) -> None:
    page, key = _make(console)
    token = console.token(page, _PATH)
    first = console.post(_PATH, form=token, saved="yes", typed="acme")
    second = console.post(_PATH, form=token, saved="yes", typed="acme")
    assert first.headers["location"] == second.headers["location"]
    assert len(console.sent) == 1
    for path in (_PATH, _MAKE, first.headers["location"]):
        assert key not in console.get(path)


def test_a_button_pressed_twice_makes_another_key_and_drops_the_first(console: Scene) -> None:
    made = console.token(console.get(_PATH), _MAKE)
    first_page, first = _make(console, made)
    second_page, second = _make(console, made)
    assert first != second
    refused = console.post(
        _PATH, 409, form=console.token(first_page, _PATH), saved="yes", typed="acme"
    )
    assert "Nothing was published" in refused.text
    console.post(_PATH, form=console.token(second_page, _PATH), saved="yes", typed="acme")
    ((_, sent),) = console.sent
    assert sent["api_key"].get_secret_value() == second


@pytest.mark.parametrize(
    "fields", [{"saved": "yes", "typed": "zoo"}, {"typed": "acme"}, {"saved": "yes"}]
)
def test_without_a_confirmation_nothing_is_published_and_the_key_is_not_shown_again(
    console: Scene, fields: dict[str, str]
) -> None:
    page, key = _make(console)
    again = console.post(_PATH, 422, form=console.token(page, _PATH), **fields).text
    assert key not in again
    assert not console.sent
    console.post(_PATH, form=console.token(again, _PATH), saved="yes", typed="acme")
    assert len(console.sent) == 1


def test_the_generation_is_that_of_the_page_with_the_key(console: Scene) -> None:
    page, _ = _make(console)
    console.add_project(generation=4)
    console.post(_PATH, form=console.token(page, _PATH), saved="yes", typed="acme")
    ((_, sent),) = console.sent
    assert sent["expected_generation"] == 3


def test_a_key_that_expired_is_not_published(console: Scene) -> None:
    page, _ = _make(console)
    token = console.token(page, _PATH)
    form = console.actions.forms.read(token, "session-1", "rotation")
    console.actions.fresh_keys.drop(form.request_id)
    assert (
        "Nothing was published"
        in console.post(_PATH, 409, form=token, saved="yes", typed="acme").text
    )
    assert not console.sent


def test_another_session_or_project_cannot_publish_the_key(console: Scene) -> None:
    page, _ = _make(console)
    token = console.token(page, _PATH)
    console.post("/projects/zoo/rotate", 409, form=token, saved="yes", typed="zoo")
    console.auth.sign_in("lee", "operate", "session-2")
    console.post(_PATH, 409, form=token, saved="yes", typed="acme")
    assert not console.sent


def test_a_rotation_of_unknown_outcome_can_be_sent_again_under_its_id(console: Scene) -> None:
    console.publisher.errors.append(OutcomeUnknownError("not confirmed"))
    page, key = _make(console)
    response = console.post(_PATH, form=console.token(page, _PATH), saved="yes", typed="acme")
    location = response.headers["location"]
    shown = console.get(location)
    assert "The outcome is unknown" in shown
    assert "same id" in shown
    assert console.post(f"{location}/repeat").headers["location"] == location
    (_, first), (_, second) = console.sent
    assert first == second
    assert second["api_key"].get_secret_value() == key
    action = console.actions.get(second["rotation_id"])
    assert action is not None
    assert action.state is ActionState.PUBLISHED


def test_no_key_is_made_while_the_generation_is_not_known(console: Scene) -> None:
    path = "/projects/unknown/rotate"
    page = console.get(path)
    assert "generation is not known" in page
    token = console.token(page, f"{path}/key")
    assert "secret" not in console.post(f"{path}/key", 409, form=token).text


def test_the_role_view_is_refused(console: Scene) -> None:
    page, _ = _make(console)
    made, publish = console.token(page, _MAKE), console.token(page, _PATH)
    console.auth.sign_in("kim", "view")
    console.get(_PATH, 403)
    console.post(_MAKE, 403, form=made)
    console.post(_PATH, 403, form=publish, saved="yes", typed="acme")
    assert not console.sent
