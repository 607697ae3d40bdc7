"""The access key that signs requests: the one in the settings, or another source's (SPEC 11).

`aws_chain` has the standard AWS chain, which takes half a second to import.
"""

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key at one moment. One that never changes is its own source."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)

    async def current(self) -> "Credentials":
        """Return these."""
        return self


class CredentialSource(Protocol):
    """Gives credentials, and renews temporary ones."""

    async def current(self) -> Credentials:
        """Return the credentials to sign with now.

        Raises:
            StorageUnavailableError: their source gives none. Nothing was sent to the storage.
        """
        ...
