"""Good messages of every kind: the committed examples, and fresh ones for a deployment.

What a mutation starts from decides how deep it gets: each of these passes every check.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from keyturn.crypto import new_api_key
from keyturn.messages import AUDIT_MODELS, EVENT_MODELS, WORKER_REPORT_MODELS
from keyturn.topology import CONTROL_REQUESTS, REQUESTS
from tools.generate.examples import API_KEY
from tools.generate.examples import PROJECT as EXAMPLES_PROJECT
from tools.harness import requests as rq
from tools.harness.canaries import MARKER
from tools.harness.deployment import Deployment
from tools.servers import S3Server

if TYPE_CHECKING:
    import random

Document = dict[str, Any]

_EXAMPLES: Final = Path(__file__).parents[2] / "contracts" / "examples"
_NEEDS_BROKER: Final = "dead_letters.requested"
_NO_S3: Final = S3Server(
    "http://127.0.0.1:1", "access", "s3-secret-of-the-fuzzer", "us-east-1", "given"
)
_INTAKE_SEED: Final = bytes(range(32))
"""The examples' own, so that their secrets open."""

PROJECT: Final = EXAMPLES_PROJECT
OTHER_PROJECT: Final = "beta"
"""Mutated control requests go here: good uploads to `PROJECT` must not meet their effects."""


def deployment(amqp_url: str = "", s3: S3Server | None = None, bucket: str = "") -> Deployment:
    """A deployment in which the committed examples open; its keys are always the same."""
    return Deployment(
        amqp_url or "amqp://fuzz:broker-password-of-the-fuzzer@127.0.0.1:1/",
        s3 or _NO_S3,
        bucket or "bucket",
        master_key=bytes([11]) * 32,
        intake_seed=_INTAKE_SEED,
        event_seed=bytes([12]) * 32,
        publisher_seed=bytes([13]) * 32,
        narrow_seed=bytes([14]) * 32,
        api_key=API_KEY,
    )


@dataclass
class Pool:
    """Good requests by queue, what was staged for them, and every secret within them."""

    uploads: list[Document] = field(default_factory=list)
    controls: list[Document] = field(default_factory=list)
    staged: dict[str, bytes] = field(default_factory=dict)
    secrets: dict[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def all(self) -> list[Document]:
        return self.uploads + self.controls


def pool(of: Deployment, rng: random.Random, *, examples: bool = True, fresh: int = 24) -> Pool:
    """Examples, and about `fresh` requests of each queue."""
    made = Pool()
    if examples:
        add_examples(made)
    for number in range(fresh):
        _add_upload(made, of, rng, number)
    for number in range(max(fresh // 6, 1)):
        _add_controls(made, of, number)
    return made


def add_examples(made: Pool) -> None:
    for name in REQUESTS:
        # Moving dead letters needs a broker: without one, no delivery of such a request ends.
        for example in [] if name == _NEEDS_BROKER else _valid(name):
            document = example | {"requested_at": rq.now()}
            (made.controls if name in CONTROL_REQUESTS else made.uploads).append(document)


def _valid(name: str) -> list[Document]:
    """The committed examples of one type that are valid."""
    examples: dict[str, Document] = json.loads((_EXAMPLES / f"{name}.json").read_text("utf-8"))
    return list(examples["valid"].values())


def _add_upload(made: Pool, of: Deployment, rng: random.Random, number: int) -> None:
    size = rng.choice((0, 1, 100, 4096, 20_000))
    staged = number % 6 == 5
    upload = rq.upload(of, PROJECT, f"f/{rq.new_id()}", MARKER + rng.randbytes(size), staged=staged)
    if number % 2:
        upload.document |= {"content_type": "text/plain", "metadata": {"author": "kim", "n": "ü"}}
    if staged:
        made.staged[f".keyturn/staging/api/{upload.upload_id}"] = upload.sealed_body
    made.secrets[f"transport key {number}"] = upload.transport_key
    if number % 3:
        made.secrets[f"session secret {number}"] = rq.put_under_a_session(of, upload)
    made.uploads.append(upload.document)


def _add_controls(made: Pool, of: Deployment, number: int) -> None:
    project = f"p-{rq.new_id()[:8]}"
    made.controls += [
        rq.enroll(of, project),
        rq.enroll(of, project, plaintext="allowed", adopt=True),
        rq.rotation(of, OTHER_PROJECT, new_api_key()),
        rq.rotation(of, OTHER_PROJECT, new_api_key(), expected_generation=number + 1),
        rq.sweep(OTHER_PROJECT, repair=True),
        rq.sweep("*", master_key="m1"),
        rq.delete(OTHER_PROJECT, f"gone/{number}"),
        _delete_many(OTHER_PROJECT, f"gone/{number}", f"lot/{number}"),
    ]


def _delete_many(project: str, *keys: str) -> Document:
    document = rq.delete(project, "", keys=list(keys))
    del document["key"]
    return document


def on_streams() -> list[Document]:
    """The committed examples of all that readers of streams get."""
    return [
        example
        for name in (*EVENT_MODELS, *AUDIT_MODELS, *WORKER_REPORT_MODELS)
        for example in _valid(name)
    ]
