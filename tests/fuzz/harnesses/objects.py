"""A whole object that a bucket writer changed, read by every reader (SPEC 4, 5.4, 9, 13).

The operator's reader, the gateway whole and in a range, and what a sweep would decide: each
ends in an error with a code or in the right plaintext. Where the project allows plaintext, an
object without any `enc-` name is what it is.

The input is a byte of settings, metadata as lines of `name=value`, an empty line, the body.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from keyturn import metadata as object_metadata
from keyturn.crypto import (
    BODY_CONTEXT,
    HEADER_BYTES,
    Role,
    seal,
    unwrap_dek,
)
from keyturn.errors import CodedError
from keyturn.metadata import Wraps
from keyturn_workers.core.plan_action import NoOp, Rewrap, plan_action
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.wraps import wrap
from keyturn_workers.gateway.request import Span
from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys
from keyturn_workers.offline.download import OperatorAccess, open_object
from tests.fuzz.harness import Harness, check, code_of
from tests.fuzz.harnesses.metadata import HARNESS as METADATA
from tests.fuzz.harnesses.metadata import lines, read_lines
from tests.unit.keyturn_workers import factories
from tests.unit.keyturn_workers.gateway.bench import KEY, TARGET, Bench, ring_of, turned_to
from tests.unit.keyturn_workers.pipeline.ingest.v0_objects import v0_metadata, v0_seal
from tools.harness.local_keys import admin_keks, desired_state

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from keyturn_workers.core.keyring import DesiredState

_PLAIN: Final = bytes(range(256)) * 70
_DEK: Final = bytes(range(32))
_API_KEY: Final = "kt_" + "k" * 43
_OLD_API_KEY: Final = "kt_" + "o" * 43
_KEKS: Final = admin_keks("acme", factories.MASTER_KEYS)
_ROLES: Final[tuple[Role, ...]] = ("user", "admin")
_T = TypeVar("_T")
_CODES: Final = (
    "corrupt_object",
    "unknown_algorithm",
    "no_usable_wrap",
    "wraps_disagree",
    "not_found",
    "keyring_rolled_back",
    "storage_unavailable",
)


class _World:
    """A project at its second generation, in which plaintext is allowed or not."""

    def __init__(self, *, plaintext: bool) -> None:
        self.bench = Bench(ring=turned_to(ring_of(_OLD_API_KEY), _API_KEY), cache_s=60)
        if plaintext:
            self.bench.allow_plaintext()
        self.plaintext = plaintext
        self.caller = _done(self.bench.authenticate(_API_KEY))

    def put(self, metadata: dict[str, str], body: bytes) -> None:
        """The one object of this world."""
        self.bench.storage.streamed.clear()
        self.bench.storage.plant(TARGET, body, Headers(metadata))


@cache
def _worlds() -> tuple[_World, ...]:
    return tuple(_World(plaintext=allowed) for allowed in (False, True))


@cache
def _runner() -> asyncio.Runner:
    return asyncio.Runner()


def _done(work: Coroutine[Any, Any, _T]) -> _T:
    return _runner().run(work)


def run(data: bytes) -> str:
    """Read it by each reader."""
    if not data:
        return "too short"
    world = _worlds()[data[0] % 2]
    described, _, body = data[1:].partition(b"\n\n")
    metadata = read_lines(described)
    world.put(metadata, body)
    as_it_is = body if world.plaintext and _is_plain(metadata) else None
    operator = OperatorAccess("acme", OperatorKeys.local(factories.MASTER_KEYS))
    outcomes = [
        _read(lambda into: _download(world, operator, into), as_it_is),
        _read(lambda into: _gateway(world, None, into), as_it_is),
        _read(lambda into: _gateway(world, Span(16_000, 16_500), into), as_it_is, 16_000, 16_500),
        _swept(world, metadata, body, SweepOptions()),
        _swept(world, metadata, body, SweepOptions(repair=True)),
    ]
    return " ".join(sorted(set(outcomes)))


def _is_plain(metadata: dict[str, str]) -> bool:
    return all(name == "enc-upload" for name in metadata if name.startswith("enc-"))


def _read(
    reading: Callable[[bytearray], Coroutine[Any, Any, None]],
    as_it_is: bytes | None,
    first: int = 0,
    end: int | None = None,
) -> str:
    right = (_PLAIN if as_it_is is None else as_it_is)[first:end]
    given = bytearray()
    try:
        _done(reading(given))
    except CodedError as exc:
        check(right.startswith(given), "a piece that is not the plaintext's")
        return code_of(exc, *_CODES)
    check(given == right, "another plaintext")
    return "opened" if as_it_is is None else "plain"


async def _download(world: _World, access: OperatorAccess, into: bytearray) -> None:
    async with open_object(world.bench.storage, KEY, access) as reader:
        async for piece in reader.chunks():
            into += piece


async def _gateway(world: _World, span: Span | None, into: bytearray) -> None:
    start = None if span is None else HEADER_BYTES
    async with world.bench.opener.open(world.caller, KEY, start_bytes=start) as reader:
        if span is None:
            pieces = reader.read_all()
        else:
            await reader.verify()
            pieces = reader.read_range(
                Span(span.first, max(min(span.end, reader.size_bytes), span.first))
            )
        async for piece in pieces:
            into += piece


def _swept(world: _World, metadata: dict[str, str], body: bytes, options: SweepOptions) -> str:
    """A sweep makes new wraps for the DEK of this very body, or none."""
    ring = world.bench.ring
    desired = desired_state(ring, factories.MASTER_KEYS)
    view = factories.object_view(metadata, body)
    try:
        decision = plan_action(view, KEY, ring, desired, _KEKS, options)
    except CodedError as exc:
        return code_of(exc, *_CODES)
    if isinstance(decision, Rewrap):
        _check_rewrap(decision, desired)
    elif decision == NoOp("current"):
        _check_current(metadata, desired)
    return type(decision).__name__


def _unwrapped(wraps: Wraps, desired: DesiredState, role: Role) -> bytes:
    return unwrap_dek(
        desired.user_kek if role == "user" else desired.admin_kek,
        role,
        algorithm=wraps.algorithm,
        project="acme",
        object_key=KEY,
        generation=desired.generation,
        wrap=wraps.user if role == "user" else wraps.admin,
    )


def _check_current(metadata: dict[str, str], desired: DesiredState) -> None:
    wraps = object_metadata.parse(metadata)
    check(isinstance(wraps, Wraps), "an object without wraps is as desired")
    if isinstance(wraps, Wraps):
        found = {_unwrapped(wraps, desired, role) for role in _ROLES}
        check(found == {_DEK}, "wraps of other DEKs are as desired")


def _check_rewrap(decision: Rewrap, desired: DesiredState) -> None:
    found = {_unwrapped(decision.wraps, desired, role) for role in _ROLES}
    check(found == {_DEK}, "new wraps of a DEK that is not the body's")


def _seeds() -> list[bytes]:
    world = _worlds()[1]
    ring = world.bench.ring
    desired = desired_state(ring, factories.MASTER_KEYS)
    earlier = desired_state(
        replace(ring, current=ring.history[0], history=()), factories.MASTER_KEYS
    )
    sealed = seal(_DEK, BODY_CONTEXT, _PLAIN)
    current = wrap(desired, KEY, _DEK)
    found = [
        (factories.enc(current), sealed),
        (factories.enc(wrap(earlier, KEY, _DEK)), sealed),
        (factories.enc(replace(current, generation=7)), sealed),
        (factories.enc(wrap(desired, "another key", _DEK)), sealed),
        (factories.enc(replace(current, admin=wrap(desired, KEY, bytes(32)).admin)), sealed),
        (factories.enc(replace(current, user=wrap(desired, KEY, bytes(32)).user)), sealed),
        (v0_metadata(user=_DEK), v0_seal(_DEK, _PLAIN)),
        (factories.deleted(desired, KEY), b""),
        ({}, _PLAIN),
    ]
    return [
        bytes([settings]) + lines(metadata) + b"\n\n" + body
        for metadata, body in found
        for settings in range(2)
    ]


HARNESS: Final = Harness("object", run, _seeds, METADATA.words)
