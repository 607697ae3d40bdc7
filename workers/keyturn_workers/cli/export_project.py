"""`keyturn keys export-project`: hand an auditor one project's admin KEK (SPEC 2.2, 15.2).

An admin KEK opens every object of one project, and nothing of any other: an auditor can verify
the project (`keyturn verify`) without the master key. The file cannot be taken back; a rotation
of the master key makes it worthless for what is under the new one. So the audit trail has a record
before the file exists (SPEC 15.3).
"""

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from keyturn.crypto import Secret
from keyturn.errors import UnknownMasterKeyError, UnknownProjectError
from keyturn.identifiers import (
    format_time,
    is_short_name,
    keyring_s3_key,
)
from keyturn.project_keks import ProjectKeks, build_project_keks
from keyturn_workers.cli.arguments import Project, validate_reason
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.command_audit import CommandAudit, command_audit
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.secrets import write_secret
from keyturn_workers.errors import MissingError
from keyturn_workers.keyring.store import parse_keyring
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.master_keys.providers import open_operator_keys
from keyturn_workers.settings import AuditSettings, OperatorSettings
from keyturn_workers.storage import Storage


def _check_master_keys(values: list[str] | None) -> list[str] | None:
    if any(not is_short_name(value) for value in values or ()):
        raise typer.BadParameter("must have 1 to 32 characters from a-z, 0-9 and -")
    return values


def export_project(
    project: Project,
    out: Annotated[Path, typer.Option(help="New file (mode 0600) for the admin KEK.")],
    reason: Annotated[
        str,
        typer.Option(
            callback=validate_reason,
            help="Who gets the file and why, to record in the audit trail. Do not include secrets.",
        ),
    ],
    master_key: Annotated[
        list[str] | None,
        typer.Option(
            callback=_check_master_keys,
            help="Export the KEK under the master key of this id; may be repeated. "
            "Default: the one that the project's keyring names.",
        ),
    ] = None,
) -> None:
    """Write one project's admin KEK to a file, for `keyturn verify`.

    The file opens every object of the project, and nothing of any other project. The audit
    trail has a record before the file exists (KEYTURN_AMQP_URL, KEYTURN_EVENT_KEY).
    """
    if out.exists():
        raise CommandError(f"{out} already exists")
    keks = asyncio.run(_export(OperatorSettings.read(), project, master_key, out, reason))
    note(f"admin KEK of {project} under {', '.join(keks.admin_keks)} written to {out}: {reason}")


async def _export(
    settings: OperatorSettings,
    project: str,
    master_keys: list[str] | None,
    out: Path,
    reason: str,
) -> ProjectKeks:
    async with command_audit(AuditSettings.read(), "keys export-project", reason) as audit:
        keks = await _derive(settings, project, master_keys, audit)
        async with AsyncExitStack() as acts:
            for name in keks.admin_keks:
                act = audit.act("project_kek.exported", project=project, master_key=name)
                await acts.enter_async_context(act)
            write_secret(out, build_project_keks(keks))
    return keks


async def _derive(
    settings: OperatorSettings,
    project: str,
    master_keys: list[str] | None,
    audit: CommandAudit,
) -> ProjectKeks:
    async with (
        open_bucket(settings, max_connections=2) as storage,
        open_operator_keys(settings, storage, seals=False, on_derived=audit.kek_derived) as keys,
    ):
        names = master_keys or [await _keyring_master_key(storage, keys, project)]
        keks = {name: await _admin_kek(keys, name, project) for name in names}
    return ProjectKeks(project, format_time(datetime.now(UTC)), keks)


async def _admin_kek(keys: OperatorKeys, master_key: str, project: str) -> Secret:
    if master_key not in keys.ids:
        raise UnknownMasterKeyError(f"{master_key} is not in KEYTURN_MASTER_KEYS")
    return await keys.admin_kek(master_key, project)


async def _keyring_master_key(storage: Storage, keys: OperatorKeys, project: str) -> str:
    """The id of the master key that the keyring names, and opens under."""
    try:
        _, body = await storage.read(keyring_s3_key(project))
    except MissingError as exc:
        raise UnknownProjectError(
            "the project has no keyring; specify its master key with --master-key"
        ) from exc
    return (await parse_keyring(body, project, keys)).master_key
