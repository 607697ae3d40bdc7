"""What the marks say about each project's keyring (SPEC 5.5)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from keyturn.identifiers import keyring_s3_key
from keyturn_workers.cli.records import compare_keyrings
from keyturn_workers.keyring import MarkState, MarkTable
from keyturn_workers.storage import Headers
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring
from tests.unit.keyturn_workers.witness import mark_of
from tools.harness.local_keys import build_keyring, operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn_workers.cli.records import MarkedKeyring

_KEYS = operator_keys(MASTER_KEYS)
_AT = datetime(2026, 11, 24, 10, tzinfo=UTC)


class _Bucket:
    def __init__(self) -> None:
        self.storage, self.table = MemoryStorage(), MarkTable()

    def put(self, project: str, serial: int) -> bytes:
        body = build_keyring(replace(keyring(project), serial=serial), MASTER_KEYS)
        self.storage.plant(keyring_s3_key(project), body, Headers({}))
        return body

    def mark(self, body: bytes, project: str) -> None:
        self.table.receive(project, mark_of(body, project), at=_AT)

    async def compare(self, project: str | None = None) -> dict[str, Any]:
        compared = compare_keyrings(self.storage, _KEYS, self.table, project)
        return {
            each[0] if isinstance(each, tuple) else each.project: each async for each in compared
        }

    async def states(self, project: str | None = None) -> dict[str, MarkState | str]:
        found = await self.compare(project)
        return {
            name: each[1].code if isinstance(each, tuple) else each.state
            for name, each in found.items()
        }


async def test_every_keyring_is_compared_with_its_mark() -> None:
    on = _Bucket()
    on.mark(on.put("current", 3), "current")
    on.mark(on.put("older", 3), "older")
    on.put("older", 2)
    on.mark(on.put("another", 3), "another")
    on.put("another", 3)
    on.mark(on.put("newer", 3), "newer")
    on.put("newer", 4)
    on.put("never-marked", 0)
    on.put("unknown", 2)
    on.mark(on.put("removed", 3), "removed")
    await on.storage.delete(keyring_s3_key("removed"))
    on.storage.plant(keyring_s3_key("forged"), b"{}", Headers({}))
    expected = {
        "another": MarkState.ROLLED_BACK,
        "current": MarkState.CURRENT,
        "forged": "corrupt_object",
        "never-marked": MarkState.UNMARKED,
        "newer": MarkState.UNMARKED,
        "older": MarkState.ROLLED_BACK,
        "unknown": MarkState.UNKNOWN,
        "removed": MarkState.REMOVED,
    }
    assert await on.states() == expected
    for project, state in expected.items():
        assert await on.states(project) == {project: state}
    rolled_back: MarkedKeyring = (await on.compare())["older"]
    assert rolled_back.found is not None
    assert rolled_back.mark is not None
    assert (rolled_back.found.serial, rolled_back.mark.serial, rolled_back.marked_at) == (2, 3, _AT)


async def test_a_keyring_that_changes_while_it_is_read_was_not_rolled_back() -> None:
    on = _Bucket()
    on.mark(on.put("acme", 1), "acme")
    old = (await on.storage.read(keyring_s3_key("acme")))[1]

    async def change() -> None:
        """The keyring changes, and a read under way still shows the state before."""
        on.mark(on.put("acme", 2), "acme")
        on.storage.plant(keyring_s3_key("acme"), old, Headers({}))
        on.storage.before_next("read", restore)

    newest = build_keyring(replace(keyring("acme"), serial=3), MASTER_KEYS)

    async def restore() -> None:
        on.storage.plant(keyring_s3_key("acme"), newest, Headers({}))
        on.mark(newest, "acme")

    on.storage.before_next("read", change)
    assert await on.states() == {"acme": MarkState.CURRENT}


async def test_what_a_replaced_stream_had_still_counts() -> None:
    on = _Bucket()
    bodies = [on.put("acme", serial) for serial in (1, 2)]
    on.mark(bodies[1], "acme")
    on.table.begin_again()
    assert await on.states() == {"acme": MarkState.UNKNOWN}
    on.storage.plant(keyring_s3_key("acme"), bodies[0], Headers({}))
    assert await on.states() == {"acme": MarkState.ROLLED_BACK}
    await on.storage.delete(keyring_s3_key("acme"))
    assert await on.states() == {"acme": MarkState.REMOVED}
