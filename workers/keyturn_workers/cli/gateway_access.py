"""Access to a project's objects through a gateway, with only the API key (SPEC 9, 14).

Commands that read objects use a gateway, unless `--as-operator` makes them read the bucket.
"""

import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import typer
from pydantic import SecretStr

from keyturn.errors import SettingsError, UnencryptedGatewayWarning
from keyturn.gateway.client import Client
from keyturn.gateway.transport import is_unencrypted
from keyturn.settings import GatewayClientSettings
from keyturn.tls import GATEWAY, client_context
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.secrets import read_api_key
from keyturn_workers.cli.settings import GatewayUrlSettings

_OR_AS_OPERATOR: Final = ", or read the bucket with --as-operator"


class GatewayAccess(NamedTuple):
    """The URL of a gateway, and the API key of the project."""

    url: str
    api_key: SecretStr


def gateway_access(
    project: str,
    gateway: str | None,
    api_key_file: Path | None,
    *,
    otherwise: str = _OR_AS_OPERATOR,
) -> GatewayAccess:
    """Return the access of the options or the settings; asks for the API key if needed.

    `otherwise` says what works without a gateway: it ends the error if there is none.

    Raises:
        SettingsError: there is no gateway, or the setting is not a gateway's URL.
        typer.BadParameter: there is no API key, or it is malformed.
    """
    url = gateway or GatewayUrlSettings.read().gateway_url
    if url is None:
        raise SettingsError(f"KEYTURN_GATEWAY_URL is missing: set it or use --gateway{otherwise}")
    return GatewayAccess(url, read_api_key(api_key_file, project, confirm=False))


def refuse_gateway_options(gateway: str | None, api_key_file: Path | None) -> None:
    """Refuse the gateway's options next to `--as-operator`.

    Raises:
        typer.BadParameter: names the first one given.
    """
    for name, value in (("--api-key-file", api_key_file), ("--gateway", gateway)):
        if value is not None:
            raise typer.BadParameter(f"--as-operator and {name} cannot be used together")


@asynccontextmanager
async def gateway_client(access: GatewayAccess) -> AsyncIterator[Client]:
    """Yield a client; print one line, not a warning, if the API key is sent unencrypted."""
    if is_unencrypted(access.url):
        note("the API key is sent to the gateway unencrypted; use https://")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnencryptedGatewayWarning)  # see the note above
        async with Client.connect(access.url, access.api_key, tls=_context()) as client:
            yield client


def _context() -> ssl.SSLContext | None:
    ca = GatewayClientSettings.read().gateway_ca_file
    # A redirect may lead to a storage with a certificate of a public authority.
    return None if ca is None else client_context(GATEWAY, ca, with_system=True)
