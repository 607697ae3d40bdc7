"""`keyturn download` and `link`: one object, through a gateway (SPEC 9.1, 9.3, 14).

A gateway authenticates the body and cuts the connection if that fails. With `--as-operator`,
`download` reads the bucket with the operator's keys, and authenticates the body itself.

A file appears under its name only after the whole body was authenticated. Standard output gets
authenticated chunks as they arrive; only the exit status shows whether all of them came.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Final

import typer

from keyturn.gateway.links import (
    CIPHERTEXT_LINK_MAX_S,
    LINK_MAX_S,
    CiphertextLink,
    Link,
    UploadLink,
)
from keyturn_workers.cli.arguments import (
    DURATION_FORM,
    ApiKeyFile,
    AsJsonText,
    CustomerSecretFile,
    GatewayUrl,
    ObjectKey,
    Project,
    Reason,
    parse_duration_s,
)
from keyturn_workers.cli.audit import CommandAudit, command_audit
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.gateway_access import (
    GatewayAccess,
    gateway_access,
    gateway_client,
    refuse_gateway_options,
)
from keyturn_workers.cli.output import (
    TransferProgress,
    print_json,
    print_line,
    to_seconds,
    transfer_progress,
)
from keyturn_workers.cli.secrets import read_customer_secrets
from keyturn_workers.core.given_secrets import GivenSecrets
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.keys.master_keys.providers import open_operator_keys
from keyturn_workers.offline.download import OperatorAccess, open_object
from keyturn_workers.offline.export.run import Opened
from keyturn_workers.process.settings import AuditSettings, OperatorSettings

_EXPIRES_S: Final = 3600

_STDOUT: Final = Path("-")
# The object, and the records read in parallel.
_CONNECTIONS: Final = 4

AsOperator = Annotated[
    bool,
    typer.Option(
        "--as-operator",
        help="Read the bucket with KEYTURN_MASTER_KEYS instead. Requires --reason. This is "
        "recorded in the audit trail first (KEYTURN_AMQP_URL, KEYTURN_EVENT_KEY).",
    ),
]


def download(
    project: Project,
    key: ObjectKey,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File to write (mode 0600), or - for standard output. "
            "Default: the key's last segment, in the current folder.",
        ),
    ] = None,
    as_operator: AsOperator = False,
    reason: Reason = None,
    customer_secret_file: CustomerSecretFile = None,
    gateway: GatewayUrl = None,
    api_key_file: ApiKeyFile = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Download and decrypt one object.

    Downloads through a gateway, with the project's API key. An operator may read the bucket
    instead, with the master keys (--as-operator).
    """
    secrets = check_access_options(
        reason, gateway, api_key_file, customer_secret_file, as_operator=as_operator
    )
    target = _target(key, output, force=force)
    if as_operator:
        settings = OperatorSettings.read()
        asyncio.run(_download_as_operator(settings, project, key, target, reason, secrets))
    else:
        access = gateway_access(project, gateway, api_key_file)
        asyncio.run(_download_by_gateway(access, project, key, target))


def _target(key: str, output: Path | None, *, force: bool) -> Path | None:
    """Return the file to write; None for standard output."""
    if output == _STDOUT:
        return None
    target = output if output is not None else Path(key.rpartition("/")[2])
    if target.exists() and not target.is_file():
        raise typer.BadParameter(f"{target} is not a file")
    if target.exists() and not force:
        raise CommandError(f"{target} already exists; use --force to replace it")
    if not target.parent.is_dir():
        raise CommandError(f"{target.parent}: no such folder")
    return target


def check_access_options(
    reason: str | None,
    gateway: str | None,
    api_key_file: Path | None,
    customer_secret_file: Path | None,
    *,
    as_operator: bool,
) -> GivenSecrets:
    """Refuse options that contradict each other; return the customer secrets in the file.

    Raises:
        typer.BadParameter: names the options, or the line of the file that is malformed.
    """
    if as_operator:
        refuse_gateway_options(gateway, api_key_file)
    if as_operator != (reason is not None):
        raise typer.BadParameter(
            "--as-operator requires --reason, and --reason requires --as-operator"
        )
    if customer_secret_file is not None and not as_operator:
        raise typer.BadParameter("--customer-secret-file requires --as-operator")
    return GivenSecrets(read_customer_secrets(customer_secret_file))


async def _download_as_operator(
    settings: OperatorSettings,
    project: str,
    key: str,
    target: Path | None,
    reason: str | None,
    secrets: GivenSecrets,
) -> None:
    async with (
        command_audit(AuditSettings.read(), "download", reason) as audit,
        open_bucket(settings, max_connections=_CONNECTIONS) as storage,
        operator_access(settings, storage, audit, project, secrets) as access,
        open_object(storage, key, access) as opened,
        # No plaintext is written before the broker has the record.
        audit.act("object.opened_as_operator", project=project, object_key=key),
    ):
        await _write(opened, key, target)


