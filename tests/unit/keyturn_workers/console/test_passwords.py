"""Passwords are checked slowly, few at a time, and the same for a name that does not exist."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest
from argon2 import PasswordHasher, Type, extract_parameters
from structlog.testing import capture_logs

from keyturn.errors import SettingsError
from keyturn_workers.console.auth import passwords as module
from keyturn_workers.console.auth.passwords import (
    ATTEMPTS_IN_TOTAL,
    ATTEMPTS_PER_NAME,
    ATTEMPTS_S,
    Attempts,
    PasswordFile,
    Passwords,
    TooManyAttemptsError,
    User,
    format_users,
    hash_password,
    is_user_name,
    parse_users,
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


async def _use_up_the_total(passwords: Passwords) -> None:
    for number in range(ATTEMPTS_IN_TOTAL):
        assert await passwords.check(f"name-{number}", "guess") is None


@pytest.fixture
def quick_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSAL_S", 0.0)


@pytest.mark.usefixtures("quick_refusals")
async def test_made_up_names_keep_no_one_out(file: PasswordFile) -> None:
    """60 attempts a minute did, by anyone who reaches the console."""
    hasher = _Counting()
    passwords = Passwords(file, hasher)
    await _use_up_the_total(passwords)
    for number in range(200):
        with pytest.raises(TooManyAttemptsError):
            await passwords.check(f"more-{number}", "guess")
    assert len(hasher.compared) == ATTEMPTS_IN_TOTAL  # and cost no further comparison
    assert await passwords.check("kim", _PASSWORD) == file.user("kim")


async def test_a_name_of_the_file_waits_for_no_comparison_of_others(file: PasswordFile) -> None:
    """On a slow machine, sixty of them take a minute. Only a refusal waits for its turn."""
    turn = threading.Event()

    class Slow(_Counting):
        def verify(self, expected: str, password: str) -> bool:
            if password == "guess":
                turn.wait()
            return super().verify(expected, password)

    passwords = Passwords(file, Slow())
    guesses = [asyncio.create_task(passwords.check(f"name-{n}", "guess")) for n in range(20)]
    wrong = asyncio.create_task(passwords.check("kim", "wrong"))
    try:
        async with asyncio.timeout(60):
            assert await passwords.check("kim", _PASSWORD) == file.user("kim")
        assert not wrong.done()
        assert not any(guess.done() for guess in guesses)
    finally:
        turn.set()
    assert await asyncio.gather(wrong, *guesses) == [None] * 21


@pytest.mark.usefixtures("quick_refusals")
async def test_a_name_of_the_file_has_few_attempts_whatever_is_left_of_the_total(
    file: PasswordFile,
) -> None:
    hasher = _Counting()
    passwords = Passwords(file, hasher)
    await _use_up_the_total(passwords)
    for _ in range(ATTEMPTS_PER_NAME):
        with pytest.raises(TooManyAttemptsError):
            await passwords.check("kim", "guess")
    with pytest.raises(TooManyAttemptsError):
        await passwords.check("kim", _PASSWORD)
    assert len(hasher.compared) == ATTEMPTS_IN_TOTAL + ATTEMPTS_PER_NAME


@pytest.mark.parametrize("used_up", [False, True])
async def test_answers_show_no_name_of_the_file(
    file: PasswordFile, monkeypatch: pytest.MonkeyPatch, *, used_up: bool
) -> None:
    """Neither the number of attempts, nor the total that is left, nor the time of an answer."""
    monkeypatch.setattr(module, "REFUSAL_S", 0.2)
    now = 1000.0
    passwords = Passwords(file, _CHEAP, clock=lambda: now)

    async def answers(name: str) -> list[tuple[str, bool]]:
        """Of one attempt more than a name has: what it was, and whether it took its time."""
        found = []
        for _ in range(ATTEMPTS_PER_NAME + 1):
            began = time.monotonic()
            try:
                answer = str(await passwords.check(name, "guess"))
            except TooManyAttemptsError:
                answer = "too many"
            found.append((answer, time.monotonic() - began >= 0.19))
        return found

    if used_up:
        await _use_up_the_total(passwords)
    known, made_up = await answers("kim"), await answers("made-up")
    if used_up:
        assert known == [("too many", True)] * ATTEMPTS_PER_NAME + [("too many", False)]
        assert made_up == known
    else:
        assert [answer for answer, _ in known] == ["None"] * ATTEMPTS_PER_NAME + ["too many"]
        assert [answer for answer, _ in made_up] == [answer for answer, _ in known]
        # Both counted: exactly this many are left.
        for number in range(ATTEMPTS_IN_TOTAL - 2 * ATTEMPTS_PER_NAME):
            assert await passwords.check(f"name-{number}", "guess") is None
        with pytest.raises(TooManyAttemptsError):
            await passwords.check("one-more", "guess")
    now += ATTEMPTS_S / ATTEMPTS_PER_NAME  # both have one more, and the total has twelve
    assert (await answers("kim"))[0][0] == (await answers("made-up"))[0][0] == "None"


def test_attempts_come_back_one_by_one_and_names_are_forgotten() -> None:
    now = 1000.0
    attempts = Attempts(5, 60.0, lambda: now)
    assert [attempts.take("a") for _ in range(7)] == [True] * 5 + [False] * 2
    now += 12.1
    assert [attempts.take("a") for _ in range(2)] == [True, False]
    assert attempts.take("b")
    assert len(attempts) == 2
    now += 60
    assert attempts.take("c")
    assert len(attempts) == 1


async def test_memory_for_names_is_bounded_by_the_attempts_of_a_minute(
    file: PasswordFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFUSAL_S", 0.0)
    now = 1000.0
    passwords = Passwords(file, _CHEAP, clock=lambda: now)
    await _use_up_the_total(passwords)
    assert passwords.names_remembered == ATTEMPTS_IN_TOTAL
    now += ATTEMPTS_S
    await passwords.check("kim", "guess")
    assert passwords.names_remembered == 1


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


# With a fixed salt: parameters of tests are the same in every process.
_HASH = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("a password", salt=bytes(16))
_OF_ANOTHER_TYPE = PasswordHasher(1, 8, 1, type=Type.I).hash("a password", salt=bytes(16))
_KIM = User("kim", "operate", _HASH)
_LEE = User("lee@example.com", "view", _HASH)


def test_what_is_written_is_read() -> None:
    users = {user.name: user for user in (_KIM, _LEE)}
    assert parse_users(format_users(users)) == users
    assert parse_users("\n# no user yet\n\n") == {}


@pytest.mark.parametrize(
    "line",
    [
        "kim",
        "kim:operate",
        "kim:operate:",
        "kim:operate:a password",
        f"kim:admin:{_HASH}",
        f"kim::{_HASH}",
        f":view:{_HASH}",
        f"k im:view:{_HASH}",
        f"kim:view:{_OF_ANOTHER_TYPE}",
        f"kim:view:{_HASH.replace('m=8', 'm=99999999')}",
    ],
)
def test_a_malformed_line_is_named_and_not_shown(line: str) -> None:
    with pytest.raises(ValueError, match=r"^line 2 is not of the form name:view\|operate:hash$"):
        parse_users(f"lee:view:{_HASH}\n{line}\n")


def test_a_name_is_there_once() -> None:
    with pytest.raises(ValueError, match="line 2 repeats the name"):
        parse_users(f"kim:view:{_HASH}\nkim:operate:{_HASH}\n")


@pytest.mark.parametrize(
    ("name", "is_name"),
    [("kim", True), ("k.lee+ops@example.com", True), ("", False), ("a:b", False), ("é", False)],
)
def test_names_are_plain(name: str, is_name: bool) -> None:
    assert is_user_name(name) is is_name


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path, now = tmp_path / "passwords", [0.0]
    path.write_text(format_users({"kim": _KIM}))
    file = PasswordFile(path, clock=lambda: now[0])
    assert file.user("kim") == _KIM
    path.write_text(format_users({_LEE.name: _LEE}))
    now[0] = 2
    assert file.user("kim") is None
    assert file.user(_LEE.name) == _LEE


def test_one_that_cannot_be_read_any_more_changes_nothing(tmp_path: Path) -> None:
    """But what it says applies once it can be read again."""
    path, now = tmp_path / "passwords", [0.0]
    path.write_text(format_users({"kim": _KIM}))
    file = PasswordFile(path, clock=lambda: now[0])
    for broken in ("kim:operate", None):
        path.unlink() if broken is None else path.write_text(broken)
        now[0] += 2
        with capture_logs() as logs:
            assert file.user("kim") == _KIM
        assert [line["log_level"] for line in logs] == ["error"]
        assert "operate" not in logs[0]["reason"].replace("view|operate", "")
    path.write_text("")
    now[0] += 2
    assert file.user("kim") is None


@pytest.mark.parametrize("content", [None, b"kim:operate", b"\xff"])
def test_a_file_that_cannot_be_used_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "passwords"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match="KEYTURN_CONSOLE_PASSWORD_FILE: "):
        PasswordFile(path)
