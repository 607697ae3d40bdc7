"""Starts and ends moto's S3 and its AWS KMS, each in a separate process.

moto's S3 is the quick storage of the demo and of functional tests (SPEC 10). This module does not
import moto, which takes a second. Tests of races must use a real server instead.
"""

from __future__ import annotations

import base64
import json
import secrets
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import botocore.session

from tools.servers.process import PrivateServer
from tools.servers.s3 import S3Server

if TYPE_CHECKING:
    from collections.abc import Iterator


class MotoServer(PrivateServer):
    """S3; its data is lost when it ends."""

    def __init__(self) -> None:
        super().__init__("moto")
        self.server = S3Server.private(self._port, "moto")

    def start(self) -> S3Server:
        """As `PrivateServer.start`; returns where it is."""
        self._launch_module("moto", "tools.servers.moto_server")
        return self.server


_REGION = "eu-central-1"
_ACCOUNT = "123456789012"


class MotoKms(PrivateServer):
    """AWS KMS with one HMAC_256 key, which keeps its id and key material over restarts.

    moto keeps keys in memory. This key is created again at each start, so that the server can be
    stopped for a while, as a KMS that is out of reach. Keys created by `new_key` are lost.

    Args:
        material: The key material, 32 bytes: the PRK of a master key, for known answers.
    """

    def __init__(self, material: bytes | None = None) -> None:
        super().__init__("moto-kms")
        self._material = material or secrets.token_bytes(32)
        self._access_key_id = f"KT{secrets.token_hex(9).upper()}"
        self.arn = f"arn:aws:kms:{_REGION}:{_ACCOUNT}:key/{uuid.uuid4()}"
        self.endpoint_url = f"http://127.0.0.1:{self._port}"

    @property
    def uri(self) -> str:
        """The key, as in `KEYTURN_MASTER_KEYS`."""
        return f"awskms:{self.arn}"

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to use the key: the endpoint, and credentials of the AWS chain."""
        return {
            "KEYTURN_AWS_KMS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self._access_key_id,
            "AWS_SECRET_ACCESS_KEY": "of no importance: moto verifies no signature",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def refused_env(self) -> dict[str, str]:
        """The same with credentials that have expired."""
        return {**self.env, "AWS_ACCESS_KEY_ID": "EXPIRED"}

    def start(self) -> None:
        """As `PrivateServer.start`, on the same port each time."""
        key = {"arn": self.arn, "material": base64.b64encode(self._material).decode()}
        self._launch_module(
            "moto's KMS",
            "tools.servers.moto_kms_server",
            MOTO_KMS_KEY=json.dumps(key),
            MOTO_KMS_ACCESS_KEY_ID=self._access_key_id,
        )

    def new_key(self, **parameters: str) -> str:
        """Create a further key and return its URI; `CreateKey`'s parameters, an HMAC_256 key."""
        settings = {"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC", **parameters}
        with self.client() as kms:
            return f"awskms:{kms.create_key(**settings)['KeyMetadata']['Arn']}"

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A client to change keys with, as their administrator."""
        client = botocore.session.get_session().create_client(
            "kms",
            region_name=_REGION,
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self._access_key_id,
            aws_secret_access_key="none",
        )
        try:
            yield client
        finally:
            client.close()