@asynccontextmanager
async def operator_access(
    settings: OperatorSettings,
    storage: Storage,
    audit: CommandAudit,
    project: str,
    secrets: GivenSecrets,
) -> AsyncIterator[OperatorAccess]:
    """Yield access to a project's objects by the operator's keys. The caller records its uses."""
    async with open_operator_keys(
        settings, storage, seals=False, on_derived=audit.kek_derived
    ) as keys:
        yield OperatorAccess(project, keys, secrets)


async def _download_by_gateway(
    access: GatewayAccess, project: str, key: str, target: Path | None
) -> None:
    async with gateway_client(access) as client, client.open(project, key) as opened:
        await _write(opened, key, target)


async def _write(opened: Opened, key: str, target: Path | None) -> None:
    with transfer_progress(opened.info.size_bytes, enabled=target is not None) as progress:
        progress.label(key)
        if target is None:
            await _to_stdout(opened)
        else:
            await _to_file(opened, target, progress)
    if target is not None:
        note(f"written to {target}")


async def _to_stdout(opened: Opened) -> None:
    async for chunk in opened.chunks():
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


async def _to_file(opened: Opened, target: Path, progress: TransferProgress) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            async for chunk in opened.chunks():
                await asyncio.to_thread(file.write, chunk)
                progress.advance(0, len(chunk))
        os.replace(temporary, target)  # noqa: PTH105  # a path as mkstemp gives it
    finally:
        # Already renamed after success; otherwise it holds part of an unauthenticated body.
        with suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108  # as above


def link(
    project: Project,
    key: ObjectKey,
    expires_s: Annotated[
        int | None,
        typer.Option(
            "--expires",
            parser=parse_duration_s,
            metavar="DURATION",
            help=f"How long the link is valid: {DURATION_FORM}. At most 7d; default: 1h.",
        ),
    ] = None,
    inline: Annotated[
        bool, typer.Option("--inline", help="Let a browser show the object instead of saving it.")
    ] = False,
    ciphertext: Annotated[
        bool,
        typer.Option(
            "--ciphertext",
            help="Link to the encrypted bytes in the storage, for at most 15m. --json also prints "
            "the metadata that is needed to decrypt them with the API key.",
        ),
    ] = False,
    put: Annotated[
        bool,
        typer.Option(
            "--put",
            help="Print an upload link: it uploads one object to this key, by PUT, and reads "
            "nothing. Requires --max-bytes.",
        ),
    ] = False,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            "--max-bytes", min=0, metavar="BYTES", help="With --put: the largest body allowed."
        ),
    ] = None,
    content_type: Annotated[
        str | None,
        typer.Option(
            "--content-type",
            metavar="TYPE",
            help="With --put: the content type that the object gets, and the only one that may be "
            "sent. Default: any.",
        ),
    ] = None,
    gateway: GatewayUrl = None,
    api_key_file: ApiKeyFile = None,
    as_json: AsJsonText = False,
) -> None:
    """Print a link to one object, for use without the API key.

    The link is a secret: anyone who has it can read the object, or upload it. It ends when it
    expires or when the API key is rotated; a link to encrypted bytes ends only when it expires.
    """
    if inline + ciphertext + put > 1:
        raise typer.BadParameter("--inline, --ciphertext and --put cannot be used together")
    if put != (max_bytes is not None) or (content_type is not None and not put):
        raise typer.BadParameter(
            "--put requires --max-bytes, and --max-bytes and --content-type require --put"
        )
    max_s = CIPHERTEXT_LINK_MAX_S if ciphertext else LINK_MAX_S
    if expires_s is not None and not 1 <= expires_s <= max_s:
        longest = "15m" if ciphertext else "7d"
        raise typer.BadParameter(f"--expires must be from 1s to {longest}")
    access = gateway_access(project, gateway, api_key_file, otherwise="")

    async def make_link() -> Link | UploadLink | CiphertextLink:
        async with gateway_client(access) as client:
            if ciphertext:
                return await client.ciphertext_link(project, key, expires_s=expires_s or max_s)
            valid_s = expires_s or _EXPIRES_S
            if max_bytes is None:
                return await client.link(project, key, expires_s=valid_s, inline=inline)
            return await client.upload_link(
                project, key, max_bytes=max_bytes, content_type=content_type, expires_s=valid_s
            )

    made = asyncio.run(make_link())
    until = to_seconds(made.expires_at)
    if as_json:
        more = {"metadata": dict(made.metadata)} if isinstance(made, CiphertextLink) else {}
        print_json({"url": made.url, "expires_at": until} | more)
    else:
        print_line(made.url)
        note(f"valid until {until}")
