"""`keyturn keys`: list, check, create and import master keys, export KEKs (SPEC 2.2, 14, 15.2).

A command opens the master keys of its settings, and closes them at its end. It never prints a key,
and of a URI only its location.
"""

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from pydantic import SecretStr

from keyturn.crypto.keys import Secret, composite_kek, master_prk, record_kek_info
from keyturn.errors import (
    KmsUnavailableError,
    SettingsError,
    UnknownMasterKeyError,
    UnknownProjectError,
)
from keyturn.identifiers import (
    format_time,
    key_check_s3_key,
    keyring_s3_key,
)
from keyturn.project_keks import ProjectKeks, build_project_keks
from keyturn.settings import PREFIX
from keyturn_workers.cli.arguments import (
    AsJson,
    CustomerSecretFile,
    Project,
    Reason,
    validate_reason,
    validate_short_name,
)
from keyturn_workers.cli.audit import CommandAudit, command_audit
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.output import Row, command_group, print_line, print_rows
from keyturn_workers.cli.secrets import read_customer_secrets, write_secret
from keyturn_workers.cli.settings import MasterKeySettings, StatusSettings
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.given_secrets import GivenSecrets
from keyturn_workers.core.key_uris import KeyUri, Pkcs11Uri, VaultUri, parse_key_uri
from keyturn_workers.core.keyring import Keyring
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.keys.keyring.store import parse_keyring
from keyturn_workers.keys.master_keys.known_text import RESERVED_PROJECT, check_known_text
from keyturn_workers.keys.master_keys.local import LocalMasterKey
from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys
from keyturn_workers.keys.master_keys.port import KeyDescription, MasterKey
from keyturn_workers.keys.master_keys.providers import (
    generate_master_key,
    import_master_key,
    open_master_key,
    open_operator_keys,
)
from keyturn_workers.process.settings import (
    AuditSettings,
    KmsSettings,
    MasterKeySource,
    OperatorSettings,
)

_COLUMNS: Final = (
    "master_key", "provider", "version", "active", "automatic_rotation", "imported", "reachable",
    "location",
)  # fmt: skip
_DERIVATIONS: Final = 20
_CHECK_COLUMNS: Final = ("master_key", "provider", "derives", "known_text", "median_ms", "max_ms")
_OPENS: Final = "opens"
_NONE_YET: Final = "none yet"
_WRONG: Final = "does not open"
# The settings of each provider, by the scheme of its URIs; and the common ones.
_SETTINGS: Final = {"pkcs11": "pkcs11_", "awskms": "aws_kms_", "vault": "vault_"}
_ALL: Final = "kms_"
app = command_group("keys", "Manage master keys, and export one project's admin KEK.")

KNOWN_INFO: Final = record_kek_info(RESERVED_PROJECT)
"""The context for the KEK of the known texts. It opens no project's data."""


def parse_uri(value: str) -> KeyUri:
    """Parse the URI of an argument or an option.

    Raises:
        typer.BadParameter: it is not a master key's URI, or it has a PIN.
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
    """Yield the master key.

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
        KmsUnavailableError: the provider derives none, or the two differ.
    """
    first = await key.derive(KNOWN_INFO)
    second = await key.derive(KNOWN_INFO)
    if first.kek != second.kek:
        raise KmsUnavailableError("two derivations of the same KEK differ")
    return first.kek


def describe_source(source: MasterKeySource) -> KeyDescription:
    """Return a master key's description from the settings alone."""
    if isinstance(source, Secret):
        return KeyDescription("local", "in the settings")
    version = str(source.version) if isinstance(source, VaultUri) else None
    return KeyDescription(source.location.partition(":")[0], source.location, version)


def concerns(description: KeyDescription) -> list[str]:
    """Return warnings about a working key, one line each."""
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


@asynccontextmanager
async def open_report_keys(
    settings: OperatorSettings, storage: Storage, role: str
) -> AsyncIterator[OperatorKeys]:
    """Yield the operator's keys; `role` is the command's name.

    Raises:
        SettingsError: a setting that a provider needs is missing.
    """
    async with AsyncExitStack() as stack:
        audit = None
        if any(not isinstance(source, Secret) for source in settings.master_keys.values()):
            audit = await _open_audit(stack, role)
        keys = await stack.enter_async_context(
            open_operator_keys(
                settings,
                storage,
                seals=False,
                on_derived=None if audit is None else audit.kek_derived,
            )
        )
        yield keys


