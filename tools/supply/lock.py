"""The shipped set as `uv.lock` has it: what the image's `keyturn-workers` needs, and all below it.

Pure: nothing is resolved or fetched.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[2]
PUBLISHERS = "keyturn"
SHIPPED = "keyturn-workers"
# Of these, what the image holds.
EXTRAS = frozenset({"console", "otel", "pkcs11"})
OURS = frozenset({PUBLISHERS, SHIPPED})


@dataclass(frozen=True)
class Locked:
    """One package of the lock."""

    name: str
    version: str
    table: Mapping[str, Any]

    @property
    def files(self) -> Sequence[Mapping[str, Any]]:
        """Its wheels and its source, with their hashes."""
        source = self.table.get("sdist")
        return [*self.table.get("wheels", ()), *([source] if source else ())]

    def needs(self, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
        """What it depends on directly, and with which extras."""
        optional = self.table.get("optional-dependencies", {})
        for group in (self.table.get("dependencies", ()), *(optional.get(x, ()) for x in extras)):
            for needed in group:
                yield needed["name"], frozenset(needed.get("extra", ()))


def packages() -> Sequence[Locked]:
    """Everything in the lock, tools and tests too."""
    tables = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    return [Locked(table["name"], table.get("version", ""), table) for table in tables]


def publishers() -> Mapping[str, Locked]:
    """What a publisher needs that stages nothing: no extra at all."""
    return _direct(PUBLISHERS)


def direct() -> Mapping[str, Locked]:
    """What our own distributions name themselves, extras included."""
    both = {**_direct(SHIPPED, EXTRAS), **_direct(PUBLISHERS, frozenset({"staging", "gateway"}))}
    return dict(sorted(both.items()))


def shipped() -> Mapping[str, Locked]:
    """All of others that is installed in the image."""
    seen: set[tuple[str, frozenset[str]]] = set()
    ahead = [(SHIPPED, EXTRAS)]
    while ahead:
        name, extras = ahead.pop()
        if (name, extras) not in seen:
            seen.add((name, extras))
            ahead += _one(name).needs(extras)
    return {name: _one(name) for name in sorted({name for name, _ in seen} - OURS)}


def version(distribution: str) -> str:
    """The version of one of our own distributions."""
    return _one(distribution).version


def _direct(distribution: str, extras: frozenset[str] = frozenset()) -> Mapping[str, Locked]:
    needed = {name for name, _ in _one(distribution).needs(extras)} - OURS
    return {name: _one(name) for name in needed}


def _one(name: str) -> Locked:
    found = [package for package in _cached() if package.name == name]
    if len(found) != 1:
        raise ValueError(f"{name} occurs {len(found)} times in the lock")
    return found[0]


@cache
def _cached() -> Sequence[Locked]:
    return packages()
