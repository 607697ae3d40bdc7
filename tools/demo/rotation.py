"""The demo's second half: the project's key is turned, then the operator's.

Everything that is shown is read back from the bucket: hashes of the stored bytes before and
after, and what each key opens.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from keyturn.crypto import Secret, new_api_key, to_base64, user_kek
from keyturn.messages import RotationCompleted, SweepCompleted
from keyturn_workers.objects.download import OperatorAccess, ProjectAccess
from tools.demo import inspection
from tools.harness.local_keys import operator_keys
from tools.harness.process import worker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from keyturn.messages import Event
    from keyturn.publisher import Publisher
    from keyturn_workers.objects.download import Access
    from keyturn_workers.storage import Storage
    from tools.harness.deployment import Deployment

# A proof takes two leases. The default of 15 s would make the demo slow.
QUICK = {"LEASE_S": "3", "KEYRING_CACHE_S": "0.5"}
_TIMEOUT_S = 600


@dataclass(frozen=True)
class Keys:
    """What opens the project's objects at one time: the API key, and master keys by id."""

    api_key: str
    master_keys: Mapping[str, bytes]


async def turn_both(
    deployment: Deployment,
    publisher: Publisher,
    storage: Storage,
    project: str,
    plain: Mapping[str, str],
    console: Console,
) -> tuple[bool, tuple[Keys, Keys]]:
    """Rotate the project's key and then the master key.

    Gives whether all is as it should be, and the keys before and after.

    `plain` holds the SHA-256 of what was uploaded, by key.
    """
    before = Keys(deployment.api_key, {"m1": deployment.master_key})
    after = Keys(new_api_key(), {"m2": os.urandom(32)})
    who: dict[str, Access] = {
        "old API key": ProjectAccess(project, user_kek(before.api_key, project)),
        "new API key": ProjectAccess(project, user_kek(after.api_key, project)),
        "master key m1": _operator(project, before),
        "master key m2": _operator(project, after),
    }
    stored = {key: await inspection.stored_sha256(storage, project, key) for key in plain}

    async def right(opening: set[str]) -> bool:
        """Show the bucket; whether just these keys open it, and no stored byte changed."""
        now = {key: await inspection.stored_sha256(storage, project, key) for key in plain}
        found = {
            (key, name): await inspection.opened_sha256(storage, key, access)
            for key in plain
            for name, access in who.items()
        }
        console.print(_table(stored, now, found, plain, list(who)))
        opened = {at for at, digest in found.items() if digest == plain[at[0]]}
        return now == stored and opened == {(key, name) for key in plain for name in opening}

    console.print("\n[bold]5.[/] The project's key is rotated: one message, and a worker.")
    good = await _rotate(deployment, publisher, project, after.api_key, console)
    good &= await right({"new API key", "master key m1"})
    console.print(
        "\n[bold]6.[/] The operator's master key is rotated from m1 to m2: workers that hold both, "
        "and a sweep of all projects."
    )
    good &= await _rotate_master_key(deployment, publisher, before, after, console)
    return good & await right({"new API key", "master key m2"}), (before, after)


def _operator(project: str, keys: Keys) -> OperatorAccess:
    held = {name: Secret(key) for name, key in keys.master_keys.items()}
    return OperatorAccess(project, operator_keys(held))


async def _rotate(
    deployment: Deployment, publisher: Publisher, project: str, api_key: str, console: Console
) -> bool:
    async with worker(deployment.worker_env(**QUICK)) as running:
        rotation = await publisher.rotate(project, api_key=api_key)
        accepted = await publisher.wait(rotation, timeout_s=_TIMEOUT_S)
        console.print(f"   event: {accepted.type} {getattr(accepted, 'generation', '')}")
        ended = await publisher.wait_completed(rotation, timeout_s=_TIMEOUT_S)
        await running.terminate()
    return _print_counts(ended, console)


async def _rotate_master_key(
    deployment: Deployment, publisher: Publisher, before: Keys, after: Keys, console: Console
) -> bool:
    both = {**before.master_keys, **after.master_keys}
    held = json.dumps({name: to_base64(key) for name, key in both.items()})
    env = deployment.worker_env(**QUICK, MASTER_KEYS=held, ACTIVE_MASTER_KEY="m2")
    async with worker(env) as running:
        sweep = await publisher.sweep("*", master_key="m2")
        ended = await publisher.wait_completed(sweep, timeout_s=_TIMEOUT_S)
        await running.terminate()
    return _print_counts(ended, console)


def _print_counts(ended: Event, console: Console) -> bool:
    if not isinstance(ended, RotationCompleted | SweepCompleted):
        console.print(f"   [red]event: {ended.type}[/]")
        return False
    console.print(
        f"   event: {ended.type}, objects {ended.objects}, rewrapped {ended.rewrapped}, "
        f"current {ended.current}, failed {ended.failed}, "
        f"clean {'[green]yes[/]' if ended.clean else '[red]no[/]'}"
    )
    return ended.clean


def _table(
    before: Mapping[str, str],
    now: Mapping[str, str],
    found: Mapping[tuple[str, str], str],
    plain: Mapping[str, str],
    names: list[str],
) -> Table:
    table = Table()
    for column in ("file", "stored bytes, before", "and now", *names):
        table.add_column(column, overflow="fold")
    for key in before:
        same = "[green]same[/]" if now[key] == before[key] else "[red]changed[/]"
        cells = (_cell(found[key, name], plain[key]) for name in names)
        table.add_row(key, before[key][:12], f"{now[key][:12]} {same}", *cells)
    return table


def _cell(found: str, plain: str) -> str:
    return "[green]opens[/]" if found == plain else f"no: {found[:24]}"
