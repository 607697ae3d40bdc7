"""A deployment worth a picture: hundreds of projects, refusals, failures, a long rotation."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import aio_pika

from keyturn.crypto import new_api_key
from tools.bench.rotation.world import open_world
from tools.harness import console_letters, console_projects
from tools.harness import requests as rq
from tools.harness.console_history import Publisher

if TYPE_CHECKING:
    from tools.harness.console_site import ConsoleSite

LONG: Final = "umbrella"
"""The project whose rotation is under way while the pictures are taken."""

_PROJECTS: Final = 240
_LETTERS: Final = 60
_OBJECTS: Final = 20_000
_SIZE_BYTES: Final = 64


async def furnish(site: ConsoleSite, *, is_hostile: bool = True) -> None:
    """Add projects, dead letters (hostile ones too, unless not wanted) and a large project."""
    deployment = site.deployment
    await console_projects.put_keyrings(deployment, console_projects.names(_PROJECTS))
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel()
        letters = console_letters.refused_uploads(deployment, _LETTERS)
        await console_letters.publish(channel, letters)
        if is_hostile:
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
