"""An independent reader: boto3 and the formats alone, none of the workers' code.

It tells what the bucket shows, and opens an object by one named key only.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
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


@dataclass(frozen=True)
class StoredObject:
    """What the bucket shows of one object."""

    body: bytes
    metadata: dict[str, str]
    content_type: str


def s3_client(deployment: Deployment) -> S3Client:
    """A plain boto3 client."""
    client: S3Client = boto3.client(
        "s3",
        endpoint_url=deployment.s3.endpoint_url,
        region_name=deployment.s3.region,
        aws_access_key_id=deployment.s3.access_key_id,
        aws_secret_access_key=deployment.s3.secret_access_key,
        config=Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    return client


def read_object(deployment: Deployment, project: str, key: str) -> StoredObject:
    """Read an object as anybody with the bucket would."""
    answer = s3_client(deployment).get_object(Bucket=deployment.bucket, Key=f"{project}/{key}")
    return StoredObject(answer["Body"].read(), answer["Metadata"], answer["ContentType"])


def list_keys(deployment: Deployment, prefix: str = "") -> list[str]:
    """All keys under a prefix."""
    pages = s3_client(deployment).get_paginator("list_objects_v2")
    found = pages.paginate(Bucket=deployment.bucket, Prefix=prefix)
    return [row["Key"] for page in found for row in page.get("Contents", [])]


def list_multipart_uploads(deployment: Deployment) -> list[Any]:
    """All multipart uploads that are open."""
    answer = s3_client(deployment).list_multipart_uploads(Bucket=deployment.bucket)
    return list(answer.get("Uploads", []))


def decrypt(
    deployment: Deployment, project: str, key: str, by: str, *, api_key: str | None = None
) -> bytes:
    """The plaintext of an object by one key: `by` is "user" or "admin". Raises if it fails."""
    stored = read_object(deployment, project, key)
    return open_sealed(
        _data_key(deployment, project, key, by, stored, api_key), BODY_CONTEXT, stored.body
    )


def data_key(deployment: Deployment, project: str, key: str) -> bytes:
    """An object's data key, by the operator's wrap: to look for where it must not be."""
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
