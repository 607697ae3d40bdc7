"""An account's stamp changes with what must end its sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argon2 import PasswordHasher

from keyturn_workers.console.auth.accounts import Accounts
from keyturn_workers.console.auth.password_file import PasswordFile, User, format_users
from tests.unit.keyturn_workers.console.auth.settings import console_settings

if TYPE_CHECKING:
    from pathlib import Path

_CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


def test_a_user_is_stamped_by_role_and_password(tmp_path: Path) -> None:
    path, now = tmp_path / "passwords", [0.0]
    kim = User("kim", "view", _CHEAP.hash("one"))
    path.write_text(format_users({"kim": kim}))
    accounts = Accounts(console_settings(path), PasswordFile(path, clock=lambda: now[0]))
    account = accounts.of_user(kim)
    assert (account.kind, account.name, account.role) == ("password", "kim", "view")
    assert accounts.stamp_of("password", "kim", "view") == account.stamp
    assert accounts.stamp_of("password", "kim", "operate") is None
    assert accounts.stamp_of("password", "lee", "view") is None
    assert accounts.stamp_of("oidc", "kim", "view") is None
    assert accounts.is_user("kim")
    path.write_text(format_users({"kim": User("kim", "view", _CHEAP.hash("two"))}))
    now[0] = 2
    assert accounts.stamp_of("password", "kim", "view") not in (None, account.stamp)


def test_an_account_of_the_provider_is_stamped_by_its_settings(tmp_path: Path) -> None:
    issuer = "https://sso.example.com"
    first = Accounts(console_settings(None, issuer), None)
    account = first.of_claims({"sub": "7", "roles": ["operate"]})
    assert account is not None
    assert (account.kind, account.id, account.role) == ("oidc", "7", "operate")
    assert first.stamp_of("oidc", "7", "operate") == account.stamp
    assert not first.is_user("7")
    for changed in (
        console_settings(None, f"{issuer}/other"),
        console_settings(None, issuer, CONSOLE_OIDC_CLIENT_ID="other"),
        console_settings(None, issuer, CONSOLE_OIDC_OPERATE_ROLES='["admin"]'),
    ):
        assert Accounts(changed, None).stamp_of("oidc", "7", "operate") != account.stamp
    assert first.of_claims({"sub": "8", "roles": ["other"]}) is None
    path = tmp_path / "passwords"
    path.write_text("")
    without = Accounts(console_settings(path), PasswordFile(path))
    assert without.of_claims({"sub": "7", "roles": ["operate"]}) is None
