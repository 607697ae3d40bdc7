"""Which master key and generation an object depends on (SPEC 8.1, 8.7). Pure.

For the report that an operator needs before dropping a master key, and for the adoption of
objects (SPEC 5.4). It never believes a label: one that names a new master key over a wrap under
the old one would otherwise have the old key dropped, and the object lost with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from keyturn import metadata as object_metadata
from keyturn.errors import NoUsableWrapError
from keyturn.metadata import Plaintext, Tombstone, V0Wraps, Wraps
from keyturn_workers.master_keys.admin_keks import AdminKeks
from keyturn_workers.objects.unwrap import try_tombstone, try_wrap


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """What an object is, and what its admin wrap or its tombstone opened under.

    `generation` is that of the admin wrap; None for tombstones, which have none, and for
    plaintext and v0 objects, which depend on no master key.
    """

    kind: Literal["encrypted", "tombstone", "plaintext", "v0"]
    generation: int | None = None
    master_key: str | None = None


def find_key_usage(
    metadata: Mapping[str, str],
    project: str,
    object_key: str,
    admin_keks: AdminKeks,
    generations: Sequence[int],
) -> KeyUsage:
    """What an object with this metadata depends on.

    The DEK is not compared with the body: a sweep checks whether objects are intact.

    Args:
        metadata: the object's, as on the wire.
        project: its project.
        object_key: its key, without its project.
        admin_keks: the project's; each is tried.
        generations: those that the project ever had, the likely ones first; tried after the
            label's.

    Raises:
        UnknownAlgorithmError: `enc-algo` is none of those in SPEC 4.
        CorruptObjectError: metadata stripped or unreadable.
        NoUsableWrapError: the admin wrap, or the tombstone, opens under no available master key.
        KmsUnavailableError: it opens under none, and one is away.
    """
    match object_metadata.parse(metadata):
        case Plaintext():
            return KeyUsage("plaintext")
        case V0Wraps():
            return KeyUsage("v0")
        case Tombstone(sealed):
            for master_key, kek in admin_keks.in_order():
                if try_tombstone(kek, project, object_key, sealed) is not None:
                    return KeyUsage("tombstone", master_key=master_key)
        case Wraps() as wraps:
            # Every master key at the label's generation first: nearly always one of them opens it.
            for candidates in ((wraps.generation,), generations):
                for master_key, kek in admin_keks.in_order(first=wraps.master_key):
                    opened = try_wrap(wraps, "admin", object_key, project, kek, candidates)
                    if opened is not None:
                        return KeyUsage("encrypted", opened.generation, master_key)
    admin_keks.check_complete()
    raise NoUsableWrapError("it opens under no available master key")
