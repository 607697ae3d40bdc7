"""Killed with SIGKILL at each point between taking a message and acknowledging it (SPEC 7.1).

Each case runs two real processes: one that dies at the point, and a plain worker that comes after
it. The table says what must exist after the crash, so that a case also proves where it happened.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pytest

from tools.harness import requests as rq
from tools.harness.scene import check_queues_empty, events_of, wait_until_drained
from tools.harness.wire import open_wire

if TYPE_CHECKING:
    from tools.harness.process import WorkerProcess
    from tools.harness.scene import Scene
    from tools.harness.wire import Wire

pytestmark = pytest.mark.servers

Kind = Literal["inline", "staged", "multipart"]
_SIZES: dict[Kind, int] = {"inline": 5_000, "staged": 6_000_000, "multipart": 12_000_000}
_PART_SIZE_BYTES = 5 * 1024 * 1024


@dataclass(frozen=True)
class Death:
    """One crash point, and whether the object and its event exist at that point."""

    kind: Kind
    point: str
    object_exists: bool
    event_published: bool = False

    def __str__(self) -> str:
        return f"{self.kind}-{self.point}"


def _deaths(kind: Kind, before: str, after_put: str, after_event: str) -> list[Death]:
    """A kind's points, in the order in which a worker comes by them."""
    return [
        *(Death(kind, point, object_exists=False) for point in before.split()),
        *(Death(kind, point, object_exists=True) for point in after_put.split()),
        *(
            Death(kind, point, object_exists=True, event_published=True)
            for point in after_event.split()
        ),
    ]


DEATHS = [
    *_deaths(
        "inline",
        "taken secret-opened keyring-read put-before",
        "put-after keyring-read-again event-before",
        "event-after ack-before",
    ),
    *_deaths(
        "staged",
        "taken secret-opened keyring-read put-before put-midway",
        "put-after keyring-read-again event-before",
        "event-after staged-delete-before staged-delete-after ack-before",
    ),
    *_deaths(
        "multipart",
        "multipart-begun part-stored completion-before",
        "completion-after event-before",
        "staged-delete-before ack-before",
    ),
]


@pytest.fixture
def death_scene(death: Death, request: pytest.FixtureRequest) -> Scene:
    """Multipart uploads are for servers whose completion is conditional, as moto's is."""
    name = "moto_scene" if death.kind == "multipart" else "scene"
    scene: Scene = request.getfixturevalue(name)
    return scene


@pytest.mark.parametrize("death", DEATHS, ids=str)
async def test_an_upload_survives_a_crash(death: Death, death_scene: Scene) -> None:
    """Stored once, opens with both keys, reported; nothing queued, dead, staged or incomplete."""
    scene = death_scene
    key = f"crashes/{death} ü.bin"
    settings = {"PART_SIZE_BYTES": str(_PART_SIZE_BYTES)}
    async with (
        scene.worker("upload", point=death.point, **settings) as dying,
        open_wire(scene.deployment) as wire,
    ):
        made = await scene.upload(
            wire, key, os.urandom(_SIZES[death.kind]), staged=death.kind != "inline"
        )
        assert await dying.ended() == -signal.SIGKILL
        first = scene.find_object(key)
        assert (first is not None) is death.object_exists
        if death.event_published:
            await wire.outcome(made.upload_id)
        assert bool(events_of(wire, made.upload_id)) is death.event_published
        async with scene.worker("upload", **settings) as plain:
            await _finished(plain, made.upload_id)
        await _check_told(wire, scene, key, made)
        await check_queues_empty(wire)
    last = scene.find_object(key)
    assert last is not None
    assert first is None or (first.body, first.metadata) == (last.body, last.metadata)
    scene.check_object(key, made.upload_id)
    scene.check_nothing_left()
    scene.check_logs()


@pytest.mark.parametrize("point", ["batch-before", "batch-after"])
async def test_uploads_survive_a_crash_at_a_batch_of_their_events(scene: Scene, point: str) -> None:
    """All of a batch is served again, and each upload is reported at least once."""
    async with open_wire(scene.deployment) as wire:
        made = [await scene.upload(wire, f"{point}/{number}", b"x") for number in range(60)]
        async with scene.worker("upload", point=point) as dying:
            assert await dying.ended() == -signal.SIGKILL
        async with scene.worker("upload") as plain:
            for upload in made:
                event = await wire.outcome(upload.upload_id)
                assert event["type"] == "upload.stored"
            # The dying worker may have published these events: they do not show that the other
            # one has got the requests.
            await wait_until_drained(wire)
            assert await plain.terminate() == 0
        await check_queues_empty(wire)
    for number, upload in enumerate(made):
        scene.check_object(f"{point}/{number}", upload.upload_id)
    scene.check_nothing_left()
    scene.check_logs()


