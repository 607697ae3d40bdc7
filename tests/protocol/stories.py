"""Stories that run twice: with the workers' own classes, and with a guard taken out."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from keyturn_workers.core.storage_values import Lease
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.pipeline.sweep.evidence import statement_of
from tests.protocol.process import LEASE_S
from tests.protocol.wire import MID, SENT
from tests.protocol.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from keyturn_workers.core.keyring import Keyring
    from keyturn_workers.core.sweep_record import ProjectRecord, Round
    from keyturn_workers.keys.keyring.marks import Mark
    from tests.protocol.broker import QueuedMessage
    from tests.protocol.process import Options, Parts, Process
    from tests.protocol.wire import Call

# `KeyringSnapshot.lease` of a worker that disregards the lease which the keyring names.
OWN_LEASE: Final = property(lambda snapshot: Lease(snapshot.read_at, snapshot.lease_s))


class BelievesAll(KeyringReader):
    """Compares no keyring with its mark, although it marks what it reads."""

    async def _is_marked(self, keyring: Keyring, read: Mark, since: int) -> bool:
        assert self._witness is not None
        known = self._witness.table.find(keyring.project)
        if known is not None and read.serial <= known.serial:
            return True
        return await super()._is_marked(keyring, read, since)


class BelievesA404(KeyringReader):
    """Does not look whether a keyring that has a mark is listed."""

    async def _is_missing(self, project: str, since: int) -> bool:
        del project, since
        return True


def violations(
    story: Callable[[World], None],
    parts: Parts | None = None,
    options: Options | None = None,
    *,
    settle: bool = True,
) -> list[str]:
    """The violations in a story; `settle` lets all of it end."""
    with World(parts, options) as world:
        story(world)
        if settle and world.holds():
            world.settle()
        return list(world.oracle.violations)


def accept_early_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let evidence claim that each proof was late enough: its format refuses any other.

    Otherwise that would be what catches a variant whose proofs are early.
    """

    def claim(record: ProjectRecord, of: Round, *args: Any, **more: Any) -> Any:
        late = record.changed_at + timedelta(seconds=2 * record.lease_s + 1)
        return statement_of(record, replace(of, proven_from=late, proven_to=late), *args, **more)

    monkeypatch.setattr("keyturn_workers.pipeline.sweep.evidence.statement_of", claim)


def begin(world: World, *keys: str, **more: Any) -> None:
    """A project with these objects, and processes that know the storage's clock for two leases."""
    world.enroll("acme", **more)
    world.run()
    for key in keys:
        world.upload("acme", key, key.encode() * 100)
    world.run()
    establish_clock(world)


def establish_clock(world: World) -> None:
    """Each process reads a keyring, and two leases pass: from now on its attempts prove."""
    for process in world.processes:
        world.loop.create_task(process.keyrings.read_fresh("acme"))
    world.loop.run_until_idle()
    world.run()
    world.advance(2 * LEASE_S + 1)


def stop_at(world: World, op: str, key: str = "", *, state: str = SENT, **more: Any) -> Call:
    """Let everything proceed until such a request is on its way; returns it, still held."""

    def found() -> Call | None:
        return next((c for c in world.calls if _is(c, op, key) and c.state == state), None)

    def held(call: Call) -> bool:
        return _is(call, op, key) and call.state == state

    assert world.run(until=found, hold=held, **more), f"no {op} of {key}"
    call = found()
    assert call is not None
    return call


def rewrap_without_result(world: World, *held: Call) -> None:
    """Let a page be rewrapped by a worker that dies before it stores its result.

    The page is delivered again at once: an attempt that finds nothing to change.
    """

    def result(call: Call) -> bool:
        return call.op == "put" and "/results/" in call.key

    def waits(call: Call) -> bool:
        return call in held or result(call)

    for call in held:
        call.sender.stalled = True
    assert world.run(until=lambda: any(map(result, world.calls)), hold=waits)
    for call in held:
        call.sender.stalled = False
    put = next(filter(result, world.calls))
    world.crash(put.sender, arriving=lambda _: False)


def stop_within(world: World, op: str, key: str = "") -> Call:
    """The same, at the server in the midst of its effect."""
    return stop_at(world, op, key, state=MID)


def copy_by(world: World, process: Process) -> Call:
    """A rotation's copy of `acme/a` that this process is about to make; it wrote no keyring before.

    So no keyring names its lease, until it names it itself.
    """
    process.stalled = True
    begin(world, "a")
    rotation = world.rotate("acme")
    world.run(until=lambda: world.oracle.origin(rotation, "acme"), keep=hint)
    process.stalled = False

    def copies(call: Call) -> bool:
        return call.sender is process and call.op == "copy_onto_itself"

    def page() -> QueuedMessage | None:
        return next((each for each in world.ready() if is_page(each)), None)

    while not any(map(copies, world.calls)):
        if (queued := page()) is not None:
            world.deliver(queued, process)
        world.run(until=lambda: any(map(copies, world.calls)) or page(), keep=is_page, hold=copies)
    return next(filter(copies, world.calls))


def without(world: World, *held: Call, **more: Any) -> bool:
    """Let everything but these requests proceed."""
    return world.run(hold=held.__contains__, **more)


def _is(call: Call, op: str, key: str) -> bool:
    return call.op == op and call.key.startswith(key)


def hint(queued: QueuedMessage) -> dict[str, Any]:
    """The hint in a message; empty if it is none."""
    document: dict[str, Any] = json.loads(queued.body)
    return document if document["type"] in ("sweep.step", "sweep.page") else {}


def is_page(queued: QueuedMessage, page: int | None = None) -> bool:
    document = hint(queued)
    return document.get("type") == "sweep.page" and page in (None, document["page"])
