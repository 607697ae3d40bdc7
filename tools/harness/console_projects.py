"""Projects by the thousand, as years of enrollments and rotations leave them (SPEC 5.2)."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from keyturn.crypto import Secret, kek_id, new_customer_secret
from keyturn.identifiers import format_time
from keyturn.messages import RequestOrigin
from keyturn_workers.core.customer_keys import CustomerKey, KeyName
from keyturn_workers.core.erasure import Erasure, KeyState
from keyturn_workers.core.keyring import Generation, Keyring
from keyturn_workers.core.keyring_erasure import erase
from keyturn_workers.keys.keyring.store import create_keyring
from tools.harness.marks import mark_keyrings
from tools.harness.requests import new_id
from tools.harness.world import MASTER_KEY, open_world

if TYPE_CHECKING:
    from tools.harness.deployment import Deployment
    from tools.harness.world import World

_AT_ONCE: Final = 64
_OLDEST_DAYS: Final = 900
_BETWEEN_ROTATIONS_DAYS: Final = 180
_ARN: Final = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
_NAMES: Final = ("north", "south", "harbor", "meadow", "granite", "cedar", "delta", "ember")


def names(count: int) -> list[str]:
    """The ids of `count` projects, in no order of their numbers."""
    return [f"{_NAMES[number % len(_NAMES)]}-{number:05}" for number in range(count)]


def keyring(project: str, number: int, now: datetime) -> Keyring:
    """A keyring whose age and number of rotations follow from the project's number."""
    age_days = number * 7919 % _OLDEST_DAYS
    generations = [
        _generation(rank + 1, now - timedelta(days=days, hours=number % 24))
        for rank, days in enumerate(range(age_days, -1, -_BETWEEN_ROTATIONS_DAYS))
    ]
    return Keyring(
        project,
        MASTER_KEY,
        generations[-1],
        RequestOrigin("api", "0" * 64),
        lease_s=15,
        plaintext_allowed=number % 50 == 7,
        history=tuple(_retired(each) for each in generations[:-1]),
    )


async def put_keyrings(
    deployment: Deployment, projects: list[str], *, now: datetime | None = None
) -> None:
    """Put the projects' keyrings, a few at once, and their marks."""
    now = now or datetime.now(UTC)
    remaining = enumerate(projects)
    async with open_world(deployment) as world, asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(_put_each(world, remaining, now))
    await mark_keyrings(deployment, *projects)


async def put_with_customer_keys(deployment: Deployment, waiting: str, erased: str) -> None:
    """Put a keyring whose customer key is in a store that no worker knows, and an erased one."""
    now = datetime.now(UTC)
    rings = [_with_customer_key(keyring(name, 3, now)) for name in (waiting, erased)]
    begun = format_time(now - timedelta(minutes=1))
    erasure = Erasure(new_id(), "api", "0" * 64, begun, begun, "the contract has ended", None)
    gone = {key.secret_id: KeyState.DISABLED for key in rings[1].customer_keys.values()}
    rings[1] = erase(rings[1], erasure.with_answers(gone, now))
    async with open_world(deployment) as world:
        for each in rings:
            if not await create_keyring(world.storage, each, world.keys, lease_s=1):
                raise ValueError(f"the project {each.project} exists already")
    await mark_keyrings(deployment, waiting, erased)


def _with_customer_key(made: Keyring) -> Keyring:
    key = CustomerKey.of(KeyName("customers-eu", _ARN), new_customer_secret(), "AAAA")
    return replace(made, current=replace(made.current, customer_key=key))


async def _put_each(world: World, remaining: enumerate[str], now: datetime) -> None:
    for number, project in remaining:
        made = keyring(project, number, now)
        # The shortest lease: a proof waits for the longest that a keyring names.
        if not await create_keyring(world.storage, made, world.keys, lease_s=1):
            raise ValueError(f"the project {project} exists already")


def _generation(number: int, at: datetime) -> Generation:
    kek = Secret(os.urandom(32))
    time = format_time(at)
    return Generation(number, kek_id(kek), kek, new_id(), time, time)


def _retired(generation: Generation) -> Generation:
    return Generation(
        generation.generation,
        generation.kek_id,
        None,
        generation.rotation_id,
        generation.requested_at,
        generation.at,
    )
