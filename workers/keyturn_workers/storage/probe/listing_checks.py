"""The probe's checks of the order in which a server lists (SPEC 8.5, 10).

A sweep's pages are ranges of keys. A server that resumes a listing elsewhere than after the key
that it was asked for would hide objects from it.
"""

import asyncio
from typing import Final

from keyturn.identifiers import Order, byte_order, path_order
from keyturn_workers.storage.port import Headers, Storage
from keyturn_workers.storage.probe.protocol import Outcome

_PLAIN: Final = Headers({})
# In byte order: what sorts around a folder. No name is a folder's as well.
_NAMES: Final = ("a", "a-", "a.1", "a0", "b-1", "b.d/1", "b/1", "b/2", "b0/1")

BY_PATH: Final = "by paths, each page from its key on"
_BY_BYTE: Final = "by bytes, each page from its key on"


async def resumed(storage: Storage, key: str) -> Outcome:
    """A listing that starts after a key has exactly the keys that follow, in an order we know.

    Where the bucket keeps versions, only byte order will do.
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
    """The order in which listings come and resume; None if it is neither of those we know."""
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
