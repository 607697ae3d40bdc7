"""A deployment worth a picture: hundreds of projects, refusals, failures, a long rotation."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import aio_pika

from keyturn.crypto import new_api_key
from tools.bench.world import open_world
from tools.harness import console_events, console_letters, console_projects
from tools.harness import requests as rq
from tools.harness.console_history import Publisher

if TYPE_CHECKING:
    from tools.harness.console_site import ConsoleSite

LONG: Final = "umbrella"
"""The project whose rotation is under way while the pictures are taken."""

_PROJECTS: Final = 240
_LETTERS: Final = 60
_FEW: Final = 3
_UPLOADS: Final = 5000
_OBJECTS: Final = 20_000
_SIZE_BYTES: Final = 64


async def furnish(site: ConsoleSite, *, is_calm: bool = False) -> None:
    """Add projects, dead letters, an hour of uploads (as events alone) and a large project.

    Where it is calm there are few dead letters, and none is hostile.
    """
    deployment = site.deployment
    names = console_projects.names(_PROJECTS)
    await console_projects.put_keyrings(deployment, names)
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel()
        uploads = console_events.stored_uploads(names, _UPLOADS)
        await console_events.publish(channel, deployment, uploads)
        letters = console_letters.refused_uploads(deployment, _FEW if is_calm else _LETTERS)
        await console_letters.publish(channel, letters)
        if not is_calm:
            await console_letters.publish(channel, console_letters.hostile_letters(deployment))
    publisher = Publisher(deployment, site.wire)
    await publisher.publish_and_wait(rq.enroll(deployment, LONG))
    async with open_world(deployment) as world:
        await world.load(LONG, _OBJECTS, _SIZE_BYTES)
    await asyncio.gather(
        *(
            publisher.upload("initech", [f"q{quarter}/{number:03}.csv" for number in range(50)])
            for quarter in range(1, 5)
        )
    )


async def rotate_long(site: ConsoleSite) -> str:
    """Begin the long rotation; returns its id once it makes progress."""
    publisher = Publisher(site.deployment, site.wire)
    rotation = await publisher.publish(rq.rotation(site.deployment, LONG, new_api_key()))
    await site.wire.event(
        lambda event: event["type"] == "sweep.progressed" and event["sweep_id"] == rotation
    )
    return rotation
