"""A source for tests: a bucket on any server, its setting, requests for its objects (SPEC 17)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from keyturn.messages import SourceObject
from tools.harness import requests
from tools.servers import new_bucket
from tools.servers.s3 import sync_client

if TYPE_CHECKING:
    from tools.harness.deployment import Deployment
    from tools.servers import S3Server


@dataclass
class DropBucket:
    """A bucket that its owner writes to with a plain client; the source maps `in/{name}`."""

    server: S3Server
    name: str = "drop"
    project: str = "acme"
    versioned: bool = False
    fields: dict[str, Any] = field(default_factory=dict)
    bucket: str = field(init=False)

    def __post_init__(self) -> None:
        self.bucket = new_bucket(self.server, versioned=self.versioned)
        self.client = sync_client(self.server)

    def setting(self) -> dict[str, Any]:
        """The fields of the source in `SOURCES`."""
        return {
            "bucket": self.bucket,
            "prefix": "in/",
            "project": self.project,
            "key": "{name}",
            "endpoint_url": self.server.endpoint_url,
            "access_key_id": self.server.access_key_id,
            "secret_access_key": self.server.secret_access_key,
            "watch": False,
            **self.fields,
        }

    def put(self, key: str, body: bytes, **more: Any) -> SourceObject:
        """Write an object at `in/{key}`; returns what a request names: it may be gone already."""
        s3_key = f"in/{key}"
        answer = self.client.put_object(Bucket=self.bucket, Key=s3_key, Body=body, **more)
        return SourceObject(
            name=self.name,
            key=s3_key,
            etag=answer["ETag"].strip('"'),
            version=answer.get("VersionId"),
            size=len(body),
        )

    def read(self, key: str) -> bytes | None:
        """The body at `in/{key}`; None if there is none."""
        try:
            found = self.client.get_object(Bucket=self.bucket, Key=f"in/{key}")
        except ClientError as exc:
            if exc.response["Error"]["Code"] != "NoSuchKey":
                raise
            return None
        return found["Body"].read()

    def remove(self, key: str) -> None:
        """Delete the object at `in/{key}`, as its owner does."""
        self.client.delete_object(Bucket=self.bucket, Key=f"in/{key}")

    def request(self, deployment: Deployment, named: SourceObject, **more: Any) -> dict[str, Any]:
        """The request for this object, not signed yet."""
        return {
            "type": "upload.requested",
            "upload_id": named.upload_id(deployment.name),
            "project": self.project,
            "key": named.key.removeprefix("in/"),
            "requested_at": requests.now(),
            "body": {"source": named.model_dump(exclude_none=True)},
            **more,
        }


def sources_env(deployment: Deployment, *drops: DropBucket) -> dict[str, str]:
    """The settings of a worker with these sources, all of which the publisher `api` may name."""
    publishers: dict[str, Any] = deployment.publishers()
    publishers["api"]["sources"] = [drop.name for drop in drops]
    return {
        "SOURCES": json.dumps({drop.name: drop.setting() for drop in drops}),
        "PUBLISHERS": json.dumps(publishers),
    }
