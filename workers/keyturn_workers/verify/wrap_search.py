"""Search all of an object's `enc-` values for a wrap that a key opens (SPEC 15.2). Pure.

A bucket writer can hide a wrap of an old key: under another name, role, algorithm, generation or
spelling than its labels say. So no label decides here. Every value as long as a wrap is tried in
both roles and in every format, at many generations. An attempt takes about 5 microseconds.
"""

import binascii
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from keyturn import metadata as object_metadata
from keyturn.crypto import (
    V0_WRAP_BYTES,
    WRAP_BYTES,
    Role,
    SealError,
    Secret,
    unwrap_dek,
    v0_unwrap_dek,
)

_ROLES: Final[tuple[Role, ...]] = ("user", "admin")
_ALGORITHMS: Final = (object_metadata.COBBLESTONE, object_metadata.V0_ALGORITHM)
_FIRST_GENERATIONS: Final = range(1, 33)
_NEARBY: Final = 32
_LABEL: Final = re.compile(r"\s*([0-9]{1,18})")
_URL_SAFE: Final = str.maketrans("-_", "+/")
_FOREIGN: Final = re.compile(r"[^A-Za-z0-9+/]")


@dataclass(frozen=True, slots=True)
class VerificationKeys:
    """The key to check with: one user KEK, or the admin KEKs by the ids of their master keys.

    Attributes:
        project: The project that the keys belong to.
        role: Whose wrap they open.
        keks: At least one. The id of a user KEK has no meaning.
        v0_kek: The earlier system's KEK of the same API key, if known.
        generations: Further generations at which a wrap may have been made.
    """

    project: str
    role: Role
    keks: Mapping[str, Secret]
    v0_kek: Secret | None = None
    generations: Collection[int] = ()

    def ordered(self, first: str) -> Iterator[Secret]:
        """All KEKs, that of the master key `first` before the others."""
        if first in self.keks:
            yield self.keks[first]
        yield from (kek for name, kek in self.keks.items() if name != first)


def find_wrap(metadata: Mapping[str, str], object_key: str, keys: VerificationKeys) -> str | None:
    """What opens under the keys, in one line; None if nothing does.

    Args:
        metadata: The object's, as on the wire.
        object_key: The key without the project, as SPEC 1 allows it.
        keys: What to open it with.
    """
    generations = _generations(metadata.get(object_metadata.KEK_USER, ""), keys.generations)
    for name, wrap in _candidates(metadata):
        if len(wrap) == V0_WRAP_BYTES:
            if _opens_as_v0(wrap, keys):
                return f"{name} opens as a v0 wrap"
        else:
            found = _opens_as(wrap, object_key, keys, generations)
            if found is not None:
                return f"{name} opens as {found}"
    return None


def is_wrap_sized(value: str) -> bool:
    """Whether a value could be a wrap, in whatever spelling."""
    return len(_decode(value)) in (WRAP_BYTES, V0_WRAP_BYTES)


def _candidates(metadata: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    for name, value in sorted(metadata.items()):
        if name.startswith(object_metadata.OWN_PREFIX) and is_wrap_sized(value):
            yield name, _decode(value)


def _decode(value: str) -> bytes:
    """The bytes that any reader could see in a value; empty if there are none.

    Both alphabets are read, and white space, padding, stray bits and foreign characters are
    ignored: to refuse a spelling here would be to overlook the wrap in it.
    """
    letters = _FOREIGN.sub("", value.translate(_URL_SAFE))
    try:
        return binascii.a2b_base64(letters + "=" * (-len(letters) % 4))
    except binascii.Error:
        return b""


def _generations(label: str, given: Collection[int]) -> list[int]:
    """The generations to try, the likely ones first, each once."""
    found = _LABEL.match(label)
    labeled = int(found[1]) if found else 0
    nearby = sorted(range(labeled - _NEARBY, labeled + _NEARBY + 1), key=lambda n: abs(n - labeled))
    tried = [*(nearby if found else ()), *_FIRST_GENERATIONS, *given]
    return [number for number in dict.fromkeys(tried) if number > 0]


def _opens_as(
    wrap: bytes, object_key: str, keys: VerificationKeys, generations: Collection[int]
) -> str | None:
    for generation in generations:
        for role in _ROLES:
            for algorithm in _ALGORITHMS:
                for kek in keys.keks.values():
                    try:
                        unwrap_dek(
                            kek,
                            role,
                            algorithm=algorithm,
                            project=keys.project,
                            object_key=object_key,
                            generation=generation,
                            wrap=wrap,
                        )
                    except SealError:
                        continue
                    return f"the {role} wrap of generation {generation}, for {algorithm}"
    return None


def _opens_as_v0(wrap: bytes, keys: VerificationKeys) -> bool:
    for kek in (*keys.keks.values(), *([keys.v0_kek] if keys.v0_kek else [])):
        try:
            v0_unwrap_dek(kek, wrap)
        except SealError:
            continue
        return True
    return False
