"""What a console has to show: a deployment that has lived a little (SPEC 16.2).

Real requests to real workers: projects enrolled, objects stored, refused and deleted, a key
rotated, sweeps that end clean and sweeps with failures, among them objects with hostile names that
were damaged in the bucket.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyturn.crypto import new_api_key
from tools.harness import hostile
from tools.harness import requests as rq
from tools.harness.bucket import Bucket
from tools.harness.scene import wait_for_end
from tools.harness.wire import SignedPublisher

if TYPE_CHECKING:
    from tools.harness.bucket import HandmadeObject
    from tools.harness.deployment import Deployment
    from tools.harness.wire import Wire

PROJECTS: Final = ("acme", "globex", "initech")
"""`acme` was rotated, `globex` has damaged objects, `initech` is empty."""

_OBJECTS: Final = 40


@dataclass(frozen=True)
class History:
    """The ids of what happened."""

    rotation_id: str
    clean_sweep_id: str
    failed_sweep_id: str
    new_api_key: str


async def live(deployment: Deployment, wire: Wire) -> History:
    """Let the deployment's workers, which must be running, do all of it."""
    publisher = SignedPublisher(deployment, wire)
    await publisher.enroll(*PROJECTS)
    await publisher.upload("acme", [f"reports/{number:03}.pdf" for number in range(_OBJECTS)])
    await publisher.upload("globex", [f"orders/{number:03}.json" for number in range(_OBJECTS)])
    await asyncio.to_thread(damage, deployment, "globex")
    # A sweep with failures tries them again for a while, so it begins first.
    failed, clean = rq.sweep("globex"), rq.sweep("initech")
    for each in (failed, clean):
        await publisher.publish(each)
    await _be_refused(publisher)
    api_key = new_api_key()
    rotation = await publisher.publish(rq.rotation(deployment, "acme", api_key))
    await wait_for_end(wire, rotation, "rotation.completed")
    for each in (failed, clean):
        await wait_for_end(wire, each["sweep_id"], "sweep.completed")
    return History(rotation, clean["sweep_id"], failed["sweep_id"], api_key)


def damage(deployment: Deployment, project: str) -> None:
    """Put objects with hostile names that no sweep can bring to the desired state."""
    bucket = Bucket(deployment)
    for number, object_key in enumerate(hostile.OBJECT_KEYS):
        made = bucket.made(project, object_key)
        _DAMAGES[number % len(_DAMAGES)](made)
        bucket.put_made(project, made)


async def _be_refused(publisher: SignedPublisher) -> None:
    """Refusals, which leave dead letters; the details of some repeat hostile object keys."""
    deployment = publisher.deployment
    taken = [("acme", "reports/000.pdf"), *(("globex", key) for key in hostile.OBJECT_KEYS)]
    for project, object_key in taken:
        again = rq.upload(deployment, project, object_key, b"again").document
        again["metadata"] = {"author": hostile.SCRIPT, "note": hostile.BIDI}
        assert (await publisher.publish_and_wait(again))["type"] == "upload.rejected"
    early = rq.rotation(deployment, "acme", new_api_key(), expected_generation=7)
    assert (await publisher.publish_and_wait(early))["type"] == "rotation.rejected"
    gone = rq.delete("acme", "reports/001.pdf")
    assert (await publisher.publish_and_wait(gone))["type"] == "object.deleted"


def _unwrappable(made: HandmadeObject) -> None:
    made.metadata["enc-dek-user"] = made.metadata["enc-dek-admin"] = "AAAA" * 40


def _unknown_algorithm(made: HandmadeObject) -> None:
    # Metadata is ASCII in a header; markup in it is what a detail repeats.
    made.metadata["enc-algo"] = hostile.SCRIPT


def _stripped(made: HandmadeObject) -> None:
    del made.metadata["enc-algo"]


_DAMAGES: Final = (_unwrappable, _unknown_algorithm, _stripped)
