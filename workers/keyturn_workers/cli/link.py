"""`keyturn link`: a URL that opens one object without the API key (SPEC 9.3, 14).

Standard output gets only the URL, so that it can go into a pipe or a file. The expiry goes to
standard error.
"""

import asyncio
from datetime import datetime
from typing import Annotated, Any, Final

import typer
from pydantic import SecretStr

from keyturn.gateway import CiphertextLink, Link
from keyturn.gateway.links import CIPHERTEXT_LINK_MAX_S, LINK_MAX_S
from keyturn_workers.cli.api_keys import read_api_key
from keyturn_workers.cli.arguments import ApiKeyFile, AsJson, GatewayUrl, ObjectKey, Project
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.gateway_client import configured_gateway, gateway_client
from keyturn_workers.cli.moments import DURATION_FORM, parse_duration_s
from keyturn_workers.cli.output import print_json, print_line

_EXPIRES_S: Final = 3600


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
    gateway: GatewayUrl = None,
    api_key_file: ApiKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Print a link that opens one object without the API key.

    The link is a secret: anyone who has it can read the object. It ends when it expires or
    when the API key is rotated; a link to encrypted bytes ends only when it expires. Needs a
    gateway.
    """
    if inline and ciphertext:
        raise typer.BadParameter("--inline and --ciphertext cannot be used together")
    max_s = CIPHERTEXT_LINK_MAX_S if ciphertext else LINK_MAX_S
    if expires_s is not None and not 1 <= expires_s <= max_s:
        longest = "15m" if ciphertext else "7d"
        raise typer.BadParameter(f"--expires must be from 1s to {longest}")
    url = configured_gateway(gateway)
    if url is None:
        raise typer.BadParameter("no gateway: use --gateway or set KEYTURN_GATEWAY_URL")
    api_key = read_api_key(api_key_file, project, confirm=False)
    if ciphertext:
        made = asyncio.run(_ciphertext_link(url, api_key, project, key, expires_s or max_s))
        _print(made.url, made.expires_at, {"metadata": dict(made.metadata)}, as_json=as_json)
        return
    given = asyncio.run(_link(url, api_key, project, key, expires_s or _EXPIRES_S, inline=inline))
    _print(given.url, given.expires_at, {}, as_json=as_json)


async def _link(
    url: str, api_key: SecretStr, project: str, key: str, expires_s: int, *, inline: bool
) -> Link:
    async with gateway_client(url, api_key) as client:
        return await client.link(project, key, expires_s=expires_s, inline=inline)


async def _ciphertext_link(
    url: str, api_key: SecretStr, project: str, key: str, expires_s: int
) -> CiphertextLink:
    async with gateway_client(url, api_key) as client:
        return await client.ciphertext_link(project, key, expires_s=expires_s)


def _print(url: str, expires_at: datetime, more: dict[str, Any], *, as_json: bool) -> None:
    until = expires_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    if as_json:
        print_json({"url": url, "expires_at": until} | more)
    else:
        print_line(url)
        note(f"valid until {until}")
