"""Starts and ends `tools.servers.moto_kms_server`: moto's AWS KMS in a separate process.

moto keeps keys in memory. This key is created again with the same id and key material at each
start, so that the server can be stopped for a while, as a KMS that is out of reach. Keys that were
created by `new_key` are lost.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import botocore.session

from tools.servers.process import (
    ServerProcess,
    accepts_tcp,
    free_port,
    remove_scratch,
    scratch_folder,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

_ROOT = Path(__file__).parents[2]
_READY_TIMEOUT_S = 60.0
_REGION = "eu-central-1"
_ACCOUNT = "123456789012"


class MotoKms:
    """The server with one HMAC_256 key, which keeps its id and key material over restarts.

    Args:
        material: The key material, 32 bytes: the PRK of a master key, for known answers.
    """

    def __init__(self, material: bytes | None = None) -> None:
        self._material = material or secrets.token_bytes(32)
        self._folder = scratch_folder("moto-kms")
        self._port = free_port()
        self._process: ServerProcess | None = None
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

    def start(self) -> Self:
        """Start it, and wait until it accepts connections.

        Raises:
            ServerError: it exited or was not ready in time.
        """
        key = {"arn": self.arn, "material": base64.b64encode(self._material).decode()}
        self._process = ServerProcess(
            [sys.executable, "-m", "tools.servers.moto_kms_server", "--port", str(self._port)],
            env={
                **os.environ,
                "TMPDIR": str(self._folder),
                "PYTHONPATH": str(_ROOT),
                "MOTO_KMS_KEY": json.dumps(key),
                "MOTO_KMS_ACCESS_KEY_ID": self._access_key_id,
            },
            scratch=self._folder,
            log=self._folder / "output.log",
            grace_s=0,
        )
        self._process.wait_until(
            lambda: accepts_tcp(self._port), what="moto's KMS", timeout_s=_READY_TIMEOUT_S
        )
        return self

    def stop(self) -> None:
        """End the process; `start` starts it again on the same port."""
        if self._process is not None:
            self._process.kill()
            self._process = None

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

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        remove_scratch(self._folder)
