"""What the tests of the gateway share: a running process, and objects made by hand."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keyturn.identifiers import object_s3_key
from tools.harness.canaries import MARKER, Canaries

if TYPE_CHECKING:
    from tools.harness.bucket import Bucket, HandmadeObject
    from tools.harness.deployment import Deployment
    from tools.harness.http import Client
    from tools.harness.process import GatewayProcess
    from tools.harness.worker_under_test import WorkerUnderTest

OTHER_KEY = "other-key-" + "o" * 33
CHUNK = 16 * 1024
SEALED_CHUNK = CHUNK + 16
HEADER = 56


@dataclass(frozen=True)
class Scene:
    """A running gateway, its bucket, and a client with the deployment's API key."""

    deployment: Deployment
    bucket: Bucket
    process: GatewayProcess
    client: Client
    # What tests got besides the deployment's own secrets, such as links.
    given: dict[str, bytes] = field(default_factory=dict, repr=False)

    def put(
        self, key: str, plaintext: bytes, *, project: str = "acme", **more: Any
    ) -> HandmadeObject:
        """Put a good object made by hand; `more` are arguments of boto3's `put_object`."""
        made = self.bucket.made(project, key, plaintext)
        self.bucket.put_made(project, made, **more)
        return made

    def replace(
        self,
        made: HandmadeObject,
        *,
        body: bytes | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        """Put a changed form of an object in its place, as a bucket writer could."""
        self.bucket.put(
            object_s3_key("acme", made.key),
            made.body if body is None else body,
            made.metadata if metadata is None else metadata,
        )


@dataclass(frozen=True)
class Live:
    """A gateway with a broker and a worker behind it."""

    scene: Scene
    served: WorkerUnderTest


def plain(size_bytes: int, seed: int = 0) -> bytes:
    """A text that no log may show, different everywhere, and the same each time."""
    dice = random.Random(seed)  # noqa: S311  # only makes a plaintext
    return (MARKER + dice.randbytes(size_bytes // 2).hex().encode())[:size_bytes]


def canaries(deployment: Deployment) -> Canaries:
    """All that the gateway's log may not hold."""
    found = Canaries.of(deployment, "acme", "other")
    found.secrets["gateway's seed"] = deployment.gateway_seed
    found.secrets["the other project's API key"] = OTHER_KEY.encode()
    if deployment.pepper:
        found.secrets["pepper"] = deployment.pepper.encode()
    return found
