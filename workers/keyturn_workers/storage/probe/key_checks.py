"""The probe's checks of keys: a server may treat them as paths of files (SPEC 1, 8.5, 10).

A sweep's pages are ranges of keys. A server that resumes a listing elsewhere than after the
requested key would hide objects from the sweep.
"""

import asyncio
from typing import Final

from keyturn.identifiers import Order, byte_order, path_order
from keyturn_workers.core.errors import PreconditionError
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import Headers, IfAbsent
from keyturn_workers.storage.probe.protocol import Outcome, ProbeStorage

_PLAIN: Final = Headers({})
# Longer than the longest name in a common file system.
_SEGMENT_BYTES: Final = 300
_KEPT_APART: Final = Outcome(ok=True, detail="kept apart")
_ALIKE: Final = Outcome(ok=False, detail="the same object")
# In byte order: names that sort around a folder. No name is a folder's as well.
_NAMES: Final = ("a", "a-", "a.1", "a0", "b-1", "b.d/1", "b/1", "b/2", "b0/1")

BY_PATH: Final = "by paths, each page from its key on"
_BY_BYTE: Final = "by bytes, each page from its key on"


async def backslashes(storage: ProbeStorage, key: str) -> Outcome:
    r"""`a\b` and `a/b` are two objects."""
    return await _apart(storage, f"{key}/a\\b", f"{key}/a/b")


async def empty_segments(storage: ProbeStorage, key: str) -> Outcome:
    """`x//y` and `x/y` are two objects, and so are `t/` and `t`."""
    pairs = ((f"{key}/x//y", f"{key}/x/y"), (f"{key}/t/", f"{key}/t"))
    for one, other in pairs:
        outcome = await _apart(storage, one, other)
        if not outcome.ok:
            return outcome
    return _KEPT_APART


async def beside_folder(storage: ProbeStorage, key: str) -> Outcome:
    """An object exists beside objects below its key, whichever comes first."""
    for first, second in ((f"{key}/d/c", f"{key}/d"), (f"{key}/e", f"{key}/e/c")):
        outcome = await _apart(storage, first, second)
        if not outcome.ok:
            return Outcome(ok=False, detail="refused as if it existed")
    return _KEPT_APART


async def long_segment(storage: ProbeStorage, key: str) -> Outcome:
    """A segment of a key may have 300 bytes."""
    long = f"{key}/{'s' * _SEGMENT_BYTES}"
    await storage.put(long, b"body", _PLAIN, condition=IfAbsent())
    stored = (await storage.read(long))[1] == b"body"
    return Outcome(ok=stored, detail="stored" if stored else "not found")


async def hidden_names(storage: ProbeStorage, key: str) -> Outcome:
    """A listing shows every object, whatever names a server reserves for itself."""
    keys = [f"{key}/.uploads/a", f"{key}/b.versions/a", f"{key}/c"]
    for name in keys:
        await storage.put(name, b"body", _PLAIN)
    listed = [row.key async for row in storage.list(f"{key}/")]
    if hidden := [name.removeprefix(f"{key}/") for name in keys if name not in listed]:
        return Outcome(ok=False, detail=f"hidden: {', '.join(hidden)}")
    return Outcome(ok=True, detail="all shown")


async def resumed(storage: Storage, key: str) -> Outcome:
    """A listing that starts after a key has exactly the keys that follow, in a known order.

    A bucket that keeps versions needs byte order.
    """
    order = await find_order(storage, key)
    if order is byte_order:
        return Outcome(ok=True, detail=_BY_BYTE)
    if await storage.versioning():
        return Outcome(ok=False, detail="versioned, and not listed by bytes")
    if order is path_order:
        return Outcome(ok=True, detail=BY_PATH)
    return Outcome(ok=False, detail="a listing does not resume after its key")


async def in_byte_order(storage: Storage, key: str) -> Outcome:
    """A listing is in the order of the keys' bytes, and resumes in it."""
    by_bytes = await find_order(storage, key) is byte_order
    return Outcome(ok=by_bytes, detail="in byte order" if by_bytes else "by paths")


async def find_order(storage: Storage, key: str) -> Order | None:
    """Return the order in which listings come and resume; None if it is not a known one."""
    keys = [f"{key}/{name}" for name in _NAMES]
    await asyncio.gather(*(storage.put(name, b"body", _PLAIN) for name in keys))
    listed = list((await storage.list_page(f"{key}/")).etags)
    pages = await asyncio.gather(*(storage.list_page(f"{key}/", after=name) for name in keys))
    following = {name: list(page.etags) for name, page in zip(keys, pages, strict=True)}
    for order in (byte_order, path_order):
        ordered = sorted(keys, key=order)
        expected = {name: ordered[at + 1 :] for at, name in enumerate(ordered)}
        if listed == ordered and following == expected:
            return order
    return None


async def _apart(storage: ProbeStorage, one: str, other: str) -> Outcome:
    """Check if two keys are two objects."""
    await storage.put(one, b"one", _PLAIN, condition=IfAbsent())
    try:
        await storage.put(other, b"other", _PLAIN, condition=IfAbsent())
    except PreconditionError:
        return _ALIKE
    bodies = [(await storage.read(key))[1] for key in (one, other)]
    return _KEPT_APART if bodies == [b"one", b"other"] else _ALIKE
