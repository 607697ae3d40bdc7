"""The probe's storage operations beyond the port (SPEC 10), and the result of a check.

Only `keyturn_workers.storage.probe.runner` and its checks may use these operations.
"""

from dataclasses import dataclass
from typing import Protocol

from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import Condition, Headers, Lease


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a check, with the storage's behavior in a few words."""

    ok: bool
    detail: str
    undecided: bool = False
    """Not ok because requests failed at the storage: nothing is known, and a retry may differ."""


def is_not_implemented(error: StorageUnavailableError) -> bool:
    """Check if the server responded 501: unlike other failures, this one is permanent."""
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
        """Send a put as `put` does, but close the connection after `sent_bytes` of the body.

        Return once the server has had time to store what it has; its response is ignored.
        """
        ...

    async def purge(self, prefix: str) -> None:
        """Remove all objects, versions and open uploads under a prefix."""
        ...