async def _open_audit(stack: AsyncExitStack, role: str) -> CommandAudit | None:
    try:
        return await stack.enter_async_context(command_audit(AuditSettings.read(), role))
    except (SettingsError, CommandError) as exc:
        note(f"derived KEKs are not recorded in the audit trail: {exc}")
        return None


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the master keys, and where they are held.

    Exits with 1 if a provider does not respond, or denies access.
    """
    settings = MasterKeySettings.read()
    _print(_COLUMNS, asyncio.run(_rows(settings)), as_json=as_json)


def _print(columns: Sequence[str], rows: Sequence[Row], *, as_json: bool) -> None:
    """Print a row for each master key, and its warnings.

    Raises:
        CommandError: a key has an error; lists all errors.
    """
    print_rows(columns, rows, as_json=as_json)
    if not as_json:
        for row in rows:
            for warning in row["warnings"]:
                note(f"{row['master_key']}: {warning}")
    if failed := [row for row in rows if row["error"] is not None]:
        raise CommandError("; ".join(f"{row['master_key']}: {row['error']}" for row in failed))


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
    """Return the provider's description; a process may be allowed only to derive."""
    try:
        description = await key.describe()
    except KmsUnavailableError as exc:
        try:
            await derive_known_kek(key)
        except KmsUnavailableError:
            raise exc from None
        return describe_source(source), [_not_described(exc)]
    return description, concerns(description)


def _not_described(error: KmsUnavailableError) -> str:
    return f"it derives, but its properties cannot be read: {error.detail}"


@app.command("check")
def check_keys(
    master_keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Ids of master keys. Default: all of them."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that each master key works and matches the bucket.

    Derives twice and compares, opens the known text in the bucket, and measures 20 derivations.
    Warns of a key that can be exported, that its provider rotates, or that was imported. Exits
    with 1 if a key cannot be used, or is not the one that the bucket knows by its id.
    """
    settings = StatusSettings.read()
    names = list(dict.fromkeys(master_keys or settings.master_keys))
    for name in names:
        if name not in settings.master_keys:
            raise UnknownMasterKeyError(f"{name} is not in KEYTURN_MASTER_KEYS")
    _print(_CHECK_COLUMNS, asyncio.run(_check(settings, names)), as_json=as_json)


async def _check(settings: StatusSettings, names: Sequence[str]) -> list[Row]:
    async with open_bucket(settings, max_connections=2) as storage:
        # One after the other: the measurement needs an otherwise idle provider.
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


async def _warnings(key: MasterKey) -> list[str]:
    """Return the concerns about a key that derives, whether it can be described or not."""
    try:
        return concerns(await key.describe())
    except KmsUnavailableError as exc:
        return [_not_described(exc)]


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


@app.command("create")
def create_key(
    uri: Annotated[
        str, typer.Argument(metavar="URI", help="pkcs11:… or vault:… of the key to create.")
    ],
) -> None:
    """Generate a master key inside an HSM or a KMS.

    The key never leaves it. AWS KMS names its keys itself: create one there with
    `aws kms create-key`.
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
    """Make sure that a key derives, generating it if unusable; return True if it is new.

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


@app.command("import")
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
    """Import a master key from the settings into an HSM or a KMS.

    It keeps its id. Nothing is rewrapped. The command derives a KEK there and compares it with the
    local one, and prints the setting to change only if they agree. The import is recorded in the
    audit trail first (KEYTURN_AMQP_URL, KEYTURN_EVENT_KEY).
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
    # It may exist already: an interrupted import can be repeated.
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
    """Return why the provider's key cannot serve as this master key; None if it can.

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


def held_key_settings(name: str, uri: KeyUri) -> dict[str, str]:
    """Make sure that the key derives, and return the settings by which a process uses it.

    Raises:
        CommandError: it does not derive, and could not be generated.
        SettingsError: a setting of its provider is missing or malformed.
    """
    settings = KmsSettings.read()
    if asyncio.run(create_if_missing(settings, uri)):
        note(f"generated {uri.location}")
    return {
        "KEYTURN_MASTER_KEYS": json.dumps({name: uri.location}),
        "KEYTURN_ACTIVE_MASTER_KEY": name,
        **_provider_settings(settings, uri),
    }


def _provider_settings(settings: KmsSettings, uri: KeyUri) -> dict[str, str]:
    """Return the environment's settings of this provider; a secret only if given as a value."""
    prefixes = (_SETTINGS[uri.location.partition(":")[0]], _ALL)
    return {
        f"{PREFIX}{field.upper()}": _text(getattr(settings, field))
        for field in type(settings).model_fields
        if field in settings.model_fields_set and field.startswith(prefixes)
    }


def _text(value: SecretStr | Path | str | float) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


# One project's admin KEK opens every object of that project, and of no other: an auditor can verify
# the project (`keyturn verify`) without the master key. The file cannot be revoked; a rotation of
# the master key makes it useless for objects under the new one.


@app.command("export-project")
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
            parser=validate_short_name,
            metavar="ID",
            help="Export the KEK under the master key of this id; may be repeated. "
            "Default: the one that the project's keyring names.",
        ),
    ] = None,
    customer_secret_file: CustomerSecretFile = None,
) -> None:
    """Write one project's admin KEK to a file.

    For `keyturn verify`. The file opens every object of the project, and nothing of any other
    project. The export is recorded in the audit trail first (KEYTURN_AMQP_URL,
    KEYTURN_EVENT_KEY).

    If the project has a customer key, give its secrets (--customer-secret-file). What the file
    opens then does not end when the customer disables the key, but with the next rotation to a
    customer key.
    """
    if out.exists():
        raise CommandError(f"{out} already exists")
    secrets = GivenSecrets(read_customer_secrets(customer_secret_file))
    keks = asyncio.run(_export(OperatorSettings.read(), project, master_key, out, reason, secrets))
    note(f"admin KEK of {project} under {', '.join(keks.admin_keks)} written to {out}: {reason}")
    if keks.composites:
        note(
            "the file opens the project even after its customer key is disabled: a rotation to a "
            "customer key, the same or another, ends that"
        )


