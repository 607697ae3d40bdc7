"""`keyturn doctor`: capabilities of the configured bucket, broker and sources (SPEC 10, 17).

Each row is the outcome of actual requests; a server's name is never trusted.
"""

import asyncio
from typing import Annotated, Final

import typer
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPException, ChannelClosed

from keyturn.errors import SettingsError, SourceUnavailableError
from keyturn.publisher.connection import (
    Broker,
    BrokerAddress,
    connect_to_broker,
    describe_broker_failure,
)
from keyturn.topology import EXCHANGE, queues
from keyturn_workers.cli.arguments import AsJson
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.output import Row, print_line, print_rows
from keyturn_workers.cli.settings import BrokerSettings
from keyturn_workers.core.source_mapping import Source
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.pipeline.sources.bucket import open_source
from keyturn_workers.process.settings import SourceSettings
from keyturn_workers.reports.dead_letters.amqp1 import serves_amqp1
from keyturn_workers.storage.probe.runner import Row as Check
from keyturn_workers.storage.probe.runner import probe

_CONNECT_TIMEOUT_S: Final = 10
_TOPOLOGY: Final = (EXCHANGE, *(queue.name for queue in queues()))
_COLUMNS: Final = ("check", "needed", "ok", "result", "consequence")

Verbose = Annotated[
    bool, typer.Option("--verbose", help="List every missing queue, as --json does.")
]


def doctor(as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Check what the bucket, the broker and the sources can do.

    The broker is checked if KEYTURN_AMQP_URL is set, and each source of KEYTURN_SOURCES. The last
    line is the verdict: "safe"; "safe, without:" and the missing features that are wanted; or
    "refused for:" and the missing features that are required, with exit status 1.
    """
    storage, broker = SourceSettings.read(), BrokerSettings.read()
    checks = asyncio.run(_run_checks(storage, broker, names=verbose or as_json))
    print_rows(_COLUMNS, [_row(check) for check in checks], as_json=as_json)
    failed = [check for check in checks if not check.ok]
    if refused := [check.name for check in failed if check.needed == "required"]:
        raise CommandError(f"refused for: {'; '.join(refused)}")
    if not as_json:
        lacking = [check.name for check in failed if check.needed == "wanted"]
        print_line(f"safe, without: {'; '.join(lacking)}" if lacking else "safe")


def _row(check: Check) -> Row:
    consequence = "" if check.ok else check.consequence
    values = (check.name, check.needed, check.ok, check.detail, consequence)
    return dict(zip(_COLUMNS, values, strict=True))


async def _run_checks(
    storage: SourceSettings, broker: BrokerSettings, *, names: bool
) -> list[Check]:
    async with open_bucket(storage, max_connections=64) as bucket:
        report = await probe(bucket)
        of_sources = [
            await _check_source(name, source, storage, bucket)
            for name, source in storage.sources.items()
        ]
    if report.left_behind is not None:
        note(f"could not remove {report.left_behind}")
    checks = [*report.rows, *of_sources]
    if broker.amqp_url is not None:
        address = BrokerAddress.parse(broker.amqp_url.get_secret_value(), broker)
        checks += await _check_broker(address, names=names)
    return checks


async def _check_source(name: str, source: Source, settings: SourceSettings, own: Storage) -> Check:
    """Check that a source is another, readable bucket, and how its objects are deleted."""
    check = f"source {name}"
    try:
        async with open_source(name, source, settings, own) as bucket:
            await bucket.check()
            await bucket.list_page()
            deletion = await bucket.find_deletion()
    except SettingsError as exc:
        return Check(check, "required", False, str(exc), "workers refuse to start")
    except SourceUnavailableError as exc:
        return Check(check, "wanted", False, exc.detail, "its objects are not ingested")
    ok = deletion != "not possible"
    consequence = "stored objects stay in the source; see the source's `delete` field"
    result = f"readable; deleted: {deletion}" if ok else "readable; cannot delete"
    return Check(check, "wanted", ok, result, consequence)


async def _check_broker(broker: Broker, *, names: bool) -> list[Check]:
    """Check that the broker accepts a connection, and that workers have declared their queues.

    With `names`, list the missing ones.
    """
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            connection = await connect_to_broker(broker)
    except (OSError, TimeoutError, AMQPException) as exc:
        # Never a driver's text, which can contain the address with its password.
        detail = describe_broker_failure(exc)
        return [Check("broker", "required", False, detail, "nothing works")]
    async with connection:
        missing = await _missing(connection)
    try:
        is_1_0_served = await serves_amqp1(broker)
    except (OSError, TimeoutError):
        is_1_0_served = False
    detail = f"{len(missing)} of {len(_TOPOLOGY)} missing" if missing else "all exist"
    if missing and names:
        detail += f": {', '.join(missing)}"
    consequence = "publishing fails until a worker has been started"
    return [
        Check("broker", "required", True, "connected", ""),
        Check("queues declared", "wanted", not missing, detail, consequence),
        Check(
            "AMQP 0-9-1 only",
            "info",
            not is_1_0_served,
            "AMQP 1.0 is served too" if is_1_0_served else "AMQP 1.0 is not served",
            "a publisher can send messages that RabbitMQ cannot deliver to a worker: each stops a "
            "queue for seconds; keep AMQP 1.0 off the port (deployment guide)",
        ),
    ]


async def _missing(connection: AbstractConnection) -> list[str]:
    """Return the missing parts of the topology; a passive check creates nothing."""
    missing = []
    for name in _TOPOLOGY:
        # One channel each: the broker closes it if the queue does not exist.
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
