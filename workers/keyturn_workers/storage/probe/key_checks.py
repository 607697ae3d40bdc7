"""The probe's checks of keys: a server may treat them as paths of files (SPEC 1, 10)."""

from typing import Final

from keyturn_workers.errors import PreconditionError
from keyturn_workers.storage.port import Headers, IfAbsent
from keyturn_workers.storage.probe.protocol import Outcome, ProbeStorage

_PLAIN: Final = Headers({})
# Longer than the longest name in a common file system.
_SEGMENT_BYTES: Final = 300
_KEPT_APART: Final = Outcome(ok=True, detail="kept apart")
_ALIKE: Final = Outcome(ok=False, detail="the same object")


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
    """A listing shows every object, whatever a server has for itself among the names."""
    keys = [f"{key}/.uploads/a", f"{key}/b.versions/a", f"{key}/c"]
    for name in keys:
        await storage.put(name, b"body", _PLAIN)
    listed = [row.key async for row in storage.list(f"{key}/")]
    if hidden := [name.removeprefix(f"{key}/") for name in keys if name not in listed]:
        return Outcome(ok=False, detail=f"hidden: {', '.join(hidden)}")
    return Outcome(ok=True, detail="all shown")


async def _apart(storage: ProbeStorage, one: str, other: str) -> Outcome:
    """Whether two keys are two objects."""
    await storage.put(one, b"one", _PLAIN, condition=IfAbsent())
    try:
        await storage.put(other, b"other", _PLAIN, condition=IfAbsent())
    except PreconditionError:
        return _ALIKE
    bodies = [(await storage.read(key))[1] for key in (one, other)]
    return _KEPT_APART if bodies == [b"one", b"other"] else _ALIKE