async def _finished(plain: WorkerProcess, request_id: str) -> None:
    """The second worker acknowledged the second delivery, and ends well."""
    line = json.loads(await plain.logged(request_id))
    assert line["event"] in {"upload.stored", "project.enrolled", "refused"}
    assert line.get("again", True) is True
    assert await plain.terminate() == 0


async def _check_told(wire: Wire, scene: Scene, key: str, made: rq.Upload) -> None:
    await wire.outcome(made.upload_id)
    for event in events_of(wire, made.upload_id):
        assert event["type"] == "upload.stored"
        assert event["size"] == len(scene.plaintexts[key])
        assert (event["key"], event["generation"]) == (key, 1)


@pytest.mark.parametrize(
    ("point", "object_exists"),
    [
        ("taken", False),
        ("secret-opened", False),
        ("keyring-put-before", False),
        ("keyring-put-after", True),
        ("event-before", True),
        ("event-after", True),
        ("ack-before", True),
    ],
)
async def test_an_enrollment_survives_a_crash(
    scene: Scene, point: str, *, object_exists: bool
) -> None:
    """One keyring, never written twice, and reported with generation 1."""
    project = f"new-{point}"
    keyring = f"{project}.json"
    records = type(scene)(scene.deployment, ".keyturn/keyrings")
    document = rq.enroll(scene.deployment, project)
    async with (
        scene.worker("control", point=point) as dying,
        open_wire(scene.deployment) as wire,
    ):
        await scene.publish(wire, document)
        assert await dying.ended() == -signal.SIGKILL
        first = records.find_object(keyring)
        assert (first is not None) is object_exists
        async with scene.worker("all") as plain:
            await plain.logged(document["request_id"])
            await wire.outcome(document["request_id"])
            scene.project = project
            made = await scene.upload(wire, "after", b"enrolled")
            await wire.outcome(made.upload_id)
            assert await plain.terminate() == 0
        for event in events_of(wire, document["request_id"]):
            assert (event["type"], event["generation"]) == ("project.enrolled", 1)
        await check_queues_empty(wire)
    last = records.find_object(keyring)
    assert last is not None
    assert first is None or first.body == last.body
    scene.check_object("after", made.upload_id)
    scene.check_logs()


@pytest.mark.parametrize("point", ["letter-before", "letter-after", "event-after", "ack-before"])
async def test_a_rejection_survives_a_crash(scene: Scene, point: str) -> None:
    """There is a dead letter with its code, the event is published, and nothing is queued."""
    async with (
        scene.worker("upload", point=point) as dying,
        open_wire(scene.deployment) as wire,
    ):
        made = rq.upload(scene.deployment, scene.project, "refused", b"")
        made.document["sealed_key"]["intake_key"] = "unknown"
        await scene.publish(wire, made.document)
        assert await dying.ended() == -signal.SIGKILL
        async with scene.worker("upload") as plain:
            await _finished(plain, made.upload_id)
        event = await wire.outcome(made.upload_id)
        assert (event["type"], event["code"]) == ("upload.rejected", "unknown_intake_key")
        letter = await wire.take("keyturn.upload.dead")
        assert letter.headers["keyturn-code"] == "unknown_intake_key"
        assert letter.body == rq.encode(made.document)
        await check_queues_empty(wire, "keyturn.upload.dead")
    assert scene.find_object("refused") is None
    scene.check_logs()


@pytest.mark.parametrize(
    ("point", "copies"), [("put-off-before", 1), ("put-off-after", 2), ("ack-before", 2)]
)
async def test_a_deferred_upload_survives_a_crash(scene: Scene, point: str, copies: int) -> None:
    """Its project is enrolled only later; one copy or two of it wait, and it is stored once."""
    scene.project = f"late-{point}"
    async with (
        scene.worker("upload", point=point) as dying,
        open_wire(scene.deployment) as wire,
    ):
        made = await scene.upload(wire, "early", b"bird")
        assert await dying.ended() == -signal.SIGKILL
        async with scene.worker("all") as plain:
            await scene.publish(wire, rq.enroll(scene.deployment, scene.project))
            # Each copy ends in its own event: then none waits any more.
            await wire.event(lambda _: len(events_of(wire, made.upload_id)) == copies)
            assert await plain.terminate() == 0
        assert {event["type"] for event in events_of(wire, made.upload_id)} == {"upload.stored"}
        await check_queues_empty(wire)
    scene.check_object("early", made.upload_id)
    scene.check_logs()
