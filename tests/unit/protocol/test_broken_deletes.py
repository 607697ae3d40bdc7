"""Deletes with a guard taken out: each is caught, and the real ones hold (SPEC 8.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.unit.protocol.stories import begin, stop_at, stop_within, violations, without
from tests.unit.protocol.wire import Wire
from tests.unit.protocol.world import LEASE_S, Options, Parts, World
from workers.control.deletion import Deleter

if TYPE_CHECKING:
    import pytest


def a_delete_while_a_copy_is_under_way(world: World) -> None:
    """The server has read what it copies, and writes it over the tombstone."""
    begin(world, "a")
    world.rotate("acme")
    copy = stop_within(world, "copy_onto_itself")
    world.delete("acme", "a")
    without(world, copy, seconds=LEASE_S - 1)
    world.step(copy)
    world.run()


class _TellsAtOnce(Deleter):
    def _check_settled(self, head: Any) -> None:
        del head


def test_a_delete_is_told_after_two_leases() -> None:
    assert violations(a_delete_while_a_copy_is_under_way) == []
    found = violations(a_delete_while_a_copy_is_under_way, Parts(deleter=_TellsAtOnce))
    assert "acme/a came back after its delete was told" in found


def a_delete_before_a_copy_arrives(world: World) -> None:
    begin(world, "a")
    world.rotate("acme")
    copy = stop_at(world, "copy_onto_itself")
    world.delete("acme", "a")
    without(world, copy, seconds=LEASE_S - 1)
    world.step(copy)
    world.run()


class _Unconditional(Wire):
    """Copies whatever stands there by now."""

    async def copy_onto_itself(self, key: str, headers: Any, *, source_etag: str, lease: Any) -> Any:
        del source_etag
        copy = self._server.copy_conditionally
        return await self._ask(
            "copy_onto_itself",
            key,
            lambda: copy(key, headers, source_etag=None, destination=None, lease=lease),
        )


def test_a_copy_names_the_body_that_it_was_made_for() -> None:
    assert violations(a_delete_before_a_copy_arrives) == []
    found = violations(a_delete_before_a_copy_arrives, Parts(wire=_Unconditional))
    assert "the body of acme/a does not commit to its DEK" in found


def a_delete_while_parts_are_copied(world: World) -> None:
    """Parts have no lease: they were copied long before their completion."""
    begin(world, "a")
    world.rotate("acme")
    part = stop_at(world, "copy_part")
    world.step(part, answer=False)
    delete = world.delete("acme", "a")
    without(world, part)
    assert world.ended(delete)
    world.run()


async def _nothing(*_args: Any) -> None:
    """In place of a look at the object."""


def test_copied_parts_do_not_bring_back_what_was_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(copy_limit_bytes=10)
    assert violations(a_delete_while_parts_are_copied, options=options) == []
    monkeypatch.setattr("workers.reconcile.copying.check_unchanged", _nothing)
    found = violations(a_delete_while_parts_are_copied, options=options)
    assert "acme/a came back after its delete was told" in found


def a_delete_of_an_object_of_no_bytes(world: World) -> None:
    """An empty body and a tombstone have one ETag, so that no condition tells them apart."""
    world.enroll("acme", plaintext="allowed")
    world.upload("acme", "a", b"")
    world.run()
    world.sweep("acme", encrypt_plaintext=True)
    op = "put" if any(_is_encrypting(world, "put") for _ in range(1)) else "put_stream"
    put = stop_at(world, op, "acme/a")
    delete = world.delete("acme", "a")
    without(world, put)
    assert world.ended(delete)
    world.run()


def _is_encrypting(world: World, op: str) -> bool:
    del world
    return op == "put_stream"
