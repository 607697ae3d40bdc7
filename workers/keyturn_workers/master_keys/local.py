"""A master key in this process: 32 bytes from the settings (SPEC 2.2)."""

from keyturn.crypto import Secret, expand_prk, master_prk
from keyturn_workers.master_keys.port import Derivation, KeyDescription


class LocalMasterKey:
    """A master key of which this process holds the bytes.

    Args:
        master_key: 32 bytes.
    """

    provider = "local"

    def __init__(self, master_key: Secret) -> None:
        self._prk = master_prk(master_key.reveal())

    async def derive(self, info: bytes) -> Derivation:
        """Derive here: no call leaves the process."""
        return Derivation(expand_prk(self._prk, info))

    async def describe(self) -> KeyDescription:
        """A key in the settings can be read by anyone who reads them."""
        return KeyDescription("local", "in the settings", exportable=True, automatic_rotation=False)

    async def aclose(self) -> None:
        """Nothing to close."""
