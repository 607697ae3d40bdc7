"""`keyturn download`: one object's plaintext, from the bucket or the gateway (SPEC 9.1, 14).

A file appears under its name only once the whole body has authenticated. Standard output
gets authenticated chunks as they come; there only the exit status tells of the end.
Through the gateway it is the gateway that authenticates, and that ends the connection
where it cannot: no access to the bucket is needed then, nor the pepper.
"""

import asyncio
import os
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Protocol

import typer
from pydantic import SecretStr

from keyturn.crypto import user_kek
from keyturn.errors import NoUsableWrapError
from keyturn.gateway import Client, UnencryptedGatewayWarning
from keyturn.gateway.transport import is_gateway_url, is_unencrypted
from keyturn.settings import S3Settings
from keyturn_workers.cli.arguments import ApiKeyFile, Key, Project, read_api_key
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.output import Gauge, gauge
from keyturn_workers.cli.settings import GatewayUrlSettings, ReaderSettings
from keyturn_workers.objects.download import Access, OperatorAccess, ProjectAccess, open_object
from keyturn_workers.objects.operator_keys import OperatorKeys
from keyturn_workers.settings import OperatorSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_STDOUT: Final = Path("-")


class _Opened(Protocol):
    """An object that is being read, whoever opens it."""

    @property
    def size_bytes(self) -> int | None:
        """Length of its plaintext, where it is told beforehand."""

    def chunks(self) -> "AsyncIterator[bytes]":
        """The plaintext; ends cleanly only where all of it authenticated."""


def _checked_gateway(value: str | None) -> str | None:
    if value is not None and not is_gateway_url(value):
        raise typer.BadParameter("reads http://host or https://host, and no more than a path")
    return value


def download(
    project: Project,
    key: Key,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File to write (mode 0600), or - for standard output. "
            "By default the key's last segment, in the current folder.",
        ),
    ] = None,
    as_operator: Annotated[
        bool,
        typer.Option("--as-operator", help="Open with KEYTURN_MASTER_KEYS, not the API key."),
    ] = False,
    gateway: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            callback=_checked_gateway,
            help="Read through the gateway there, with the API key and no S3 settings. "
            "Without it: KEYTURN_GATEWAY_URL, then straight from the bucket.",
        ),
    ] = None,
    api_key_file: ApiKeyFile = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Decrypt one object.

    Straight from the bucket, or through the gateway where one is named.
    """
    for name, value in (("--api-key-file", api_key_file), ("--gateway", gateway)):
        if as_operator and value is not None:
            raise typer.BadParameter(f"--as-operator and {name} exclude each other")
    target = _target(key, output, force=force)
    if not as_operator and (url := gateway or GatewayUrlSettings.read().gateway_url):
        api_key = read_api_key(api_key_file, project, twice=False)
        if is_unencrypted(url):
            note("the API key goes to the gateway unencrypted: use https://")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnencryptedGatewayWarning)  # a line above says it
            asyncio.run(_through_gateway(url, api_key, project, key, target))
        return
    settings: S3Settings
    if as_operator:
        settings = operator = OperatorSettings.read()
        access: Access = _operator(project, operator)
    else:
        settings = S3Settings.read()
        access = _project(project, api_key_file)
    asyncio.run(_download(settings, key, access, target))


def _target(key: str, output: Path | None, *, force: bool) -> Path | None:
    """The file to write, or None for standard output."""
    if output == _STDOUT:
        return None
    target = output if output is not None else Path(key.rpartition("/")[2])
    if target.exists() and not target.is_file():
        raise typer.BadParameter(f"{target} is no file")
    if target.exists() and not force:
        raise CommandError(f"{target} stands already; --force replaces it")
    return target


def _operator(project: str, settings: OperatorSettings) -> OperatorAccess:
    v0_master_key = ReaderSettings.read().v0_master_key
    v0 = None if v0_master_key is None else v0_master_key.get_secret_value()
    return OperatorAccess(project, OperatorKeys.derive(settings.master_keys, v0))


def _project(project: str, api_key_file: Path | None) -> ProjectAccess:
    pepper = ReaderSettings.read().pepper.get_secret_value()
    api_key = read_api_key(api_key_file, project, twice=False)
    return ProjectAccess(project, user_kek(api_key.get_secret_value(), project, pepper))


async def _download(settings: S3Settings, key: str, access: Access, target: Path | None) -> None:
    try:
        async with (
            open_bucket(settings, max_connections=2) as storage,
            open_object(storage, key, access) as opened,
        ):
            await _write(opened, key, target)
    except NoUsableWrapError as exc:
        if exc.detail or not isinstance(access, ProjectAccess):
            raise
        # What a person meets who holds an earlier key: nothing is wrong with the object then.
        raise NoUsableWrapError(
            "this API key does not open the object: an earlier one, or another project's?"
        ) from exc


async def _through_gateway(
    url: str, api_key: SecretStr, project: str, key: str, target: Path | None
) -> None:
    async with Client.connect(url, api_key) as client, client.open(project, key) as opened:
        await _write(opened, key, target)


async def _write(opened: _Opened, key: str, target: Path | None) -> None:
    with gauge(opened.size_bytes, wanted=target is not None) as bar:
        bar.label(key)
        if target is None:
            await _to_stdout(opened)
        else:
            await _to_file(opened, target, bar)
    if target is not None:
        note(f"written to {target}")


async def _to_stdout(opened: _Opened) -> None:
    async for piece in opened.chunks():
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


async def _to_file(opened: _Opened, target: Path, bar: Gauge) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            async for piece in opened.chunks():
                await asyncio.to_thread(file.write, piece)
                bar.advance(len(piece))
        os.replace(temporary, target)  # noqa: PTH105  # a path as mkstemp gives it
    finally:
        # Gone already where it was renamed; else it holds part of a body that did not verify.
        with suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108  # as above
