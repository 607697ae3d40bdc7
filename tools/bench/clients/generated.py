"""aioboto3: with its defaults, and tuned as far as it goes by its settings.

Tuned: no checksum trailers, no second look at parameters, one attempt, and the answer of
the endpoint's rules remembered for each operation and bucket (botocore's own cache takes
the key for a part of the question, and so nearly always misses).
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aioboto3
from aiobotocore.config import AioConfig

from tools.bench.bare import METADATA
from tools.bench.clients.asking import BODY, CONNECTIONS, CONTENT_TYPE, RANGE_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.bench.clients.asking import Client, Place


class Generated:
    """An aioboto3 client."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    async def put(self, key: str) -> str:
        answer = await self._client.put_object(
            Bucket=self._bucket,
            Key=key,
            Body=BODY,
            ContentType=CONTENT_TYPE,
            Metadata=METADATA,
            IfNoneMatch="*",
        )
        return str(answer["ETag"]).strip('"')

    async def get(self, key: str) -> None:
        answer = await self._client.get_object(
            Bucket=self._bucket, Key=key, Range=f"bytes=0-{RANGE_BYTES - 1}"
        )
        async with answer["Body"] as body:
            await body.read()

    async def head(self, key: str) -> None:
        await self._client.head_object(Bucket=self._bucket, Key=key)

    async def copy(self, key: str, etag: str) -> None:
        await self._client.copy_object(
            Bucket=self._bucket,
            Key=key,
            CopySource={"Bucket": self._bucket, "Key": key},
            CopySourceIfMatch=etag,
            MetadataDirective="REPLACE",
            ContentType=CONTENT_TYPE,
            Metadata=METADATA,
        )


def _opened(place: Place, config: AioConfig) -> Any:
    return aioboto3.Session().client(
        "s3",
        endpoint_url=place.endpoint_url,
        region_name=place.region,
        aws_access_key_id=place.access_key_id,
        aws_secret_access_key=place.secret_access_key,
        config=config,
    )


@asynccontextmanager
async def default(place: Place) -> AsyncIterator[Client]:
    """Defaults, but for a pool that the concurrency fits into."""
    async with _opened(place, AioConfig(max_pool_connections=CONNECTIONS)) as client:
        yield Generated(client, place.bucket)


@asynccontextmanager
async def tuned(place: Place) -> AsyncIterator[Client]:
    """All that settings give, and the endpoint's rules asked once."""
    config = AioConfig(
        max_pool_connections=CONNECTIONS,
        parameter_validation=False,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"total_max_attempts": 1, "mode": "standard"},
        signature_version="s3v4",
        s3={"addressing_style": "path"},
    )
    async with _opened(place, config) as client:
        _remember_endpoints(client)
        yield Generated(client, place.bucket)


def _remember_endpoints(client: Any) -> None:
    resolver = client._ruleset_resolver
    ask = resolver.construct_endpoint
    known: dict[tuple[str, str | None], Any] = {}

    async def construct_endpoint(operation_model: Any, call_args: Any, request_context: Any) -> Any:
        question = (operation_model.name, call_args.get("Bucket"))
        if question not in known:
            known[question] = await ask(operation_model, call_args, request_context)
        return known[question]

    resolver.construct_endpoint = construct_endpoint
