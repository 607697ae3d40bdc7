"""The probe's checks of the order in which a server lists (SPEC 8.5, 10).

A sweep's pages are ranges of keys. A server that resumes a listing elsewhere than after the key
that it was asked for would hide objects from it.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from keyturn_workers.storage.port import Headers, Storage
from keyturn_workers.storage.probe.protocol import Outcome

_PLAIN: Final = Headers({})
# In byte order: what sorts around a folder. No name is a folder's as well.
_NAMES: Final = ("a", "a-", "a.1", "a0", "b-1", "b.d/1", "b/1", "b/2", "b0/1")

BY_SEGMENT: Final = "by segments, each page from its key on"
_BY_BYTE: Final = "by bytes, each page from its key on"


async def resumed(storage: Storage, key: str) -> Outcome:
    """A listing that starts after a key has exactly the keys that follow, in an order we know."""
    keys = [f"{key}/{name}" for name in _NAMES]
    await asyncio.gather(*(storage.put(name, b"body", _PLAIN) for name in keys))
    listed = list((await storage.list_page(f"{key}/")).etags)
    if sorted(listed) != keys:
        return Outcome(ok=False, detail="a listing misses keys")
    pages = await asyncio.gather(*(storage.list_page(f"{key}/", after=name) for name in keys))
    following = [set(page.etags) for page in pages]
    if listed == keys and _all_follow(keys, following, _by_byte):
        return Outcome(ok=True, detail=_BY_BYTE)
    if any(_all_follow(keys, following, order) for order in (_by_segment, _by_versions)):
        return Outcome(ok=True, detail=BY_SEGMENT)
    return Outcome(ok=False, detail="a listing does not resume after its key")


async def byte_order(storage: Storage, key: str) -> Outcome:
    """A listing is in the order of the keys' bytes, and resumes in it."""
    outcome = await resumed(storage, key)
    in_order = outcome.detail == _BY_BYTE
    return Outcome(ok=in_order, detail="in byte order" if in_order else "by segments")


def _all_follow(
    keys: Sequence[str],
    following: Sequence[set[str]],
    follows: Callable[[str, str], bool],
) -> bool:
    """Whether after each key exactly those are listed that follow it in this order."""
    return all(
        found == {other for other in keys if other != key and follows(other, key)}
        for key, found in zip(keys, following, strict=True)
    )


def _by_byte(key: str, after: str) -> bool:
    return key > after


def _by_segment(key: str, after: str) -> bool:
    return key.split("/") > after.split("/")


def _by_versions(key: str, after: str) -> bool:
    """The order of a server that keeps an object's versions in a folder beside the others."""
    return f"{key}.versions".split("/") > after.split("/")
