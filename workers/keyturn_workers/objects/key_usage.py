"""What one object stands under: a master key and a generation that open it (SPEC 8.1, 8.7). Pure.

For the census that an operator needs before a master key is dropped. It must never
believe a label: one that names a new master key over a wrap under the old one would
otherwise have the old one dropped, and with it the object.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from keyturn import metadata as object_metadata
from keyturn.crypto import SealError, Secret, open_tombstone
from keyturn.errors import NoUsableWrapError
from keyturn.metadata import Plaintext, Tombstone, V0Wraps, Wraps
from keyturn_workers.objects.operator_keys import OperatorKeys
from keyturn_workers.objects.unwrap import try_wrap


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """What an object is, and what its admin wrap or its tombstone opened under.

    `generation` is that of the admin wrap: None of tombstones, which have none, and of
    plaintext and v0 objects, which stand under no master key at all.
    """

    kind: Literal["encrypted", "tombstone", "plaintext", "v0"]
    generation: int | None = None
    master_key: str | None = None


def find_key_usage(
    metadata: Mapping[str, str],
    project: str,
    object_key: str,
    operator_keys: OperatorKeys,
    generations: Sequence[int],
) -> KeyUsage:
    """What an object with this metadata stands under.

    The DEK is not compared with the body: whoever wants to know whether an object is whole
    sweeps it.

    Args:
        metadata: the object's, as on the wire.
        project: its project.
        object_key: its key, without its project.
        operator_keys: each master key is tried.
        generations: those that the project ever had, the likely ones first; beside the label's.

    Raises:
        UnknownAlgorithmError: `enc-algo` is none of SPEC 4's.
        CorruptObjectError: metadata stripped or unreadable.
        NoUsableWrapError: the admin wrap, or the tombstone, opens under no master key held.
    """
    match object_metadata.parse(metadata):
        case Plaintext():
            return KeyUsage("plaintext")
        case V0Wraps():
            return KeyUsage("v0")
        case Tombstone(sealed):
            return _tombstone(sealed, project, object_key, operator_keys)
        case Wraps() as wraps:
            return _wraps(wraps, project, object_key, operator_keys, generations)


def _wraps(
    wraps: Wraps,
    project: str,
    object_key: str,
    operator_keys: OperatorKeys,
    generations: Sequence[int],
) -> KeyUsage:
    # Every key at the label's generation first: nearly always that is the one.
    for tried in ((wraps.generation,), generations):
        for name, kek in _admin_keks(project, operator_keys, first=wraps.master_key):
            opened = try_wrap(wraps, "admin", object_key, project, kek, tried)
            if opened is not None:
                return KeyUsage("encrypted", opened.generation, name)
    raise NoUsableWrapError("the admin wrap opens under no master key held here")


def _tombstone(
    sealed: bytes, project: str, object_key: str, operator_keys: OperatorKeys
) -> KeyUsage:
    for name, kek in _admin_keks(project, operator_keys):
        try:
            open_tombstone(kek, project, object_key, sealed)
        except SealError:
            continue
        return KeyUsage("tombstone", master_key=name)
    raise NoUsableWrapError("a tombstone that opens under no master key held here")


def _admin_keks(
    project: str, operator_keys: OperatorKeys, *, first: str = ""
) -> Iterator[tuple[str, Secret]]:
    for name in dict.fromkeys((first, *operator_keys.master_keys)):
        kek = operator_keys.admin_kek(name, project)
        if kek is not None:
            yield name, kek
