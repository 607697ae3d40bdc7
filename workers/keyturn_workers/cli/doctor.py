"""`keyturn doctor`: what the configured bucket and broker really do (SPEC 10).

Each row is the outcome of requests just made, never of a server's name.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer
from aio_pika import connect
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPException, ChannelClosed

from keyturn.settings import S3Settings
from keyturn.topology import EXCHANGE, queues
from keyturn_workers.cli.arguments import AsJson
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.output import print_json, print_table
from keyturn_workers.cli.settings import BrokerSettings
from keyturn_workers.storage.probe.runner import probe

_CONNECT_TIMEOUT_S: Final = 10
_TOPOLOGY: Final = (EXCHANGE, *(queue.name for queue in queues()))
_COLUMNS: Final = ("check", "needed", "ok", "said", "consequence")

Verbose = Annotated[
    bool, typer.Option("--verbose", help="Name every queue that is missing, as --json does.")
]


@dataclass(frozen=True, slots=True)
class Check:
    """One row; `needed` says what its failure means for `doctor`'s exit status."""

    check: str
    needed: str
    ok: bool
    said: str
    consequence: str
    names: Sequence[str] = ()
    """What `said` counts: told by `--verbose` and in JSON."""

    @property
    def broken(self) -> bool:
        """Whether something required is missing."""
        return not self.ok and self.needed == "required"


def doctor(as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Probe the bucket and the broker.

    The broker where KEYTURN_AMQP_URL is set. Exits 1 where something required is missing.
    """
    storage, broker = S3Settings.read(), BrokerSettings.read()
    checks = asyncio.run(_examine(storage, broker))
    if as_json:
        print_json([_row(check, whole=True) for check in checks])
    else:
        print_table(_COLUMNS, (list(_row(check, whole=verbose).values()) for check in checks))
    if broken := [check.check for check in checks if check.broken]:
        raise CommandError(f"missing: {', '.join(broken)}")


def _row(check: Check, *, whole: bool) -> dict[str, Any]:
    row = {name: getattr(check, name) for name in _COLUMNS}
    if whole and check.names:
        row["said"] += f": {', '.join(check.names)}"
    return row


async def _examine(storage: S3Settings, broker: BrokerSettings) -> list[Check]:
    async with open_bucket(storage, max_connections=64) as bucket:
        report = await probe(bucket)
    if report.left_behind is not None:
        note(f"could not be removed: {report.left_behind}")
    checks = [Check(row.name, row.needed, row.ok, row.said, row.consequence) for row in report.rows]
    if broker.amqp_url is not None:
        checks += await broker_checks(broker.amqp_url.get_secret_value())
    return checks


async def broker_checks(amqp_url: str) -> list[Check]:
    """Whether the broker lets us in, and whether workers have declared their queues."""
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            connection = await connect(amqp_url)
    except (OSError, TimeoutError, AMQPException) as exc:
        # The type alone: a driver's text can hold the address with its password.
        said = type(exc).__name__
        return [Check("broker", "required", ok=False, said=said, consequence="nothing works")]
    async with connection:
        missing = await _missing(connection)
    said = f"{len(missing)} of {len(_TOPOLOGY)} missing" if missing else "all stand"
    return [
        Check("broker", "required", ok=True, said="connected", consequence=""),
        Check(
            "queues declared",
            "wanted",
            ok=not missing,
            said=said,
            consequence="publishing fails until a worker has been started" if missing else "",
            names=missing,
        ),
    ]


async def _missing(connection: AbstractConnection) -> list[str]:
    """What of the topology does not stand; asked passively, so that nothing is made."""
    missing = []
    for name in _TOPOLOGY:
        # A channel each: the broker closes it with the answer "not found".
        channel = await connection.channel()
        try:
            if name == EXCHANGE:
                await channel.get_exchange(name, ensure=True)
            else:
                await channel.declare_queue(name, passive=True)
        except ChannelClosed:
            missing.append(name)
        else:
            await channel.close()
    return missing
