"""A master key in this process: 32 bytes from the settings (SPEC 2.2)."""

from keyturn.crypto.keys import Secret, expand_prk, master_prk
from keyturn_workers.keys.master_keys.port import Derivation, KeyDescription


class LocalMasterKey:
    """A master key whose 32 bytes are in this process."""

    provider = "local"

    def __init__(self, master_key: Secret) -> None:
        self._prk = master_prk(master_key.reveal())

    async def derive(self, info: bytes) -> Derivation:
        """Derive here: no call leaves the process."""
        return Derivation(expand_prk(self._prk, info))

    async def describe(self) -> KeyDescription:
        """Describe the key: anyone who can read the settings can read it."""
        return KeyDescription("local", "in the settings", exportable=True, automatic_rotation=False)

    async def aclose(self) -> None:
        """Nothing to close."""
