"""`keyturn keys list`: the master keys of the settings, and what their providers say (SPEC 14).

It reads no bucket. It never prints a key, and of a URI only its location.
"""

import asyncio
from typing import Final

from keyturn.errors import KmsUnavailableError, SettingsError
from keyturn_workers.cli.arguments import AsJson
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.held_keys import concerns, derive_known_kek, describe_source, opened
from keyturn_workers.cli.output import print_rows
from keyturn_workers.cli.record_index import Row
from keyturn_workers.cli.settings import MasterKeySettings
from keyturn_workers.master_keys.port import KeyDescription, MasterKey
from keyturn_workers.settings import MasterKeySource

_COLUMNS: Final = (
    "master_key", "provider", "location", "version", "active", "automatic_rotation", "imported",
    "reachable",
)  # fmt: skip


def list_keys(as_json: AsJson = False) -> None:
    """List the master keys of KEYTURN_MASTER_KEYS, and where they are held.

    Exits with 1 if a provider does not respond, or denies access.
    """
    settings = MasterKeySettings.read()
    rows = asyncio.run(_rows(settings))
    print_rows(_COLUMNS, rows, unfolded=("master_key", "location"), as_json=as_json)
    if not as_json:
        for row in rows:
            for warning in row["warnings"]:
                note(f"{row['master_key']}: {warning}")
    if away := [row for row in rows if not row["reachable"]]:
        raise CommandError("; ".join(f"{row['master_key']}: {row['error']}" for row in away))


async def _rows(settings: MasterKeySettings) -> list[Row]:
    return await asyncio.gather(
        *(_row(name, source, settings) for name, source in settings.master_keys.items())
    )


async def _row(name: str, source: MasterKeySource, settings: MasterKeySettings) -> Row:
    error = None
    try:
        async with opened(source, settings) as key:
            description, warnings = await _describe(key, source)
    except (KmsUnavailableError, SettingsError) as exc:
        description, warnings, error = describe_source(source), [], str(exc)
    active = settings.active_master_key
    return {
        "master_key": name,
        "provider": description.provider,
        "location": description.location,
        "version": description.version,
        "active": None if active is None else name == active,
        "automatic_rotation": description.automatic_rotation,
        "exportable": description.exportable,
        "imported": description.imported,
        "reachable": error is None,
        "warnings": warnings,
        "error": error,
    }


async def _describe(key: MasterKey, source: MasterKeySource) -> tuple[KeyDescription, list[str]]:
    """What the provider says; a process may be allowed to derive and not to describe."""
    try:
        description = await key.describe()
    except KmsUnavailableError as exc:
        try:
            await derive_known_kek(key)
        except KmsUnavailableError:
            raise exc from None
        warning = f"it derives, but its properties cannot be read: {exc.detail}"
        return describe_source(source), [warning]
    return description, concerns(description)
