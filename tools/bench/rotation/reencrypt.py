"""The baseline for a rotation: `python -m tools.bench.rotation.reencrypt KEY ONTO`.

Downloads an object, opens it, seals it under a fresh DEK, and uploads that, all streamed:
what rotation costs where the ciphertext is rewritten. It reads where the bucket is
from `KEYTURN_S3_…`, and the DEK in hex from standard input; it prints seconds of wall and
CPU time. Plain boto3, whose own threads upload the parts.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from typing import IO, TYPE_CHECKING, Any, cast

import boto3
from botocore.config import Config

from keyturn.crypto import BODY_CONTEXT, HEADER_BYTES, Opener, Sealer, new_dek
from tools.bench.bare import METADATA

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_PIECE_BYTES = 2**20


class Resealed(io.RawIOBase):
    """A file of an object's body under another DEK, made as it is read."""

    def __init__(self, source: Any, dek: bytes, new: bytes) -> None:
        self._source = source
        self._opener = Opener(dek, BODY_CONTEXT, source.read(HEADER_BYTES))
        self._sealer = Sealer(new, BODY_CONTEXT)
        self._held = bytearray(self._sealer.header)
        self._over = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; nothing at the end."""
        while not self._over and (size < 0 or len(self._held) < size):
            if piece := self._source.read(_PIECE_BYTES):
                self._held += self._sealer.update(self._opener.update(piece))
            else:
                self._held += self._sealer.update(self._opener.finish()) + self._sealer.finish()
                self._over = True
        count = len(self._held) if size < 0 else min(size, len(self._held))
        given = bytes(self._held[:count])
        del self._held[:count]
        return given


def _client() -> S3Client:
    environ = os.environ
    client: S3Client = boto3.client(
        "s3",
        endpoint_url=environ["KEYTURN_S3_ENDPOINT_URL"],
        region_name=environ["KEYTURN_S3_REGION"],
        aws_access_key_id=environ["KEYTURN_S3_ACCESS_KEY_ID"],
        aws_secret_access_key=environ["KEYTURN_S3_SECRET_ACCESS_KEY"],
        config=Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    return client


def main() -> None:
    """Do it once, on an open connection."""
    key, onto = sys.argv[1:]
    dek, bucket = bytes.fromhex(sys.stdin.readline()), os.environ["KEYTURN_S3_BUCKET"]
    client = _client()
    client.head_object(Bucket=bucket, Key=key)
    began, cpu = time.perf_counter(), time.process_time()
    body = client.get_object(Bucket=bucket, Key=key)["Body"]
    source = cast("IO[bytes]", Resealed(body, dek, new_dek()))
    client.upload_fileobj(source, bucket, onto, ExtraArgs={"Metadata": METADATA})
    took = {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu, "done": 1}
    print(json.dumps(took))


if __name__ == "__main__":
    main()
