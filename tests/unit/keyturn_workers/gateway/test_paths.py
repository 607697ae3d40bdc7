"""Which project and key a path names: byte for byte, and no other (SPEC 1, 9.1)."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.identifiers import check_object_key, is_object_key, is_project
from keyturn_workers.gateway.request import (
    object_path,
    parse_links_path,
    parse_object_path,
    parse_project,
)

_SEGMENT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"))
KEYS = st.lists(_SEGMENT.filter(lambda s: s not in ("", ".", "..")), min_size=1, max_size=5).map(
    "/".join
)
PROJECTS = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)


@pytest.mark.slow
@given(PROJECTS, KEYS.filter(is_object_key))
def test_every_built_path_parses_to_its_object(project: str, key: str) -> None:
    path = object_path(project, key)
    assert path.isascii()
    assert parse_object_path(path.encode()) == (project, key)
    assert parse_project(path.encode()) == project


@pytest.mark.slow
@given(PROJECTS, KEYS.filter(is_object_key))
def test_the_path_of_an_objects_links_is_its_own_and_one_segment(project: str, key: str) -> None:
    path = object_path(project, key).encode()
    for suffix in (b"/links", b"%2Flinks", b"/%6cinks"):
        assert parse_links_path(path + suffix) == (project, key)
    assert parse_links_path(path + b"/links/links") == (project, f"{key}/links")


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"a",
        b"a/link",
        b"links",
        b"/links",
        b"a//links",
        b"./links",
        b"a/links/",
        b"%ff/links",
        b"k" * 901 + b"/links",
    ],
)
def test_what_is_no_path_of_links_has_no_key(path: bytes) -> None:
    assert parse_links_path(b"/v1/projects/acme/objects/" + path) == ("acme", None)


@pytest.mark.slow
@given(PROJECTS, KEYS.filter(is_object_key))
def test_a_key_may_be_fully_or_minimally_escaped(project: str, key: str) -> None:
    escaped = "".join(f"%{byte:02x}" for byte in key.encode())
    assert parse_object_path(f"/v1/projects/{project}/objects/{escaped}".encode()) == (project, key)
    literal = key.replace("%", "%25").encode()
    assert parse_object_path(f"/v1/projects/{project}/objects/".encode() + literal) == (
        project,
        key,
    )


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_no_bytes_parse_to_an_invalid_key(project: bytes, key: bytes) -> None:
    name, found = parse_object_path(b"/v1/projects/" + project + b"/objects/" + key)
    if found is not None:
        assert check_object_key(found) == found
    if is_project(name):
        assert "/" not in name


@given(st.binary(max_size=80))
def test_any_path_parses_without_an_error(raw: bytes) -> None:
    _, key = parse_object_path(raw)
    assert key is None or is_object_key(key)
    parse_project(raw)
    _, linked = parse_links_path(raw)
    assert linked is None or is_object_key(linked)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a", "a"),
        ("a%2Fb", "a/b"),
        ("a/b", "a/b"),
        ("a+b", "a+b"),  # no form: a plus is a plus
        ("a%20b", "a b"),
        ("100%25", "100%"),
        ("100%2525", "100%25"),  # decoded once
        ("%2e%2e%2e", "..."),
        ("a%", "a%"),  # what is no escape stays
        ("%zz", "%zz"),
        ("objects/x", "objects/x"),
        ("x/objects/y", "x/objects/y"),
        ("%F0%9F%97%9D", "🗝"),
        ("e%CC%81", "e\u0301"),  # nothing is normalized
        ("a?b", "a?b"),  # a raw path has no query
        ("k" * 900, "k" * 900),
        # None of SPEC 1's keys.
        ("", None),
        ("/", None),
        ("a/", None),
        ("/a", None),
        ("a//b", None),
        ("a/./b", None),
        ("a/../b", None),
        ("..", None),
        ("%2e%2e/secret", None),
        ("..%2fother", None),
        ("a%2F%2Fb", None),
        ("%2F", None),
        ("%00", None),
        ("a%0Ab", None),
        ("a%7F", None),
        ("%C2%85", None),
        ("%ff", None),  # no UTF-8: never a replacement character's key
        ("%C0%AF", None),  # an overlong slash
        ("%ED%A0%80", None),  # a lone surrogate
        ("k" * 901, None),
    ],
)
def test_keys(path: str, key: str | None) -> None:
    assert parse_object_path(f"/v1/projects/acme/objects/{path}".encode()) == ("acme", key)


@pytest.mark.parametrize(
    ("path", "project"),
    [
        ("acme/objects/a", "acme"),
        ("%61cme/objects/a", "acme"),
        ("acme%2Fobjects%2Fa", "acme/objects/a"),
        ("acme%2F..%2Fother/objects/a", "acme/../other"),
        (".keyturn/objects/keyrings", ".keyturn"),
        ("ACME/objects/a", "ACME"),
        ("%ff/objects/a", ""),
        ("/objects/a", ""),
        ("..%2F..%2F/objects/a", "../../"),
    ],
)
def test_a_project_is_returned_as_sent(path: str, project: str) -> None:
    """No encoded slash moves a request to another project, nor to Keyturn's own records."""
    found, _ = parse_object_path(f"/v1/projects/{path}".encode())
    assert found == project
    assert is_project(found) == (project == "acme")


def test_another_spelling_of_the_prefix_names_no_project() -> None:
    for path in ("/v1/projects%2Facme/objects/a", "/v1/Projects/acme/objects/a", "//v1/projects/"):
        assert not is_project(parse_object_path(path.encode())[0])
        assert not is_project(parse_project(path.encode()))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_the_project_of_a_rotation_is_parsed_like_an_objects(project: str) -> None:
    raw = f"/v1/projects/{quote(project, safe='')}".encode()
    assert parse_project(raw + b"/rotations") == project
    assert parse_object_path(raw + b"/objects/a")[0] == project
