"""Which class serves which kind of master key. A further provider is one module and one line here.

The libraries of a provider are imported only where one of its keys is used: they are optional.
"""

from collections.abc import Mapping

from keyturn.crypto import Secret
from keyturn.errors import SettingsError
from keyturn_workers.master_keys.local import LocalMasterKey
from keyturn_workers.master_keys.port import MasterKey
from keyturn_workers.settings import KmsSettings, MasterKeySource


def open_master_key(source: MasterKeySource, settings: KmsSettings) -> MasterKey:  # noqa: ARG001
    """Return the master key that a setting names. Contacts nothing.

    Raises:
        SettingsError: an optional dependency is not installed, or a setting that this kind of
            key needs is missing.
    """
    if isinstance(source, Secret):
        return LocalMasterKey(source)
    raise SettingsError("this kind of master key is not supported")


def open_master_keys(
    sources: Mapping[str, MasterKeySource], settings: KmsSettings
) -> dict[str, MasterKey]:
    """Return the master keys of the settings by id; errors as `open_master_key`."""
    return {name: open_master_key(source, settings) for name, source in sources.items()}
