"""A route knows who asks, and refuses those whose role does not allow what they ask for."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from keyturn_workers.console.auth import (
    Forbidden,
    Person,
    Role,
    Session,
    csrf_token,
    person_of,
    require_operate,
)
from keyturn_workers.console.auth.person import SESSION_SCOPE


def _request(role: Role) -> Request:
    session = Session("id", Person("kim", role, "password:kim"), "token", 1e10)
    return Request({"type": "http", SESSION_SCOPE: session})


def test_a_route_knows_the_person_and_their_token() -> None:
    request = _request("view")
    assert person_of(request).name == "kim"
    assert csrf_token(request) == "token"


def test_only_the_role_operate_may_change_something() -> None:
    assert require_operate(_request("operate")).may_operate
    with pytest.raises(Forbidden) as refused:
        require_operate(_request("view"))
    assert refused.value.status_code == 403


def test_a_route_that_is_not_protected_fails() -> None:
    with pytest.raises(RuntimeError, match="not protected"):
        person_of(Request({"type": "http"}))
