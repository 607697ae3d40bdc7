"""Master keys as the commands `keyturn keys` use them: one provider, asked directly (SPEC 2.2).

Nothing here is cached or retried: each command asks the provider, and shows what it answered.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import typer

from keyturn.crypto import Secret, record_kek_info
from keyturn.errors import KmsUnavailableError
from keyturn_workers.key_uris import KeyUri, Pkcs11Uri, VaultUri, parse_key_uri
from keyturn_workers.master_keys.known_text import RESERVED_PROJECT
from keyturn_workers.master_keys.port import KeyDescription, MasterKey
from keyturn_workers.master_keys.providers import open_master_key
from keyturn_workers.settings import KmsSettings, MasterKeySource

KNOWN_INFO: Final = record_kek_info(RESERVED_PROJECT)
"""What the KEK of the known texts is derived from. It opens no project's data."""


def parse_uri(value: str) -> KeyUri:
    """Parse the URI of an argument or an option.

    Raises:
        typer.BadParameter: it is no URI of a master key, or it has a PIN.
    """
    try:
        uri = parse_key_uri(value)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from None
    if isinstance(uri, Pkcs11Uri) and uri.pin is not None:
        raise typer.BadParameter(
            "other processes can read arguments: pass the PIN with KEYTURN_PKCS11_PIN_FILE"
        )
    return uri


@asynccontextmanager
async def opened(source: MasterKeySource, settings: KmsSettings) -> AsyncIterator[MasterKey]:
    """The master key until the block ends.

    Raises:
        SettingsError: as `open_master_key`.
    """
    key = open_master_key(source, settings)
    try:
        yield key
    finally:
        await key.aclose()


async def derive_known_kek(key: MasterKey) -> Secret:
    """Derive the KEK of the known texts twice.

    Raises:
        KmsUnavailableError: the provider gives none, or the two differ.
    """
    first = await key.derive(KNOWN_INFO)
    second = await key.derive(KNOWN_INFO)
    if first.kek != second.kek:
        raise KmsUnavailableError("two derivations of the same KEK differ")
    return first.kek


def describe_source(source: MasterKeySource) -> KeyDescription:
    """What the settings alone say about a master key."""
    if isinstance(source, Secret):
        return KeyDescription("local", "in the settings")
    version = str(source.version) if isinstance(source, VaultUri) else None
    return KeyDescription(source.location.partition(":")[0], source.location, version)


def concerns(description: KeyDescription) -> list[str]:
    """What an operator should know about a key that works, one line each."""
    found = list(description.warnings)
    if description.provider == "local":
        found.append("anyone who can read a process's settings has the key")
    elif description.exportable:
        found.append("the key can be exported from its provider")
    if description.automatic_rotation:
        found.append("the provider rotates the key automatically: turn that off (SPEC 2.2)")
    if description.imported:
        found.append("the key was imported: copies may still exist where it was generated")
    return found
