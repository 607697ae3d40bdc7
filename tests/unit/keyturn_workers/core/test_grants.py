"""Publishers, their keys and their grants change while workers run (SPEC 6.3, 6.8, 6.10)."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import SigningKey, VerifyKey, to_base64
from keyturn_workers.core.grants import Grant, parse_grants
from keyturn_workers.process import grants_file as module
from keyturn_workers.process.grants_file import GrantsFile, GrantsKeeper

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

ONE, TWO = (SigningKey.from_seed(bytes([n]) * 32) for n in (1, 2))
ALL = frozenset("*")


def text_of(**publishers: SigningKey) -> str:
    return json.dumps(
        {
            name: {"keys": [to_base64(key.public_bytes)], "may": ["*"], "projects": ["*"]}
            for name, key in publishers.items()
        }
    )


def grant(key: SigningKey) -> Grant:
    return Grant((VerifyKey.from_bytes(key.public_bytes),), ALL, ALL)


class Broker:
    """Declares streams, or is lost."""

    def __init__(self, grants: GrantsFile) -> None:
        self._grants = grants
        self.lost = False
        self.declared: list[str] = []
        self.known_meanwhile: list[str] = []

    async def declare(self, publishers: Collection[str]) -> None:
        self.known_meanwhile = sorted(self._grants)
        if self.lost:
            raise ConnectionError
        self.declared += sorted(publishers)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "publishers.json"
    made.write_text(text_of(api=ONE))
    return made


@pytest.fixture
def _never_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what looks changed is read: the clock is stopped."""
    monkeypatch.setattr("keyturn_workers.process.grants_file.time.monotonic", lambda: 100.0)


def made(path: Path) -> tuple[GrantsFile, GrantsKeeper, Broker]:
    grants = GrantsFile(path)
    broker = Broker(grants)
    return grants, GrantsKeeper(grants, broker.declare), broker


def replaced(path: Path, text: str) -> None:
    """As an operator should: the new file takes the old one's place at once."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def written(path: Path, text: str) -> None:
    path.write_bytes(text.encode(errors="surrogateescape"))


def removed(path: Path) -> None:
    path.unlink()


class Watched(GrantsFile):
    """Notes when grants are replaced."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.taken_over = asyncio.Event()

    def replace(self, grants: Mapping[str, Grant]) -> None:
        super().replace(grants)
        self.taken_over.set()


@pytest.mark.usefixtures("_never_due")
async def test_a_file_that_changed_counts_at_once(path: Path) -> None:
    grants, keeper, broker = made(path)
    assert dict(grants) == {"api": grant(ONE)}
    assert not await keeper.refresh()
    replaced(path, text_of(api=TWO, new=ONE))
    assert await keeper.refresh()
    assert dict(grants) == {"api": grant(TWO), "new": grant(ONE)}
    assert broker.declared == ["new"]
    replaced(path, text_of(new=ONE))
    assert await keeper.refresh()
    assert dict(grants) == {"new": grant(ONE)}


@pytest.mark.usefixtures("_never_due")
async def test_a_stream_is_declared_before_its_publisher_is_admitted(path: Path) -> None:
    """While it cannot be, who was revoked is refused all the same, and who is new waits."""
    grants, keeper, broker = made(path)
    broker.lost = True
    replaced(path, text_of(new=TWO))
    assert await keeper.refresh()
    assert dict(grants) == {}
    assert broker.known_meanwhile == []
    assert keeper.is_pending("new")
    assert not keeper.is_pending("api")
    assert not keeper.is_pending(["new"])
    broker.lost = False
    keeper.reload()
    assert await keeper.refresh()
    assert dict(grants) == {"new": grant(TWO)}
    assert not keeper.is_pending("new")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"api": {}}', '{"API": {}}', "\udc80"])
async def test_a_malformed_file_changes_nothing(
    path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    grants, keeper, _ = made(path)
    written(path, text)
    assert not await keeper.refresh()
    assert dict(grants) == {"api": grant(ONE)}
    assert "publishers not read: the old grants stay in effect" in capsys.readouterr().out
    replaced(path, text_of(api=TWO))
    assert await keeper.refresh()
    assert dict(grants) == {"api": grant(TWO)}


async def test_a_file_that_is_gone_changes_nothing(path: Path) -> None:
    grants, keeper, _ = made(path)
    removed(path)
    assert not await keeper.refresh()
    assert dict(grants) == {"api": grant(ONE)}
    written(path, text_of(api=TWO))
    assert await keeper.refresh()


async def test_a_file_that_looks_unchanged_is_read_once_a_second(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems show a change late, to those who only ask for its time."""
    now = [100.0]
    monkeypatch.setattr("keyturn_workers.process.grants_file.time.monotonic", lambda: now[0])
    grants, keeper, _ = made(path)
    monkeypatch.setattr(module, "file_state", lambda _: grants.state)
    replaced(path, text_of(api=TWO))
    now[0] = 100.9
    assert not await keeper.refresh()
    now[0] = 101.0
    assert await keeper.refresh()
    assert dict(grants) == {"api": grant(TWO)}


async def test_the_file_is_followed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_INTERVAL_S", 0.01)
    grants = Watched(path)
    following = asyncio.create_task(GrantsKeeper(grants, Broker(grants).declare).watch())
    replaced(path, text_of(api=TWO))
    async with asyncio.timeout(10):
        await grants.taken_over.wait()
    assert dict(grants) == {"api": grant(TWO)}
    following.cancel()


async def test_a_hangup_reads_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_INTERVAL_S", 1000)
    grants = Watched(path)
    keeper = GrantsKeeper(grants, Broker(grants).declare)
    following = asyncio.create_task(keeper.watch())
    replaced(path, text_of(api=TWO))
    keeper.reload()
    async with asyncio.timeout(10):
        await grants.taken_over.wait()
    assert dict(grants) == {"api": grant(TWO)}
    following.cancel()


def test_a_path_of_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        GrantsFile(tmp_path / "none")


def test_a_grant_may_name_sources() -> None:
    fields: dict[str, Any] = {"keys": [], "may": ["*"], "projects": ["*"]}
    for sources in ([], ["drop", "lake-2"]):
        assert parse_grants({"api": {**fields, "sources": sources}})["api"].sources == set(sources)
    assert parse_grants({"api": fields})["api"].sources == set()
    for wrong in ("drop", ["*"], ["Drop"], [1], None):
        with pytest.raises(ValueError, match="sources"):
            parse_grants({"api": {**fields, "sources": wrong}})


@pytest.mark.parametrize(
    ("may", "is_allowed"),
    [(["customer_key"], True), (["*"], True), (["rotation.requested"], False), ([], False)],
)
def test_to_name_a_customer_key_is_a_right_of_its_own(may: list[str], *, is_allowed: bool) -> None:
    fields: dict[str, Any] = {"keys": [], "may": may, "projects": ["acme"]}
    parsed = parse_grants({"api": fields})["api"]
    assert parsed.allows("customer_key", "acme") is is_allowed
    assert not parsed.allows("customer_key", "other")
    with pytest.raises(ValueError, match="customer_key"):
        parse_grants({"api": {**fields, "may": [*may, "customer_keys"]}})


def test_a_grant_is_by_value() -> None:
    """Read again and not changed, it is the same."""
    same: Any = grant(ONE)
    assert grant(ONE) == same
    assert grant(TWO) != same
    assert hash(same.keys[0]) == hash(grant(ONE).keys[0])
