"""Commands through a gateway: with only the API key, without bucket, broker or pepper (SPEC 9)."""

import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import SecretStr

from keyturn.gateway import Client, UnencryptedGatewayWarning
from keyturn.gateway.transport import is_unencrypted
from keyturn.tls import GATEWAY, client_context
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.settings import GatewayTlsSettings, GatewayUrlSettings


def configured_gateway(option: str | None) -> str | None:
    """The gateway's URL: of the option, else of the settings; None to work without one.

    Raises:
        SettingsError: the setting is not a gateway's URL.
    """
    return option or GatewayUrlSettings.read().gateway_url


def _context() -> ssl.SSLContext | None:
    ca = GatewayTlsSettings.read().gateway_ca_file
    # A redirect may lead to a storage with a certificate of a public authority.
    return None if ca is None else client_context(GATEWAY, ca, with_system=True)


@asynccontextmanager
async def gateway_client(url: str, api_key: SecretStr) -> AsyncIterator[Client]:
    """A client, with one line instead of a warning where the API key is sent unencrypted."""
    if is_unencrypted(url):
        note("the API key is sent to the gateway unencrypted; use https://")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnencryptedGatewayWarning)  # see the note above
        async with Client.connect(url, api_key, tls=_context()) as client:
            yield client
