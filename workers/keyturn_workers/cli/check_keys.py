"""`keyturn keys check`: whether each master key is the right one, and how fast (SPEC 2.2, 14).

It changes nothing: a known text that does not exist yet is created by the first worker.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from keyturn.crypto import Secret
from keyturn.errors import (
    KmsUnavailableError,
    SettingsError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import key_check_s3_key
from keyturn_workers.cli.arguments import AsJson
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.held_keys import (
    KNOWN_INFO,
    concerns,
    derive_known_kek,
    describe_source,
    opened,
)
from keyturn_workers.cli.output import print_rows
from keyturn_workers.cli.record_index import Row
from keyturn_workers.cli.settings import StatusSettings
from keyturn_workers.errors import MissingError
from keyturn_workers.master_keys.known_text import check_known_text
from keyturn_workers.master_keys.port import MasterKey
from keyturn_workers.storage import Storage

_DERIVATIONS: Final = 20
_COLUMNS: Final = ("master_key", "provider", "derives", "known_text", "median_ms", "max_ms")
_OPENS: Final = "opens"
_NONE_YET: Final = "none yet"
_WRONG: Final = "does not open"


def check_keys(
    master_keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Ids of master keys. Default: all of them."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that each master key derives KEKs and matches the bucket, and measure it.

    Derives twice and compares, opens the known text in the bucket, and measures 20 derivations.
    Warns of a key that can be exported, that its provider rotates, or that was imported. Exits
    with 1 if a key cannot be used, or is another one than the bucket knows by its id.
    """
    settings = StatusSettings.read()
    names = list(dict.fromkeys(master_keys or settings.master_keys))
    for name in names:
        if name not in settings.master_keys:
            raise UnknownMasterKeyError(f"{name} is not in KEYTURN_MASTER_KEYS")
    rows = asyncio.run(_check(settings, names))
    print_rows(_COLUMNS, rows, unfolded=("master_key",), as_json=as_json)
    if not as_json:
        for row in rows:
            for warning in row["warnings"]:
                note(f"{row['master_key']}: {warning}")
    if failed := [row for row in rows if row["error"] is not None]:
        raise CommandError("; ".join(f"{row['master_key']}: {row['error']}" for row in failed))


async def _check(settings: StatusSettings, names: Sequence[str]) -> list[Row]:
    async with open_bucket(settings, max_connections=2) as storage:
        # One after the other: what is measured is a provider that is otherwise idle.
        return [await _check_one(storage, settings, name) for name in names]


async def _check_one(storage: Storage, settings: StatusSettings, name: str) -> Row:
    source = settings.master_keys[name]
    row: dict[str, Any] = {
        "master_key": name,
        "provider": describe_source(source).provider,
        "derives": False,
        "known_text": None,
        "median_ms": None,
        "max_ms": None,
        "warnings": [],
        "error": None,
    }
    try:
        async with opened(source, settings) as key:
            kek = await derive_known_kek(key)
            row["derives"] = True
            row["known_text"] = await _known_text(storage, name, kek)
            row |= await _measure(key)
            row["warnings"] = await _warnings(key)
    except (KmsUnavailableError, SettingsError) as exc:
        row["error"] = str(exc)
    if row["known_text"] == _WRONG:
        row["error"] = (
            f"this id belongs to another key: {key_check_s3_key(name)} in the bucket does not "
            "open under this one"
        )
    return row


async def _known_text(storage: Storage, name: str, kek: Secret) -> str:
    try:
        await storage.read(key_check_s3_key(name))
    except MissingError:
        return _NONE_YET
    try:
        await check_known_text(storage, name, kek, create=False)
    except UnknownMasterKeyError:
        return _WRONG
    return _OPENS


async def _measure(key: MasterKey) -> dict[str, float]:
    times_ms = []
    for _ in range(_DERIVATIONS):
        began_s = time.perf_counter()
        await key.derive(KNOWN_INFO)
        times_ms.append((time.perf_counter() - began_s) * 1000)
    return {
        "median_ms": round(statistics.median(times_ms), 3),
        "max_ms": round(max(times_ms), 3),
    }


async def _warnings(key: MasterKey) -> list[str]:
    try:
        return concerns(await key.describe())
    except KmsUnavailableError as exc:
        return [f"its properties cannot be read: {exc.detail}"]
