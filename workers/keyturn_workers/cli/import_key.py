"""`keyturn keys import`: put a master key of the settings into a provider (SPEC 2.2, 14).

What is imported is the PRK, so the provider derives the same KEKs and nothing is rewrapped. The
setting may be changed only once the key there has derived what the local one derives. The audit
trail has the import before it happens (SPEC 15.3).
"""

import asyncio
import json
from contextlib import AbstractAsyncContextManager
from typing import Annotated

import typer

from keyturn.crypto import Secret, master_prk
from keyturn.errors import KmsUnavailableError, UnknownMasterKeyError
from keyturn_workers.cli.arguments import Reason
from keyturn_workers.cli.command_audit import CommandAudit, command_audit
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.held_keys import derive_known_kek, describe_source, opened, parse_uri
from keyturn_workers.cli.output import print_line
from keyturn_workers.cli.settings import MasterKeySettings
from keyturn_workers.key_uris import KeyUri
from keyturn_workers.master_keys.local import LocalMasterKey
from keyturn_workers.master_keys.providers import import_master_key
from keyturn_workers.settings import AuditSettings


def import_key(
    master_key: Annotated[
        str, typer.Argument(metavar="ID", help="The id of a key in KEYTURN_MASTER_KEYS.")
    ],
    uri: Annotated[
        str,
        typer.Argument(metavar="URI", help="pkcs11:…, awskms:… or vault:…: where to import it."),
    ],
    reason: Reason = None,
) -> None:
    """Import a master key from the settings into an HSM or a KMS, under the same id.

    Nothing is rewrapped. The command derives a KEK there and compares it with the local one, and
    prints the setting to change only if they agree. The import is recorded in the audit trail
    first (KEYTURN_AMQP_URL, KEYTURN_EVENT_KEY).
    """
    target = parse_uri(uri)
    settings = MasterKeySettings.read()
    held = settings.master_keys.get(master_key)
    if held is None:
        raise UnknownMasterKeyError(f"{master_key} is not in KEYTURN_MASTER_KEYS")
    if not isinstance(held, Secret):
        raise CommandError(
            f"the value of {master_key} is not in the settings, so it cannot be imported"
        )
    trail = command_audit(AuditSettings.read(), "keys import", reason)
    asyncio.run(_import(settings, master_key, held, target, trail))
    note(
        f"{master_key} now derives the same KEKs in the provider. Replace its entry in "
        "KEYTURN_MASTER_KEYS of every worker and gateway with:"
    )
    print_line(f"{json.dumps(master_key)}: {json.dumps(target.location)}")


async def _import(
    settings: MasterKeySettings,
    master_key: str,
    held: Secret,
    uri: KeyUri,
    trail: AbstractAsyncContextManager[CommandAudit],
) -> None:
    expected = await derive_known_kek(LocalMasterKey(held))
    # It may be there already: an import that was interrupted can be repeated.
    problem = await _problem(settings, uri, expected)
    if problem is None:
        return
    provider = describe_source(uri).provider
    async with (
        trail as audit,
        audit.act("master_key.imported", master_key=master_key, provider=provider),
    ):
        try:
            await import_master_key(uri, settings, master_prk(held.reveal()))
        except ValueError as exc:
            raise CommandError(f"{exc} ({problem})") from exc
        problem = await _problem(settings, uri, expected)
        if problem is not None:
            raise CommandError(f"imported, but do not use it yet: {problem}")


async def _problem(settings: MasterKeySettings, uri: KeyUri, expected: Secret) -> str | None:
    """Why the key there cannot serve as this master key; None if it can.

    Raises:
        CommandError: it is another key.
    """
    try:
        async with opened(uri, settings) as key:
            kek = await derive_known_kek(key)
    except KmsUnavailableError as exc:
        return exc.detail
    if kek != expected:
        raise CommandError(
            "the provider's key differs from the local one: do not use it under this id"
        )
    return None
