"""Names are checked before a command does anything (SPEC 1, 14)."""

from __future__ import annotations

import pytest
import typer

from keyturn_workers.cli.arguments import (
    validate_gateway_url,
    validate_object_key,
    validate_project,
    validate_reason,
)


@pytest.mark.parametrize("project", ["acme", "0-a", "a" * 63])
def test_a_project_id_of_the_specification_is_taken(project: str) -> None:
    assert validate_project(project) == project


def test_an_optional_project_may_be_left_out() -> None:
    assert validate_project(None) is None


@pytest.mark.parametrize("project", ["", "Acme", "a/b", "*", "-a", "a" * 64, "acme\n"])
def test_any_other_project_id_is_wrong_usage(project: str) -> None:
    with pytest.raises(typer.BadParameter, match="malformed_request: a project id has 1 to 63"):
        validate_project(project)


def test_a_gateways_url_may_be_left_out_and_is_not_repeated() -> None:
    assert validate_gateway_url(None) is None
    assert validate_gateway_url("https://files.example.com") == "https://files.example.com"
    with pytest.raises(typer.BadParameter, match="must be http://host") as refused:
        validate_gateway_url("https://user:sesame@files.example.com")
    assert "sesame" not in str(refused.value)


def test_an_object_key_of_the_specification_is_taken() -> None:
    assert validate_object_key("2026/ü k.txt") == "2026/ü k.txt"


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "a/../b", "a\nb", "k" * 901])
def test_any_other_object_key_is_wrong_usage(key: str) -> None:
    with pytest.raises(typer.BadParameter, match="malformed_request: a key ") as refused:
        validate_object_key(key)
    assert not key.strip() or key not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "reason"), [(None, None), (" why ", "why"), ("ü" * 500, "ü" * 500)]
)
def test_a_reason_is_one_line(text: str | None, reason: str | None) -> None:
    assert validate_reason(text) == reason


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "\x1b[2J", "x" * 501])
def test_anything_else_is_no_reason(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="one line of 1 to 500 characters"):
        validate_reason(text)
