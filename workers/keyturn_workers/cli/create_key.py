"""`keyturn keys create`: generate a master key inside its provider (SPEC 2.2, 14)."""

import asyncio
import json
from typing import Annotated

import typer

from keyturn.errors import KmsUnavailableError
from keyturn_workers.cli.errors import CommandError
from keyturn_workers.cli.held_keys import derive_known_kek, opened, parse_uri
from keyturn_workers.cli.output import print_line
from keyturn_workers.key_uris import KeyUri
from keyturn_workers.master_keys.providers import generate_master_key
from keyturn_workers.settings import KmsSettings


def create_key(
    uri: Annotated[
        str, typer.Argument(metavar="URI", help="pkcs11:… or vault:… of the key to create.")
    ],
) -> None:
    """Generate a master key inside an HSM or a KMS, which it never leaves.

    AWS KMS chooses the name of a key itself: create one there with `aws kms create-key`.
    """
    target = parse_uri(uri)
    asyncio.run(_create(KmsSettings.read(), target))
    print_line("Created. It can derive KEKs. To use it:")
    print_line("1. Add it under a new id to KEYTURN_MASTER_KEYS of every worker and gateway, e.g.")
    print_line(f"   {json.dumps('m2')}: {json.dumps(target.location)}")
    print_line("2. Check it: keyturn keys check m2")
    print_line("3. Set KEYTURN_ACTIVE_MASTER_KEY=m2, and restart them.")
    print_line("4. Move existing objects: keyturn sweep --all --master-key m2 --watch")


async def _create(settings: KmsSettings, uri: KeyUri) -> None:
    try:
        await generate_master_key(uri, settings)
    except ValueError as exc:
        raise CommandError(str(exc)) from exc
    try:
        async with opened(uri, settings) as key:
            await derive_known_kek(key)
    except KmsUnavailableError as exc:
        raise CommandError(f"created, but it cannot derive KEKs: {exc.detail}") from exc


async def create_if_missing(settings: KmsSettings, uri: KeyUri) -> bool:
    """Make sure that a key derives, and generate it if it cannot be used; whether it was new.

    Raises:
        CommandError: it does not derive, and could not be generated.
    """
    try:
        async with opened(uri, settings) as key:
            await derive_known_kek(key)
    except KmsUnavailableError as exc:
        try:
            await _create(settings, uri)
        except (CommandError, KmsUnavailableError) as failure:
            raise CommandError(f"{exc.detail}; {failure}") from failure
        return True
    return False
