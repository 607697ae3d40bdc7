"""The permissions of each publisher (SPEC 6.3, 11). Pure."""

from dataclasses import dataclass
from typing import Final

from keyturn.crypto.signatures import VerifyKey
from keyturn.identifiers import is_project, is_short_name
from keyturn.settings import seed_from_b64
from keyturn.topology import REQUESTS
from keyturn_workers.core.named_settings import parse_named_settings

_ALL: Final = "*"
CUSTOMER_KEY_RIGHT: Final = "customer_key"
"""To name a customer key, beside the type of the request that names it (SPEC 6.5)."""
_RIGHTS: Final = (*REQUESTS, CUSTOMER_KEY_RIGHT)


@dataclass(frozen=True, slots=True)
class Grant:
    """The grant of one publisher: its public keys, rights, projects and sources.

    A right is a type of request, or `customer_key`.
    """

    keys: tuple[VerifyKey, ...]
    may: frozenset[str]
    projects: frozenset[str]
    sources: frozenset[str] = frozenset()

    def allows(self, right: str, project: str) -> bool:
        """Return True if the publisher has this right for this project (`*`: all)."""
        # A request for all projects needs the grant for all: its project is then "*".
        return (_ALL in self.may or right in self.may) and (
            _ALL in self.projects or project in self.projects
        )


def parse_grants(value: object) -> dict[str, Grant]:
    """The grants in a JSON object.

    Raises:
        ValueError: the rule that fails, without any value.
    """
    return {name: _grant(fields) for name, fields in parse_named_settings(value).items()}


def _grant(fields: object) -> Grant:
    if not isinstance(fields, dict) or fields.keys() - {"sources"} != {"keys", "may", "projects"}:
        raise ValueError("each publisher needs keys, may and projects; sources is optional")
    sources = fields.get("sources", [])
    lists = [fields["keys"], fields["may"], fields["projects"], sources]
    if not all(
        isinstance(items, list) and all(isinstance(i, str) for i in items) for items in lists
    ):
        raise ValueError("keys, may, projects and sources must be lists of strings")
    if any(item not in (*_RIGHTS, _ALL) for item in fields["may"]):
        raise ValueError(f"may holds * or some of {', '.join(_RIGHTS)}")
    if not all(item == _ALL or is_project(item) for item in fields["projects"]):
        raise ValueError("projects holds project ids or *")
    if not all(is_short_name(item) for item in sources):
        raise ValueError("sources must be a list of names of sources")
    keys = tuple(VerifyKey.from_bytes(seed_from_b64(key)) for key in fields["keys"])
    projects = frozenset(fields["projects"])
    return Grant(keys, frozenset(fields["may"]), projects, frozenset(sources))
