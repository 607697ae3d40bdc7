"""The port to the KEKs of projects, wherever the master keys are kept (SPEC 2.2)."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from keyturn.crypto.keys import Secret
from keyturn_workers.core.admin_keks import AdminKeks

_T = TypeVar("_T")


class KekDeriver(Protocol):
    """Derives each project's KEKs under the master keys of this process.

    The implementation is in `keyturn_workers.keys.master_keys.operator_keys`.
    """

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the master keys of this process, in the order of the settings."""
        ...

    async def admin_kek(self, master_key: str, project: str) -> Secret:
        """A project's admin KEK under one master key.

        Raises:
            UnknownMasterKeyError: this process lacks that master key, or has another one by its id.
            KmsUnavailableError: its provider gives no KEK now.
            StorageUnavailableError: the known text cannot be read now.
        """
        ...

    async def record_kek(self, master_key: str, project: str) -> Secret:
        """The KEK of Keyturn's own records about a project. Raises as `admin_kek`."""
        ...

    async def fresh_record_kek(self, master_key: str, project: str) -> Secret | None:
        """A newly derived record KEK; None if the cached one is fresh. Raises as `admin_kek`."""
        ...

    async def admin_keks(self, project: str) -> AdminKeks:
        """A project's admin KEKs under all master keys of this process.

        Raises:
            StorageUnavailableError: a known text cannot be read now.
        """
        ...

    async def open_with(self, project: str, opening: Callable[[AdminKeks], _T]) -> _T:
        """Call `opening` with a project's admin KEKs, and return its result.

        If no KEK opens the object, it may be called again with newly derived KEKs.
        """
        ...

    def touch(self, master_key: str, project: str) -> bool:
        """Return True if the project's admin KEK is in memory and usable; keeps it fresh."""
        ...

    def when_forgotten(self, forget: Callable[[str], None]) -> None:
        """Register a callback with the project of each forgotten KEK: copies must go too."""
        ...
