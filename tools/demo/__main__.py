"""`python -m tools.demo [FILES...]`: the main job on real input, shown as a table.

Starts private servers where no address is given, and ends them: RabbitMQ, and for storage
moto, an imitation of S3 in one process, because it is there in a second. (The tests use
Ceph's gateway, a real one.)
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from keyturn.crypto import Secret, user_kek
from keyturn.messages import UploadStored
from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings, S3Settings
from keyturn.topology import UPLOAD_QUEUE
from keyturn_workers.objects.download import OperatorAccess, ProjectAccess
from keyturn_workers.storage.s3 import open_storage
from tools.demo import files, inspection
from tools.demo.reading import read_all
from tools.demo.rotation import turn_both
from tools.harness.deployment import Deployment
from tools.harness.local_keys import operator_keys
from tools.harness.process import worker
from tools.servers import Servers
from tools.servers.packages import MissingPackagesError
from tools.servers.process import ServerError

if TYPE_CHECKING:
    from keyturn.messages import Event
    from keyturn_workers.storage import Storage
    from tools.demo.files import DemoFile
    from tools.demo.inspection import Waiting

_PROJECT = "demo"
_TIMEOUT_S = 600
_WIDTH = 150


async def run(
    deployment: Deployment, files: list[DemoFile], scratch: Path, console: Console
) -> bool:
    """The whole demo; whether every cell has the expected value."""
    os.environ.update(deployment.publisher_env())
    async with Publisher.open(PublisherSettings.read(), s3=S3Settings.read()) as publisher:
        console.print(
            "[bold]1.[/] A worker starts, declares its queues, creates the project's keyring, "
            "and is stopped again (SIGTERM)."
        )
        async with worker(deployment.worker_env()) as first:
            enrollment = await publisher.enroll(_PROJECT, api_key=deployment.api_key)
            event = await publisher.wait(enrollment, timeout_s=_TIMEOUT_S)
            console.print(
                f"   event: {event.type}, exit status of the worker: {await first.terminate()}"
            )
        console.print(
            "[bold]2.[/] The files are published. No worker is running: they wait in the queue."
        )
        uploads = {file: await publisher.upload(_PROJECT, file.key, file.path) for file in files}
        queued = await inspection.waiting(deployment.amqp_url, UPLOAD_QUEUE)
        console.print(f"   messages on {UPLOAD_QUEUE}: {len(queued)}")
        console.print("[bold]3.[/] A worker starts and stores them.")
        began = time.perf_counter()
        async with worker(deployment.worker_env()) as second:
            events = {
                file: await publisher.wait(upload_id, timeout_s=_TIMEOUT_S)
                for file, upload_id in uploads.items()
            }
            console.print(f"   {len(events)} events after {time.perf_counter() - began:.1f} s")
            await second.terminate()
        console.print("[bold]4.[/] Everything below is read back from the broker and the bucket.\n")
        async with open_storage(S3Settings.read()) as storage:
            good = await _show(deployment, storage, uploads, queued, events, console)
            plain = {file.key: inspection.file_sha256(file.path) for file in files}
            turned, keys = await turn_both(deployment, publisher, storage, _PROJECT, plain, console)
            read = await read_all(deployment, keys, _PROJECT, plain, scratch, console)
            return good and turned and read


async def _show(
    deployment: Deployment,
    storage: Storage,
    uploads: dict[DemoFile, str],
    queued: dict[str, Waiting],
    events: dict[DemoFile, Event],
    console: Console,
) -> bool:
    table = Table(title=f"bucket {deployment.bucket}, project {_PROJECT}")
    for column in ("file", "size", "queued", "stored", "what the bucket shows"):
        table.add_column(column, justify="right" if column == "size" else "left")
    table.add_column("opened by the\nproject's key")
    table.add_column("opened by the\noperator's key")
    project = ProjectAccess(_PROJECT, user_kek(deployment.api_key, _PROJECT))
    operator = OperatorAccess(_PROJECT, operator_keys({"m1": Secret(deployment.master_key)}))
    good = True
    for file, upload_id in uploads.items():
        event, waited = events[file], queued.get(upload_id)
        if not isinstance(event, UploadStored):
            table.add_row(file.key, "", _queued(waited), f"[red]{event.type}[/]", "", "", "")
            good = False
            continue
        shown = await inspection.bucket_shows(storage, _PROJECT, event.key)
        by = [
            await inspection.opened_sha256(storage, event.key, who) for who in (project, operator)
        ]
        expected = inspection.file_sha256(file.path)
        good = good and waited is not None and all(found == expected for found in by)
        table.add_row(
            event.key,
            f"{event.size:,}",
            _queued(waited),
            event.at[11:23],
            f"{shown.size_bytes:,} B {shown.algorithm}\n{shown.first_bytes} …, "
            f"zlib leaves {shown.zlib_percent} %",
            *(_opened(found, expected) for found in by),
        )
    console.print(table)
    left = [row.key async for row in storage.list(".keyturn/staging/")]
    console.print(
        "queued: size of the message, and whether it carried the sealed body or the body was "
        "staged in the bucket.\nstored: time of the worker's signed event (UTC). opened: SHA-256 "
        "of the plaintext, and whether it equals the file's."
    )
    console.print(f"left in staging: {len(left)}")
    return good and not left


def _queued(waited: Waiting | None) -> str:
    return "[red]not seen[/]" if waited is None else f"{waited.size_bytes:,} B, {waited.body}"


def _opened(found: str, expected: str) -> str:
    return f"[green]yes[/] {found[:12]}" if found == expected else f"[red]no[/] {found[:24]}"


def main() -> int:
    """Start what is missing, run, end it; 0 where everything came out right."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument(
        "files", nargs="*", help="files and folders; some of the clone's by default"
    )
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    try:
        with tempfile.TemporaryDirectory(prefix="keyturn-demo-") as scratch:
            selected = files.given(arguments.files) or files.of_the_clone(Path(scratch))
            with Servers("moto") as servers:
                names = {
                    "moto": "moto, an imitation of S3 in one process: quick to start, gone after",
                    "given": f"the S3 server at {servers.s3.endpoint_url}",
                }
                private = servers.rabbitmq is not None
                console.print(f"broker:  {'a private RabbitMQ' if private else 'the given one'}")
                console.print(f"storage: {names.get(servers.s3.kind, servers.s3.kind)}\n")
                deployment = Deployment(servers.amqp_url, servers.s3, servers.new_bucket())
                good = asyncio.run(run(deployment, selected, Path(scratch), console))
    except (files.DemoFilesError, MissingPackagesError, ServerError) as exc:
        print(exc, file=sys.stderr)
        return 1
    console.print(
        "[green]Every value is as expected.[/]"
        if good
        else "[red]Some values differ from what is expected: see above.[/]"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
