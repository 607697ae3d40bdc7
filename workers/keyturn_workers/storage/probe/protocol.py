"""What the probe needs of a storage beyond the port (SPEC 10), and the result of a check.

Only `keyturn_workers.storage.probe.runner` and its checks may use this.
"""

from dataclasses import dataclass
from typing import Protocol

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage.port import Condition, Headers, Lease, Storage


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether a check passed, and in a few words what the storage did."""

    ok: bool
    detail: str
    undecided: bool = False
    """Not ok because requests failed at the storage: nothing is known, and a retry may differ."""


def is_not_implemented(error: StorageUnavailableError) -> bool:
    """Whether the server answered 501: unlike other failures, this one will not pass."""
    return error.detail.endswith("NotImplemented")


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

    async def put_cut_off(
        self,
        key: str,
        body: bytes,
        headers: Headers,
        *,
        sent_bytes: int,
        condition: Condition | None,
        lease: Lease | None,
    ) -> None:
        """Send a put as `put` does, and close the connection after so many bytes of the body.

        Returns once the server has had time to store what it has; its answer is ignored.
        """
        ...

    async def purge(self, prefix: str) -> None:
        """Remove all objects, versions and open uploads under a prefix."""
        ...
