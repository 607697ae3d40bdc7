"""The port to a master key, wherever it is held (SPEC 2.2).

For 32 bytes HKDF-Expand is one HMAC-SHA256. So whatever computes HMAC-SHA256 under a key whose
value is the PRK *is* that master key: an HSM, a KMS, or 32 bytes in this process. A provider is one
module with a class that has these four methods; `providers` lists them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from keyturn.crypto import Secret
from keyturn.errors import KmsUnavailableError


class KmsRefusedError(KmsUnavailableError):
    """The provider answered, and refused: no permission, an expired token, a disabled key.

    A KEK in memory then ends at `KMS_CACHE_S` instead of `KMS_CACHE_MAX_S`.

    Args:
        detail: As `KmsUnavailableError`.
        has_new_credential: Whether the credential is by now another one than the one that was
            refused, so that the next call may succeed.
    """

    def __init__(
        self, detail: str = "", *, has_new_credential: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__(detail)
        self.has_new_credential = has_new_credential


@dataclass(frozen=True, slots=True)
class Derivation:
    """What one call to a provider gave.

    Attributes:
        kek: 32 bytes: HMAC-SHA256 of `expand_message(info)` under the master key's PRK.
        request_id: The provider's own id of the call, for the audit trail; None if it has none.
    """

    kek: Secret
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class KeyDescription:
    """What a provider says about a key. `None` means "the provider does not say".

    Attributes:
        provider: `local`, `pkcs11`, `awskms` or `vault`.
        location: Where the key is, as its URI, without any secret.
        version: The pinned version of the key; None where keys have no versions.
        exportable: Whether the key's value can be read out of the provider.
        automatic_rotation: Whether the provider rotates the key by itself. It must not.
        imported: Whether the key was made outside and imported.
    """

    provider: str
    location: str
    version: str | None = None
    exportable: bool | None = None
    automatic_rotation: bool | None = None
    imported: bool | None = None
    warnings: tuple[str, ...] = field(default=())


class MasterKey(Protocol):
    """One master key. Safe for concurrent use by the tasks of one event loop.

    Every method raises `KmsUnavailableError` if the provider does not answer in time, refuses, or
    answers with anything but what was asked for. Its text is one line, names the cause (a wrong
    PIN, an expired token, a missing key), and contains no secret. It is a `KmsRefusedError` if the
    provider answered and refused.

    Nothing is contacted before the first call. How often a provider is called after a failure is
    decided by `CircuitBreaker`. But no class tries a PIN again that was refused: a few wrong ones
    lock a token for good.
    """

    @property
    def provider(self) -> str:
        """`local`, `pkcs11`, `awskms` or `vault`."""

    async def derive(self, info: bytes) -> Derivation:
        """Return HKDF-Expand to 32 bytes for this info (SPEC 2.2), by one call to the provider."""

    async def describe(self) -> KeyDescription:
        """Ask the provider about the key, for `keyturn keys list|check`."""

    async def aclose(self) -> None:
        """Close sessions and connections."""
