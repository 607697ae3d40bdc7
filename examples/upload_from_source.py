"""Have an object stored that is in a source's bucket already, and wait for the answer.

    python examples/upload_from_source.py acme reports/q3.pdf drop acme-drop in/reports/q3.pdf

The arguments: the project and the object key to which the source maps the object, the source's
name, its bucket, and the S3 key there.
"""

import asyncio
import os
import sys

import boto3

from keyturn.messages import SourceObject, UploadRejected, UploadStored
from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings


async def main(project: str, object_key: str, source: str, bucket: str, s3_key: str) -> int:
    # Credentials for the source's bucket: the standard AWS chain. No endpoint means AWS.
    s3 = boto3.client("s3", endpoint_url=os.environ.get("SOURCE_ENDPOINT_URL"))
    head = s3.head_object(Bucket=bucket, Key=s3_key)
    source_object = SourceObject(
        name=source,
        key=s3_key,
        etag=head["ETag"].strip('"'),
        version=head.get("VersionId"),
        size=head["ContentLength"],
    )
    async with Publisher.open(PublisherSettings.read()) as publisher:
        upload_id = await publisher.upload_from_source(project, object_key, source_object)
        event = await publisher.wait(upload_id, timeout_s=60)
    if isinstance(event, UploadStored):
        print(f"stored: {event.key}, {event.size} bytes, generation {event.generation}")
        return 0
    if isinstance(event, UploadRejected):
        print(f"refused: {event.code}: {event.detail}", file=sys.stderr)
    return 1


sys.exit(asyncio.run(main(*sys.argv[1:6])))
