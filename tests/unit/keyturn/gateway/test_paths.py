"""A path holds checked names alone, encoded (SPEC 1, 9)."""

from __future__ import annotations

import pytest

from keyturn.errors import MalformedRequestError
from keyturn.gateway.client import object_path, objects_path, rotation_path, rotations_path
from tests.unit.keyturn.gateway.gateway import AN_ID


def test_a_name_is_encoded_so_that_it_stays_one() -> None:
    assert objects_path("acme") == "/v1/projects/acme/objects"
    assert object_path("acme", "a b/%?#é") == "/v1/projects/acme/objects/a%20b/%25%3F%23%C3%A9"
    assert rotations_path("acme") == "/v1/projects/acme/rotations"
    assert rotation_path("acme", AN_ID) == f"/v1/projects/acme/rotations/{AN_ID}"


@pytest.mark.parametrize("project", ["", "Acme", "a/b", "..", "acme?x"])
def test_a_project_that_is_none_has_no_path(project: str) -> None:
    for path in (objects_path, rotations_path):
        with pytest.raises(MalformedRequestError, match="a project id"):
            path(project)


def test_a_key_or_an_id_that_is_none_has_no_path() -> None:
    for key in ("", "../x", "a//b"):
        with pytest.raises(MalformedRequestError, match="a key"):
            object_path("acme", key)
    with pytest.raises(MalformedRequestError, match="a UUID"):
        rotation_path("acme", AN_ID.upper())
