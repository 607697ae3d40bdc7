"""Who has an account: the lines of the password file, and what the provider says (SPEC 16.3)."""

from collections.abc import Mapping
from typing import Any

from keyturn_workers.console.auth.claims import ClaimRules
from keyturn_workers.console.auth.password_file import PasswordFile, User
from keyturn_workers.console.auth.person import Role
from keyturn_workers.console.auth.sessions import Account, Kind, stamp
from keyturn_workers.console.settings import ConsoleSettings


class Accounts:
    """Makes accounts, and says which ones there still are.

    A user's stamp changes with the password and the role. One of the provider changes with the
    provider and the rules for roles; what changes at the provider counts from the next sign-in on.
    """

    def __init__(self, settings: ConsoleSettings, users: PasswordFile | None) -> None:
        self._users = users
        self.rules = ClaimRules(
            role_claim=settings.console_oidc_role_claim,
            view_roles=settings.console_oidc_view_roles,
            operate_roles=settings.console_oidc_operate_roles,
            name_claim=settings.console_oidc_name_claim,
        )
        self._provider_stamp = (
            None
            if settings.console_oidc_issuer is None
            else stamp(
                settings.console_oidc_issuer, str(settings.console_oidc_client_id), repr(self.rules)
            )
        )

    def stamp_of(self, kind: Kind, account: str, role: Role) -> str | None:
        """The stamp of an account with this role; None where there is none."""
        if kind == "oidc":
            return self._provider_stamp
        user = None if self._users is None else self._users.user(account)
        return None if user is None or user.role != role else _stamp_of(user)

    def is_user(self, name: str) -> bool:
        """Whether the password file has this name."""
        return self._users is not None and self._users.user(name) is not None

    def of_user(self, user: User) -> Account:
        """The account of a line in the password file."""
        return Account("password", user.name, user.name, user.role, _stamp_of(user))

    def of_claims(self, claims: Mapping[str, Any]) -> Account | None:
        """The account of a person whom the provider knows; None if they have no role here."""
        role = self.rules.role_of(claims)
        if role is None or self._provider_stamp is None:
            return None
        name = self.rules.name_of(claims)
        return Account("oidc", claims["sub"], name, role, self._provider_stamp)


def _stamp_of(user: User) -> str:
    return stamp(user.hash, user.role)
