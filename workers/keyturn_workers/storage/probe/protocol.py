"""What the probe asks of a storage beyond the port (SPEC 10), and what a check gives back.

Nothing but `keyturn_workers.storage.probe.runner` and its checks may need this.
"""

from dataclasses import dataclass
from typing import Protocol

from keyturn_workers.storage.port import Condition, Headers, Lease, Storage


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether a check held, and in a few words what the storage did."""

    ok: bool
    said: str


class ProbeStorage(Storage, Protocol):
    """A storage with the requests that only the probe makes."""

    async def copy_conditionally(
        self,
        key: str,
        headers: Headers,
        *,
        source_etag: str | None,
        destination: Condition | None,
        lease: Lease,
    ) -> None:
        """A self-copy with exactly these conditions, whatever `capabilities` says."""
        ...

    async def delete_if_match(self, key: str, etag: str) -> None:
        """Delete the object where its ETag is this one."""
        ...

    async def purge(self, prefix: str) -> None:
        """Remove objects, versions and open uploads under a prefix."""
        ...
