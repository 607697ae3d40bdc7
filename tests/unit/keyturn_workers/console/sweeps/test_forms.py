"""What the pages of actions have in common."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from keyturn_workers.console.actions import Action
from keyturn_workers.console.sweeps import forms
from tests.unit.keyturn_workers.console.sweeps.scene import SWEEP_ID

if TYPE_CHECKING:
    from typing import Any

    from tests.unit.keyturn_workers.console.sweeps.scene import Scene


def _request(query: str = "", **path_params: Any) -> Request:
    return Request(
        {
            "type": "http",
            "method": "GET",
            "path": "/",
            "query_string": query.encode(),
            "headers": [],
            "path_params": path_params,
        }
    )


@pytest.mark.parametrize(
    ("query", "number"),
    [("", 1), ("page=3", 3), ("page=0", 1), ("page=-1", 1), ("page=x", 1), ("page=²", 1),
     ("page=" + "9" * 12, forms.MAX_PAGE), ("page=" + "9" * 5000, forms.MAX_PAGE)],
)  # fmt: skip
def test_the_number_of_a_page_is_bounded(query: str, number: int) -> None:
    assert forms.page_number(_request(query)) == number


def test_a_path_names_a_project_or_nothing() -> None:
    assert forms.project_of_path(_request(project="acme")) == "acme"
    assert forms.project_of_path(_request(project="_all"), all_allowed=True) == "*"
    for segment in ("_all", "Acme", "..", "*"):
        with pytest.raises(HTTPException):
            forms.project_of_path(_request(project=segment))
    with pytest.raises(HTTPException):
        forms.id_of_path(_request(sweep_id="x"), "sweep_id")


def test_a_sweep_is_shown_on_its_own_page_and_the_rest_on_one_of_actions() -> None:
    at = datetime.now(UTC)
    assert forms.outcome_path(Action(SWEEP_ID, "sweep", "*", "kim", at)) == (
        f"/sweeps/_all/{SWEEP_ID}"
    )
    assert forms.outcome_path(Action(SWEEP_ID, "delete", "acme", "kim", at)) == (
        f"/actions/{SWEEP_ID}"
    )


def test_more_requests_than_can_be_remembered_are_refused(
    console: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/projects/acme/delete"
    console.post(path, form=console.token(console.get(path), path), key="a", typed="a")
    monkeypatch.setattr(console.actions, "_max_kept", 1)
    token = console.token(console.get(path), path)
    assert "Nothing was published" in console.post(path, 503, form=token, key="a", typed="a").text
    token = console.token(console.get("/sweeps/new"), "/sweeps/new")
    console.post("/sweeps/new", 503, form=token, scope="project", project="acme")
    assert len(console.sent) == 1
