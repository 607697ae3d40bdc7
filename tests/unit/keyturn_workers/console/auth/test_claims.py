"""A role comes from the claim that the settings name, and a name can impersonate nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import TypeAdapter

from keyturn.messages.fields import Actor
from keyturn_workers.console.auth.claims import ClaimRules

if TYPE_CHECKING:
    from keyturn_workers.console.auth.person import Role


def _rules(claim: str = "roles", name: str = "preferred_username") -> ClaimRules:
    return ClaimRules(claim, ("view", "staff"), ("operate",), name)


@pytest.mark.parametrize(
    ("claim", "claims", "role"),
    [
        ("roles", {"roles": "view"}, "view"),
        ("roles", {"roles": ["other", "staff"]}, "view"),
        ("roles", {"roles": ["view", "operate"]}, "operate"),
        ("roles", {"roles": ["operator"]}, None),
        ("roles", {"roles": "operate view"}, None),
        ("roles", {"roles": [{"name": "operate"}, 1, None]}, None),
        ("roles", {"roles": {"operate": True}}, None),
        ("roles", {"roles": []}, None),
        ("roles", {}, None),
        ("realm_access.roles", {"realm_access": {"roles": ["operate"]}}, "operate"),
        ("realm_access.roles", {"realm_access.roles": ["operate"]}, "operate"),
        ("realm_access.roles", {"realm_access": ["operate"]}, None),
        ("https://a.example/roles", {"https://a.example/roles": ["view"]}, "view"),
        ("resource.keyturn.roles", {"resource": {"keyturn": {"roles": "view"}}}, "view"),
    ],
)
def test_the_role_is_what_the_claim_says(
    claim: str, claims: dict[str, Any], role: Role | None
) -> None:
    assert _rules(claim).role_of(claims) == role


@pytest.mark.parametrize(
    ("verified", "role"), [(True, "view"), (False, None), ("true", None), (None, None)]
)
def test_an_address_is_a_role_only_if_it_was_verified(verified: object, role: Role | None) -> None:
    """Some providers let people enter any address."""
    rules = ClaimRules("email", ("kim@example.com",), (), "email")
    assert rules.role_of({"email": "kim@example.com", "email_verified": verified}) == role


def test_an_empty_role_is_there_all_the_same() -> None:
    assert _rules().has_roles({"roles": []})
    assert not _rules().has_roles({"role": ["operate"]})


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"sub": "7", "preferred_username": "kim"}, "kim (7)"),
        ({"sub": "7"}, "(7)"),
        ({"sub": "7", "preferred_username": ["kim"]}, "(7)"),
        ({"sub": "kim", "preferred_username": "kim"}, "(kim)"),
        ({"sub": "7", "preferred_username": "lee (8)"}, "lee 8 (7)"),
        ({"sub": "7", "preferred_username": "a\u202eb\x1b[31m\n\u200bc"}, "a b [31m c (7)"),
        ({"sub": "7", "preferred_username": "\ud800"}, "(7)"),
        ({"sub": "7", "preferred_username": "x" * 500}, "x" * 79 + "… (7)"),
    ],
)
def test_a_name_has_the_subject_that_nobody_chooses(claims: dict[str, Any], name: str) -> None:
    assert _rules().name_of(claims) == name
    TypeAdapter(Actor).validate_python(name)


@pytest.mark.parametrize("subject", ["s" * 255, "a\nb", "7)(8", "\ud800"])
def test_a_subject_that_cannot_be_shown_is_a_digest(subject: str) -> None:
    name = _rules().name_of({"sub": subject, "preferred_username": "k" * 500})
    assert "(sha256:" in name
    TypeAdapter(Actor).validate_python(name)
