"""The port to a master key (SPEC 2.2).

For 32 bytes HKDF-Expand is one HMAC-SHA256. So anything that computes HMAC-SHA256 under a key
whose value is the PRK *is* that master key: an HSM, a KMS, or 32 bytes in this process. A provider
is one module with a class that has these four methods; `providers` lists the providers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from keyturn.crypto.keys import Secret
from keyturn.errors import KmsUnavailableError
from keyturn_workers.core.erasure import KeyState


class KmsRefusedError(KmsUnavailableError):
    """The provider responded and refused: no permission, an expired token, a disabled key.

    A KEK in memory then ends at `KMS_CACHE_S` instead of `KMS_CACHE_MAX_S`. `has_new_credential`
    returns whether the refused credential has been replaced, so that the next call may succeed.
    `key_state` is what the answer says of the key itself; None after a refusal for another reason.
    """

    def __init__(
        self,
        detail: str = "",
        *,
        has_new_credential: Callable[[], bool] = lambda: False,
        key_state: KeyState | None = None,
    ) -> None:
        super().__init__(detail)
        self.has_new_credential = has_new_credential
        self.key_state = key_state


@dataclass(frozen=True, slots=True)
class Derivation:
    """The result of one call to a provider.

    Attributes:
        kek: 32 bytes: HMAC-SHA256 of `expand_message(info)` under the master key's PRK.
        request_id: The provider's own id of the call, for the audit trail; None if it has none.
    """

    kek: Secret
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class KeyDescription:
    """A provider's description of a key. `None` means that the provider does not say.

    Attributes:
        provider: `local`, `pkcs11`, `awskms` or `vault`.
        location: The key's URI, without any secret.
        version: The pinned version of the key; None where keys have no versions.
        exportable: True if the key's value can be read out of the provider.
        automatic_rotation: True if the provider rotates the key by itself. It must not.
        imported: True if the key was made outside and imported.
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

    Every method raises `KmsUnavailableError` if the provider does not respond in time, refuses, or
    gives an invalid response. The error's text is one line, names the cause (a wrong PIN, an
    expired token, a missing key), and contains no secret. If the provider responded and refused,
    it is a `KmsRefusedError`.

    Nothing is contacted before the first call. `CircuitBreaker` decides how often a provider is
    called after a failure. But no class tries a refused PIN again: a few wrong ones lock a token
    for good.
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


@dataclass(frozen=True, slots=True)
class KekDerived:
    """A KEK that a provider derived.

    Attributes:
        master_key: The master key's id.
        provider: The master key's provider, such as `awskms`.
        kind: The kind of KEK: `admin` or `record`.
        project: The project; perhaps a reserved name, which no project has.
        request_id: The provider's own id of the call, if it has one.
    """

    master_key: str
    provider: str
    kind: str
    project: str
    request_id: str | None
