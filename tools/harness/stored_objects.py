"""Reads stored objects with boto3 and the specified formats only, without the workers' code.

It shows what the bucket contains, and decrypts an object with one named key.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from keyturn.crypto import (
    BODY_CONTEXT,
    Secret,
    admin_kek,
    open_sealed,
    unwrap_dek,
    user_kek,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from tools.harness.deployment import Deployment
    from tools.servers import S3Server


@dataclass(frozen=True)
class StoredObject:
    """An object as the bucket shows it."""

    body: bytes
    metadata: dict[str, str]
    content_type: str


def s3_client(deployment: Deployment, *, signature_version: str | None = None) -> S3Client:
    """A plain boto3 client, which signs URLs by version 2 unless another one is given."""
    return _client(deployment.s3, signature_version)


@lru_cache(maxsize=8)  # to create one takes far longer than its request
def _client(server: S3Server, signature_version: str | None) -> S3Client:
    client: S3Client = boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name=server.region,
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
        config=Config(
            signature_version=signature_version,
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    return client


def read_object(deployment: Deployment, project: str, key: str) -> StoredObject:
    """Read an object as any reader of the bucket can."""
    answer = s3_client(deployment).get_object(Bucket=deployment.bucket, Key=f"{project}/{key}")
    return StoredObject(answer["Body"].read(), answer["Metadata"], answer["ContentType"])


def list_keys(deployment: Deployment, prefix: str = "") -> list[str]:
    """All keys under a prefix."""
    pages = s3_client(deployment).get_paginator("list_objects_v2")
    found = pages.paginate(Bucket=deployment.bucket, Prefix=prefix)
    return [row["Key"] for page in found for row in page.get("Contents", [])]


def list_multipart_uploads(deployment: Deployment) -> list[Any]:
    """All open multipart uploads."""
    answer = s3_client(deployment).list_multipart_uploads(Bucket=deployment.bucket)
    return list(answer.get("Uploads", []))


def decrypt(
    deployment: Deployment, project: str, key: str, by: str, *, api_key: str | None = None
) -> bytes:
    """The plaintext, decrypted with one key: `by` is "user" or "admin"."""
    stored = read_object(deployment, project, key)
    return open_sealed(
        _data_key(deployment, project, key, by, stored, api_key), BODY_CONTEXT, stored.body
    )


def data_key(deployment: Deployment, project: str, key: str) -> bytes:
    """An object's DEK from the admin wrap, to search for it where it must not be."""
    return _data_key(deployment, project, key, "admin", read_object(deployment, project, key), None)


def _data_key(
    deployment: Deployment,
    project: str,
    key: str,
    by: str,
    stored: StoredObject,
    api_key: str | None,
) -> bytes:
    if by == "user":
        kek: Secret = user_kek(api_key or deployment.api_key, project)
    else:
        kek = admin_kek(deployment.master_key, project)
    label = re.fullmatch(r"(\d+):[0-9a-f]{16}", stored.metadata["enc-kek-user"])
    assert label is not None
    return unwrap_dek(
        kek,
        "user" if by == "user" else "admin",
        algorithm=stored.metadata["enc-algo"],
        project=project,
        object_key=key,
        generation=int(label[1]),
        wrap=base64.b64decode(stored.metadata[f"enc-dek-{by}"], validate=True),
    )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