async def _export(
    settings: OperatorSettings,
    project: str,
    master_keys: list[str] | None,
    out: Path,
    reason: str,
    secrets: GivenSecrets,
) -> ProjectKeks:
    async with command_audit(AuditSettings.read(), "keys export-project", reason) as audit:
        keks = await _derive(settings, project, master_keys, audit, secrets)
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
    secrets: GivenSecrets,
) -> ProjectKeks:
    async with (
        open_bucket(settings, max_connections=2) as storage,
        open_operator_keys(settings, storage, seals=False, on_derived=audit.kek_derived) as keys,
    ):
        for name in master_keys or ():
            _check_held(keys, name)
        keyring = await _read_keyring(storage, keys, project, required=not master_keys)
        names = master_keys or ([] if keyring is None else [keyring.master_key])
        keks = {name: await keys.admin_kek(name, project) for name in names}
    composites = {} if keyring is None else _composites(keyring, keks, secrets)
    return ProjectKeks(project, format_time(datetime.now(UTC)), keks, composites)


def _composites(
    keyring: Keyring, keks: Mapping[str, Secret], secrets: GivenSecrets
) -> dict[tuple[str, str], Secret]:
    """Return the KEKs of wraps that need a customer secret, by the ids of both of their inputs."""
    given = secrets.require_all(keyring)
    return {
        (name, secret_id): composite_kek(kek, secret, "admin", keyring.project, secret_id)
        for secret_id, secret in given.items()
        for name, kek in keks.items()
    }


def _check_held(keys: OperatorKeys, master_key: str) -> None:
    if master_key not in keys.ids:
        raise UnknownMasterKeyError(f"{master_key} is not in KEYTURN_MASTER_KEYS")


async def _read_keyring(
    storage: Storage, keys: OperatorKeys, project: str, *, required: bool
) -> Keyring | None:
    try:
        _, body = await storage.read(keyring_s3_key(project))
    except MissingError as exc:
        if not required:
            return None
        raise UnknownProjectError(
            "the project has no keyring; specify its master key with --master-key"
        ) from exc
    return await parse_keyring(body, project, keys)
