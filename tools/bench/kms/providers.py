"""The providers of master keys that the bench measures, each with the same key (SPEC 2.2).

Each provider's key is the PRK of one master key, so that one bucket can be served by any of them,
and by that master key itself. Servers are private and throwaway.
"""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from keyturn.crypto import master_prk, to_base64
from tools.bench.processes import BenchError, printed
from tools.servers import OpenBao, SoftHsm
from tools.servers.moto_kms import MotoKms
from tools.servers.packages import MissingPackagesError
from tools.servers.softhsm import MODULE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from tools.harness.deployment import Deployment

ProviderName = Literal["local", "pkcs11", "awskms", "vault"]
PROVIDERS: Final[tuple[ProviderName, ...]] = ("local", "pkcs11", "awskms", "vault")
PROCESS: Final = "tools.bench.kms.provider_process"
MASTER_KEY: Final = "m1"
_KEY: Final = "keyturn-m1"
_TOKEN_TTL: Final = "24h"


@dataclass(frozen=True)
class Provider:
    """A master key as a process finds it.

    Attributes:
        name: Which provider.
        key: The key's value in `KEYTURN_MASTER_KEYS`: a URI, or the bytes in base64.
        env: What else a process needs to use the key, with the prefix of Keyturn's settings.
    """

    name: ProviderName
    key: str = field(repr=False)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)

    def settings(
        self, name: str = MASTER_KEY, others: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """The settings of a process that knows this key by an id, and `others` by theirs."""
        keys = {**(others or {}), name: self.key}
        return {**self.env, "KEYTURN_MASTER_KEYS": json.dumps(keys)}


def local(master_key: bytes) -> Provider:
    """The master key itself, in the settings."""
    return Provider("local", to_base64(master_key))


def worker_env(deployment: Deployment, provider: Provider, **more: str) -> dict[str, str]:
    """The environment of a worker whose master key the provider holds; `more` without prefix."""
    return {**deployment.worker_env(**more), **provider.settings()}


@asynccontextmanager
async def open_provider(name: ProviderName, master_key: bytes) -> AsyncIterator[Provider]:
    """A provider that holds a master key's PRK, until the block ends.

    Raises:
        BenchError: it cannot be installed here, or did not accept the key.
        ServerError: it did not start.
    """
    try:
        async with AsyncExitStack() as stack:
            yield await OPENING[name](stack, master_key)
    except MissingPackagesError as exc:
        raise BenchError(str(exc)) from exc


async def _local(stack: AsyncExitStack, master_key: bytes) -> Provider:
    del stack
    return local(master_key)


async def _pkcs11(stack: AsyncExitStack, master_key: bytes) -> Provider:
    hsm = stack.enter_context(SoftHsm())
    # SoftHSM in the process that uses it, without the socket by which tests make it fail.
    env = {**hsm.env, **hsm.direct_env, "KEYTURN_PKCS11_MODULE": str(MODULE)}
    provider = Provider("pkcs11", hsm.uri(_KEY), env)
    await _import(provider, env, master_key)
    return provider


async def _awskms(stack: AsyncExitStack, master_key: bytes) -> Provider:
    kms = stack.enter_context(MotoKms(master_prk(master_key).reveal()))
    return Provider("awskms", kms.uri, kms.env)


async def _vault(stack: AsyncExitStack, master_key: bytes) -> Provider:
    server = OpenBao.running()
    stack.callback(server.close)
    uri = server.uri(_KEY)
    await _import(Provider("vault", uri), server.environment(), master_key)
    token = server.make_token(server.create_policy(_KEY), _TOKEN_TTL)
    return Provider("vault", uri, server.environment(token))


OPENING: Final[dict[ProviderName, Callable[[AsyncExitStack, bytes], Awaitable[Provider]]]] = {
    "local": _local,
    "pkcs11": _pkcs11,
    "awskms": _awskms,
    "vault": _vault,
}


async def _import(provider: Provider, env: Mapping[str, str], master_key: bytes) -> None:
    """Put the PRK into the provider, as `keyturn keys import` does."""
    given = {**provider.settings(), **env}
    prk = to_base64(master_prk(master_key).reveal())
    await printed(given, PROCESS, "import", stdin_text=prk)
