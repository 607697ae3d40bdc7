"""Calls to AWS KMS: one client for each key, opened with the first call (SPEC 2.2, 11).

Credentials come from the standard AWS chain, not from the settings of the bucket. A refused
credential closes the client: the next attempt reads the chain again.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeAlias

from aiobotocore.config import AioConfig
from botocore.exceptions import ConnectionClosedError
from botocore.loaders import Loader, create_loader

from keyturn.botocore_http import VerifyingSession, verified_sessions
from keyturn.errors import KmsUnavailableError
from keyturn_workers.key_uris import AwsKmsUri
from keyturn_workers.master_keys.aws_errors import AwsFailure, describe_failure
from keyturn_workers.master_keys.backoff import RefusalBackoff
from keyturn_workers.master_keys.port import KmsRefusedError
from keyturn_workers.settings import KmsSettings

# botocore makes the methods of a client from its description of the service.
_Kms: TypeAlias = Any
_REQUEST_ID_MAX_CHARACTERS: Final = 128


@cache
def _data_loader() -> Loader:
    """Botocore's description of the service, read once per process: it takes a while."""
    loader: Loader = create_loader()
    for name in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model("kms", name)
    return loader


@dataclass(slots=True)
class _OpenClient:
    """A client, the calls that use it, and whether it closes with the last of them."""

    kms: _Kms
    closing: AsyncExitStack
    calls: int = 0
    retired: bool = False


class AwsKmsClient:
    """Sends requests about one key, each within `KMS_TIMEOUT_S`.

    Args:
        uri: The key.
        settings: The time limit, the size of the pool, and an endpoint other than AWS's own.
        backoff: Delays after a refusal.
    """

    def __init__(
        self, uri: AwsKmsUri, settings: KmsSettings, *, backoff: RefusalBackoff | None = None
    ) -> None:
        self._uri = uri
        self._settings = settings
        self._backoff = backoff or RefusalBackoff()
        self._opening = asyncio.Lock()
        self._open: _OpenClient | None = None

    async def call(self, operation: str, method: str, **parameters: object) -> dict[str, Any]:
        """Send one request, and return the parsed answer.

        Args:
            operation: As IAM names it, such as `GenerateMac`.
            method: As botocore names it, such as `generate_mac`.
            parameters: Of the request, without `KeyId`.

        Raises:
            KmsRefusedError: AWS answered, and gives no access.
            KmsUnavailableError: no usable answer.
        """
        admitted = self._backoff.admit()
        try:
            async with asyncio.timeout(self._settings.kms_timeout_s):
                answer = await self._send(method, parameters)
        except TimeoutError:
            text = f"AWS KMS did not answer within {self._settings.kms_timeout_s:g} s"
            raise KmsUnavailableError(text) from None
        except Exception as exc:  # noqa: BLE001  # a parser's errors have no common base
            failure = describe_failure(exc, operation)
            kind = KmsRefusedError if failure.refused else KmsUnavailableError
            await self._note(failure, admitted, kind(failure.text))
            # The cause can show the request with its session token.
            raise kind(failure.text) from None
        self._backoff.accepted()
        return answer

    async def aclose(self) -> None:
        """Close the client once its calls have ended. A later call opens another one."""
        opened, self._open = self._open, None
        if opened is not None:
            opened.retired = True
            await _close_if_idle(opened)

    async def _note(self, failure: AwsFailure, admitted: int, error: KmsUnavailableError) -> None:
        if failure.backs_off:
            self._backoff.refused(admitted, error)
        if failure.credentials:
            await self.aclose()

    async def _send(self, method: str, parameters: dict[str, object]) -> dict[str, Any]:
        async with self._borrow() as kms:
            send = getattr(kms, method)
            try:
                answer = await send(KeyId=self._uri.arn, **parameters)
            except ConnectionClosedError:
                # A pooled connection that the server closed meanwhile; every call may be repeated.
                answer = await send(KeyId=self._uri.arn, **parameters)
        return dict(answer)

    @asynccontextmanager
    async def _borrow(self) -> AsyncIterator[_Kms]:
        async with self._opening:
            if self._open is None:
                self._open = await self._connect()
            opened = self._open
            opened.calls += 1
        try:
            yield opened.kms
        finally:
            opened.calls -= 1
            await _close_if_idle(opened)

    async def _connect(self) -> _OpenClient:
        settings = self._settings
        config = AioConfig(
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=settings.kms_timeout_s,
            read_timeout=settings.kms_timeout_s,
            max_pool_connections=settings.kms_concurrency,
            tcp_keepalive=True,
            **_session_class(settings),
        )
        session = VerifyingSession()
        session.register_component("data_loader", await asyncio.to_thread(_data_loader))
        async with AsyncExitStack() as closing:
            kms = await closing.enter_async_context(
                session.create_client(
                    "kms",
                    region_name=self._uri.region,
                    endpoint_url=settings.aws_kms_endpoint_url,
                    config=config,
                )
            )
            return _OpenClient(kms, closing.pop_all())


def _session_class(settings: KmsSettings) -> dict[str, Any]:
    if (settings.aws_kms_endpoint_url or "").startswith("http://"):
        return {}
    return {"http_session_cls": verified_sessions()}


async def _close_if_idle(opened: _OpenClient) -> None:
    if opened.retired and not opened.calls:
        await opened.closing.aclose()


def request_id(answer: dict[str, Any]) -> str | None:
    """AWS's id of the request, as CloudTrail has it; None if it is not a short line."""
    metadata = answer.get("ResponseMetadata")
    value = metadata.get("RequestId") if isinstance(metadata, dict) else None
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        return None
    return value if 1 <= len(value) <= _REQUEST_ID_MAX_CHARACTERS else None
