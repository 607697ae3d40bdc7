"""Requests to Vault or OpenBao with a token that it accepts (SPEC 2.2)."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from keyturn.errors import KmsUnavailableError
from keyturn_workers.master_keys.vault_credentials import open_auth
from keyturn_workers.master_keys.vault_http import VaultHttp, VaultResponse
from keyturn_workers.settings import KmsSettings

_FORBIDDEN: Final = 403


class VaultSession:
    """Connections to one server, and how to authenticate there. Contacts nothing when made.

    Args:
        address: The server's URL without a path.
        settings: How to authenticate, and the limits.
        timeout_s: Another limit than `KMS_TIMEOUT_S`.

    Raises:
        SettingsError: not exactly one way to authenticate is set, or a setting is malformed.
    """

    def __init__(
        self, address: str, settings: KmsSettings, *, timeout_s: float | None = None
    ) -> None:
        self._timeout_s = timeout_s or settings.kms_timeout_s
        self._http = VaultHttp(address, settings)
        self._auth = open_auth(self._http, settings)

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        repeat: bool = True,
    ) -> VaultResponse:
        """Send a request; after a 403 once more, if there is another token.

        The time limit bounds all of it, logins included. Other arguments: as `VaultHttp.call`.

        Raises:
            KmsUnavailableError: no response in time, or the token is refused.
        """
        async with self._in_time():
            token = await self._auth.token()
            response = await self._http.call(method, path, token=token, body=body, repeat=repeat)
            if response.status == _FORBIDDEN:
                other = await self._auth.replace(token)
                if other is not None:
                    token = other
                    response = await self._http.call(
                        method, path, token=token, body=body, repeat=repeat
                    )
        if response.status == _FORBIDDEN:
            raise self._auth.refused(
                token, f"Vault refuses the token: it is expired or revoked, or may not use {path}"
            )
        self._auth.accepted()
        return response

    async def call_once(self, method: str, path: str) -> VaultResponse:
        """Send a request of which a 403 may be the answer; it says nothing about the token.

        Raises:
            KmsUnavailableError: as `call`.
        """
        async with self._in_time():
            return await self._http.call(method, path, token=await self._auth.token())

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError:
            raise KmsUnavailableError(f"Vault did not respond in {self._timeout_s:g} s") from None
