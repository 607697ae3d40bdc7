"""What the provider's claims say about a person: a role and a name (SPEC 16.3). Pure.

The role claim is a string or a list, or lies within other claims: `realm_access.roles` is `roles`
in `realm_access`, unless a claim has that whole name. Where addresses are roles (`email`), only an
address that the provider verified counts.
"""

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from keyturn_workers.console.auth.person import Role

_EMAIL: Final = "email"
# What would hide or fake a part of a name where it is shown, and what ends the name itself below.
_UNSAFE: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff()]+"
)
_NAME_MAX_CHARACTERS: Final = 80
_SUBJECT_MAX_CHARACTERS: Final = 110


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """Which claims decide.

    Attributes:
        role_claim: The name of the claim with the roles, or the path to it.
        view_roles: Its values that may look.
        operate_roles: Its values that may also change something.
        name_claim: The claim with the person's name.
    """

    role_claim: str
    view_roles: Collection[str]
    operate_roles: Collection[str]
    name_claim: str

    def role_of(self, claims: Mapping[str, Any]) -> Role | None:
        """The role of a person; None if they have none here."""
        values = self._values(claims)
        if not values.isdisjoint(self.operate_roles):
            return "operate"
        return None if values.isdisjoint(self.view_roles) else "view"

    def has_roles(self, claims: Mapping[str, Any]) -> bool:
        """Whether the role claim is there, whatever its value."""
        return _find(claims, self.role_claim) is not None

    def name_of(self, claims: Mapping[str, Any]) -> str:
        """What requests and audit records name: the name that the claim has, and the subject.

        Names are what people choose, so two can be equal; the subject is unique.
        """
        subject = _subject(claims["sub"])
        value = _find(claims, self.name_claim)
        name = _clean(value, _NAME_MAX_CHARACTERS) if isinstance(value, str) else ""
        return f"{name} ({subject})" if name and name != subject else f"({subject})"

    def _values(self, claims: Mapping[str, Any]) -> frozenset[str]:
        if self.role_claim == _EMAIL and claims.get("email_verified") is not True:
            return frozenset()
        value = _find(claims, self.role_claim)
        values = value if isinstance(value, list) else [value]
        return frozenset(each for each in values if isinstance(each, str))


def _find(claims: Mapping[str, Any], path: str) -> Any:
    if path in claims:
        return claims[path]
    first, _, rest = path.partition(".")
    inner = claims.get(first)
    return _find(inner, rest) if rest and isinstance(inner, dict) else None


def _subject(subject: str) -> str:
    """The subject, or its digest where it could not be shown as it is."""
    if _clean(subject, _SUBJECT_MAX_CHARACTERS) == subject:
        return subject
    return f"sha256:{hashlib.sha256(subject.encode(errors='replace')).hexdigest()}"


def _clean(text: str, max_characters: int) -> str:
    cleaned = " ".join(_UNSAFE.sub(" ", text).split())
    return cleaned if len(cleaned) <= max_characters else f"{cleaned[: max_characters - 1]}…"
