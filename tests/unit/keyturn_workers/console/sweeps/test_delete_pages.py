"""A delete needs its key twice, exactly; the key is shown as it is, and runs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.keyturn_workers.console.actions.publishers import event
from tests.unit.keyturn_workers.console.sweeps.scene import HOSTILE

if TYPE_CHECKING:
    from tests.unit.keyturn_workers.console.sweeps.scene import Scene

_PATH = "/projects/acme/delete"


def _token(console: Scene) -> str:
    return console.token(console.get(_PATH), _PATH)


@pytest.mark.parametrize("key", ["reports/q3.pdf", " a ", HOSTILE, "ä/" * 100 + "x"])
def test_a_key_that_was_typed_twice_is_deleted_once(console: Scene, key: str) -> None:
    token = _token(console)
    first = console.post(_PATH, form=token, key=key, typed=key)
    console.post(_PATH, form=token, key="other", typed="other")
    ((method, sent),) = console.sent
    assert method == "delete"
    assert (sent["project"], sent["key"], sent["actor"]) == ("acme", key, "kim")
    page = console.get(first.headers["location"])
    assert "<script>alert" not in page
    assert sent["request_id"] in page


@pytest.mark.parametrize(
    ("key", "typed", "problem"),
    [
        ("a", "b", "not the same key"),
        ("a", "a ", "not the same key"),
        ("a", "", "not the same key"),
        ("", "", "Not an object key"),
        ("a" * 901, "a" * 901, "Not an object key"),
        ("a\x00b", "a\x00b", "Not an object key"),
    ],
)
def test_anything_else_deletes_nothing(console: Scene, key: str, typed: str, problem: str) -> None:
    assert problem in console.post(_PATH, 422, form=_token(console), key=key, typed=typed).text
    assert not console.sent


def test_a_link_may_name_the_key_but_not_confirm_it(console: Scene) -> None:
    page = console.get(f"{_PATH}?key=a%22%3E%3Cscript%3E&typed=x")
    assert 'value="a&#34;&gt;&lt;script&gt;"' in page
    assert "<script>&" not in page


def test_the_answer_is_shown(console: Scene) -> None:
    response = console.post(_PATH, form=_token(console), key="a", typed="a")
    ((_, sent),) = console.sent
    refusal = event(
        "delete.rejected",
        request_id=sent["request_id"],
        project=None,
        code="not_permitted",
        detail="console may not send delete.requested for this project",
    )
    portal = console.client.portal
    assert portal is not None
    portal.call(console.publisher.answers.put, refusal)
    page = console.get(response.headers["location"])
    assert "Refused: not_permitted" in page
    assert "<code>delete.requested</code>" in page
    assert "KEYTURN_PUBLISHERS" in page


def test_the_role_view_and_a_form_without_its_token_are_refused(console: Scene) -> None:
    token = _token(console)
    console.post(_PATH, 409, key="a", typed="a")
    console.post("/projects/zoo/delete", 409, form=token, key="a", typed="a")
    console.auth.sign_in("kim", "view")
    console.get(_PATH, 403)
    console.post(_PATH, 403, form=token, key="a", typed="a")
    assert not console.sent
