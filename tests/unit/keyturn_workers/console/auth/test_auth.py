"""Auth is made from the settings: only what they name is there (SPEC 16.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from starlette.requests import Request

from keyturn.errors import SettingsError
from keyturn_workers.console.auth.auth import Auth
from keyturn_workers.console.auth.person import SESSION_SCOPE, Person, Session
from tests.unit.keyturn_workers.console.auth.settings import console_settings

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.routing import BaseRoute

_URL = "http://127.0.0.1:8090"


def _paths(routes: list[BaseRoute]) -> set[str]:
    return {route.path for route in routes if hasattr(route, "path")}


@pytest.mark.slow
def test_a_way_to_sign_in_that_is_not_set_has_no_route(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text("")
    by_password = Auth(console_settings(path), _URL, 8090)
    assert _paths(list(by_password.routes)) == {"/sign-in", "/sign-out", "/signed-out"}
    by_provider = Auth(console_settings(None, "https://sso.example.com"), _URL, 8090)
    assert "/sign-in/callback" in _paths(list(by_provider.routes))
    posts = [route for route in by_provider.routes if "POST" in getattr(route, "methods", ())]
    assert _paths(list(posts)) == {"/sign-out"}


def test_a_file_that_is_missing_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="KEYTURN_CONSOLE_PASSWORD_FILE"):
        Auth(console_settings(tmp_path / "missing"), _URL, 8090)


def test_pages_without_a_session_have_neither_a_person_nor_a_token(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text("")
    auth = Auth(console_settings(path), _URL, 8090)
    nobody = Request({"type": "http"})
    assert auth.person_of(nobody) is None
    assert auth.csrf_token(nobody) == ""
    kim = Person("kim", "view", "password:kim")
    signed_in = Request({"type": "http", SESSION_SCOPE: Session("i", kim, "token", 1)})
    assert auth.person_of(signed_in) == kim
    assert auth.csrf_token(signed_in) == "token"
