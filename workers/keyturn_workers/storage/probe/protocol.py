"""What the probe needs of a storage beyond the port (SPEC 10), and the result of a check.

Only `keyturn_workers.storage.probe.runner` and its checks may use this.
"""

from dataclasses import dataclass
from typing import Protocol

from keyturn_workers.storage.port import Condition, Headers, Lease, Storage


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether a check passed, and in a few words what the storage did."""

    ok: bool
    detail: str


class ProbeStorage(Storage, Protocol):
    """A storage with the operations that only the probe uses."""

    async def copy_conditionally(
        self,
        key: str,
        headers: Headers,
        *,
        source_etag: str | None,
        destination: Condition | None,
        lease: Lease,
    ) -> None:
        """Copy an object onto itself with exactly these conditions, whatever `capabilities` is."""
        ...

    async def delete_if_match(self, key: str, etag: str) -> None:
        """Delete the object if it has this ETag."""
        ...

    async def purge(self, prefix: str) -> None:
        """Remove all objects, versions and open uploads under a prefix."""
        ...
