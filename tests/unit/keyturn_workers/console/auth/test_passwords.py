"""Passwords are checked slowly, few at a time, and the same for a name that does not exist."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from argon2 import PasswordHasher, extract_parameters

from keyturn_workers.console.auth import passwords as module
from keyturn_workers.console.auth.password_file import PasswordFile, User, format_users
from keyturn_workers.console.auth.passwords import (
    ATTEMPTS_IN_TOTAL,
    ATTEMPTS_PER_NAME,
    Passwords,
    TooManyAttemptsError,
    hash_password,
)

if TYPE_CHECKING:
    from pathlib import Path

_CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
_PASSWORD = "correct horse battery"


class _Counting:
    """A hasher that counts, and notes which hash a password was compared with."""

    def __init__(self) -> None:
        self.compared: list[str] = []

    def hash(self, password: str) -> str:
        return _CHEAP.hash(password)

    def verify(self, expected: str, password: str) -> bool:
        self.compared.append(expected)
        return _CHEAP.verify(expected, password)


@pytest.fixture
def file(tmp_path: Path) -> PasswordFile:
    path = tmp_path / "passwords"
    user = User("kim", "view", _CHEAP.hash(_PASSWORD))
    path.write_text(format_users({"kim": user}))
    return PasswordFile(path)


async def test_only_the_right_password_signs_in(file: PasswordFile) -> None:
    passwords = Passwords(file, _CHEAP)
    assert await passwords.check("kim", _PASSWORD) == file.user("kim")
    assert await passwords.check("kim", _PASSWORD + " ") is None
    assert await passwords.check("kim", "") is None


async def test_an_unknown_name_costs_as_much(file: PasswordFile) -> None:
    hasher = _Counting()
    passwords = Passwords(file, hasher)
    assert await passwords.check("lee", _PASSWORD) is None
    assert await passwords.check("kim", "wrong") is None
    unknown, known = hasher.compared
    assert extract_parameters(unknown) == extract_parameters(known)


async def test_one_name_has_few_attempts_and_keeps_others_out_of_nothing(
    file: PasswordFile,
) -> None:
    hasher = _Counting()
    passwords = Passwords(file, hasher)
    for _ in range(ATTEMPTS_PER_NAME):
        await passwords.check("lee", "guess")
    with pytest.raises(TooManyAttemptsError):
        await passwords.check("lee", "guess")
    assert len(hasher.compared) == ATTEMPTS_PER_NAME
    assert await passwords.check("kim", _PASSWORD) is not None


async def test_all_names_together_have_few_attempts(file: PasswordFile) -> None:
    hasher = _Counting()
    passwords = Passwords(file, hasher)
    for number in range(ATTEMPTS_IN_TOTAL):
        await passwords.check(f"name-{number}", "guess")
    with pytest.raises(TooManyAttemptsError):
        await passwords.check("kim", _PASSWORD)
    assert len(hasher.compared) == ATTEMPTS_IN_TOTAL


async def test_memory_for_names_is_bounded(
    file: PasswordFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_NAMES_REMEMBERED", 3)
    passwords = Passwords(file, _CHEAP)
    for number in range(20):
        await passwords.check(f"name-{number}", "guess")
    assert passwords.names_remembered == 3


async def test_few_hashes_are_computed_at_once(file: PasswordFile) -> None:
    """Each takes 64 MiB."""
    running, most = 0, 0

    class Slow(_Counting):
        def verify(self, expected: str, password: str) -> bool:
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                return super().verify(expected, password)
            finally:
                running -= 1

    passwords = Passwords(file, Slow())
    await asyncio.gather(*(passwords.check(f"name-{number}", "guess") for number in range(20)))
    assert most <= 2


def test_a_new_hash_is_argon2id_of_the_recommended_size() -> None:
    parameters = extract_parameters(hash_password("a"))
    assert parameters.type.name == "ID"
    assert parameters.memory_cost >= 64 * 1024


async def test_what_cannot_be_a_name_is_counted_as_one_and_not_remembered(
    file: PasswordFile,
) -> None:
    passwords = Passwords(file, _CHEAP)
    for number in range(ATTEMPTS_PER_NAME):
        assert await passwords.check(f"{number} " + "x" * 100_000, "guess") is None
    with pytest.raises(TooManyAttemptsError):
        await passwords.check("another one", "guess")
    assert passwords.names_remembered == 1


async def test_an_attempt_that_is_refused_pushes_out_no_name(file: PasswordFile) -> None:
    passwords = Passwords(file, _CHEAP)
    for number in range(ATTEMPTS_IN_TOTAL):
        await passwords.check(f"name{number}", "guess")
    with pytest.raises(TooManyAttemptsError):
        await passwords.check("one-more", "guess")
    assert passwords.names_remembered == ATTEMPTS_IN_TOTAL
