"""The file with one project's admin KEKs: read as written, and refused in any other form."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from keyturn.crypto import Secret, to_base64
from keyturn.project_keks import ProjectKeks, build_project_keks, parse_project_keks

CREATED = "2026-11-24T10:00:00.000000Z"
KEKS = ProjectKeks("acme", CREATED, {"m1": Secret(bytes(range(32))), "m2": Secret(bytes(32))})


def _document(**changed: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(build_project_keks(KEKS))
    return document | changed


def test_the_file_has_the_documented_form() -> None:
    assert _document() == {
        "v": 1,
        "project": "acme",
        "created": CREATED,
        "admin_keks": [
            {"id": "m1", "kek": to_base64(bytes(range(32)))},
            {"id": "m2", "kek": to_base64(bytes(32))},
        ],
    }


def test_what_was_written_is_read() -> None:
    assert parse_project_keks(build_project_keks(KEKS)) == KEKS


def test_composites_are_beside_the_plain_keks() -> None:
    secret_id = "5f0c1a7be2d94386"
    keks = replace(KEKS, composites={("m1", secret_id): Secret(b"c" * 32)})
    document = json.loads(build_project_keks(keks))
    composite = {"id": "m1", "customer_secret_id": secret_id, "kek": to_base64(b"c" * 32)}
    assert document["admin_keks"] == [*_document()["admin_keks"], composite]
    assert parse_project_keks(json.dumps(document)) == keks


def test_neither_a_repr_nor_an_error_shows_a_kek() -> None:
    kek = to_base64(bytes(range(32)))
    assert kek not in repr(KEKS)
    assert repr(bytes(range(32))) not in repr(KEKS)
    with pytest.raises(ValueError, match="a KEK is") as raised:
        parse_project_keks(json.dumps(_document(admin_keks=[{"id": "m1", "kek": kek[:-4]}])))
    assert kek[:16] not in str(raised.value)


_KEK = to_base64(bytes(32))


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"v": 2}, "not a file written by"),
        ({"more": 1}, "not a file written by"),
        ({"project": "A"}, "project is not"),
        ({"project": None}, "project is not"),
        ({"created": "yesterday"}, "a time must look like"),
        ({"created": 1}, "created is not a time"),
        ({"admin_keks": []}, "at least one"),
        ({"admin_keks": {"m1": _KEK}}, "at least one"),
        ({"admin_keks": ["m1"]}, "each entry of admin_keks"),
        ({"admin_keks": [{"id": "m1"}]}, "each entry of admin_keks"),
        ({"admin_keks": [{"id": "M!", "kek": _KEK}]}, "each entry of admin_keks"),
        ({"admin_keks": [{"id": "m1", "kek": 7}]}, "each entry of admin_keks"),
        ({"admin_keks": [{"id": "m1", "kek": _KEK, "x": 1}]}, "each entry of admin_keks"),
        ({"admin_keks": [{"id": "m1", "kek": _KEK + "\n"}]}, "not standard base64"),
        ({"admin_keks": [{"id": "m1", "kek": _KEK}] * 2}, "twice"),
        ({"admin_keks": [{"id": "m1", "kek": _KEK, "customer_secret_id": "5f"}]}, "16 hex digits"),
        ({"admin_keks": [{"id": "m1", "kek": _KEK, "customer_secret_id": 7}]}, "16 hex digits"),
    ],
)
def test_another_form_is_refused(changed: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        parse_project_keks(json.dumps(_document(**changed)))


@pytest.mark.parametrize("text", ["", "[]", "m1:abc", '{"v": 1, "v": 1}', "\ud800"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a file written by"):
        parse_project_keks(text)
