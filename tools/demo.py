"""`make demo`: the main job on real input, shown as tables.

It starts private servers where no address is given, and ends them: RabbitMQ, and for storage moto,
an imitation of S3 in one process that starts in a second. (The tests use Ceph's gateway, a real
one.) The workers and the gateway are forked from a process that has done their imports. What a
table shows was read back from the broker and the bucket, or came over HTTP: no cell is
computed from what was sent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import shlex
import shutil
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import TYPE_CHECKING

import aio_pika
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from keyturn import metadata as object_metadata
from keyturn.crypto import Secret, new_api_key, to_base64
from keyturn.errors import CodedError, PublisherError
from keyturn.identifiers import is_object_key, object_s3_key
from keyturn.messages import RotationCompleted, SweepCompleted, UploadStored
from keyturn.metadata import Plaintext
from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings, S3Settings
from keyturn.topology import UPLOAD_QUEUE
from keyturn_workers.gateway.request import object_path
from keyturn_workers.offline.download import OperatorAccess, open_object
from keyturn_workers.process.settings import WorkerSettings
from keyturn_workers.storage.s3 import open_storage
from tools.harness.api_key_reader import read_with_api_key
from tools.harness.deployment import Deployment
from tools.harness.local_keys import operator_keys
from tools.harness.process import forking, gateway, worker
from tools.servers import Servers
from tools.servers.packages import MissingPackagesError
from tools.servers.process import ServerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from keyturn.messages import Event
    from keyturn_workers.core.storage_port import Storage

    Reading = Callable[[str], AsyncIterator[bytes]]
    """Yields the plaintext of the object with this key."""

_ROOT = Path(__file__).parents[1]
_BIG_BYTES = 64 * 1024 * 1024
_OWN = ("README.md", "LICENSE", "uv.lock", "pyproject.toml", "docs/spec.md")


class DemoFilesError(Exception):
    """A file that the user named cannot be used."""


@dataclass(frozen=True)
class DemoFile:
    """A file on disk, and the key that it gets."""

    path: Path
    key: str


def given_files(arguments: list[str]) -> list[DemoFile]:
    """The files named, and those in the folders named.

    Raises:
        DemoFilesError: a name is missing, or two files would get one key.
    """
    found: list[DemoFile] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and not p.is_symlink())
            found += [DemoFile(p, f"{path.name or 'files'}/{p.relative_to(path)}") for p in inside]
        elif path.is_file():
            found.append(DemoFile(path, path.name))
        else:
            raise DemoFilesError(f"{argument}: no such file or folder")
    keys = [file.key for file in found]
    for key in keys:
        if keys.count(key) > 1:
            raise DemoFilesError(f"two files would get the key {key}")
        if not is_object_key(key):
            raise DemoFilesError(f"{key!r} cannot be a key")
    return found


def of_the_clone(scratch: Path) -> list[DemoFile]:
    """Files of this repository, an empty one, and its installed libraries as one big archive."""
    found = [DemoFile(_ROOT / name, name) for name in _OWN if (_ROOT / name).is_file()]
    empty = scratch / "empty.txt"
    empty.touch()
    return [
        *found,
        DemoFile(empty, "empty.txt"),
        DemoFile(_archive(scratch), "backup/libraries.tar"),
    ]


def _archive(scratch: Path) -> Path:
    """A tar of the environment's libraries, stopped once it has 64 MiB."""
    path = scratch / "libraries.tar"
    libraries = next((_ROOT / ".venv" / "lib").glob("python*/site-packages"))
    size_bytes = 0
    with tarfile.open(path, "w") as archive:
        for file in sorted(libraries.rglob("*")):
            if file.is_file():
                archive.add(file, arcname=str(file.relative_to(libraries)))
                size_bytes += file.stat().st_size
            if size_bytes >= _BIG_BYTES:
                return path
    raise DemoFilesError("the environment's libraries have less than 64 MiB")


_SAMPLE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Waiting:
    """A message that waits on the queue."""

    size_bytes: int
    body: str


@dataclass(frozen=True)
class Bucket:
    """What the bucket shows of an object to anyone who may read it."""

    size_bytes: int
    algorithm: str
    first_bytes: str
    zlib_percent: int


async def waiting(amqp_url: str, queue: str) -> dict[str, Waiting]:
    """The messages on a queue by their id; closing the channel puts them all back."""
    found: dict[str, Waiting] = {}
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        source = await channel.get_queue(queue, ensure=False)
        while (message := await source.get(fail=False)) is not None:
            kind = next(iter(json.loads(message.body)["body"]))
            found[str(message.message_id)] = Waiting(len(message.body), kind)
    return found


async def bucket_shows(storage: Storage, project: str, key: str) -> Bucket:
    """Read an object as it lies there: its head, and up to a MiB of its body."""
    s3_key = object_s3_key(project, key)
    async with storage.stream(s3_key, length_bytes=_SAMPLE_BYTES) as stream:
        sample = b"".join([piece async for piece in stream.chunks(_SAMPLE_BYTES)])
    envelope = object_metadata.parse(stream.head.metadata)
    algorithm = (
        "plaintext!"
        if isinstance(envelope, Plaintext)
        else stream.head.metadata[object_metadata.ALGO]
    )
    return Bucket(stream.head.size_bytes, algorithm, sample[:6].hex(" "), zlib_percent(sample))


def zlib_percent(sample: bytes) -> int:
    """How small zlib makes it, in percent: text shrinks, ciphertext does not."""
    return round(100 * len(zlib.compress(sample, 6)) / len(sample)) if sample else 100


def by_api_key(storage: Storage, project: str, api_key: str) -> Reading:
    """Read by the user wraps."""
    return lambda key: read_with_api_key(storage, project, key, api_key)


def by_master_keys(storage: Storage, project: str, master_keys: Mapping[str, bytes]) -> Reading:
    """Read by the admin wraps."""
    held = {name: Secret(key) for name, key in master_keys.items()}
    access = OperatorAccess(project, operator_keys(held))

    async def read(key: str) -> AsyncIterator[bytes]:
        async with open_object(storage, key, access) as opened:
            async for piece in opened.chunks():
                yield piece

    return read


async def opened_sha256(pieces: AsyncIterator[bytes]) -> str:
    """The SHA-256 of a plaintext, or the code of the failure to open it."""
    digest = hashlib.sha256()
    try:
        async for piece in pieces:
            digest.update(piece)
    except CodedError as exc:
        return exc.code
    return digest.hexdigest()


async def stored_sha256(storage: Storage, project: str, key: str) -> str:
    """The SHA-256 of an object's bytes as they lie in the bucket."""
    digest = hashlib.sha256()
    async with storage.stream(object_s3_key(project, key)) as stream:
        async for piece in stream.chunks(_SAMPLE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file on disk."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_LEASE_S = 1
_DEFAULT_LEASE_S = WorkerSettings.model_fields["lease_s"].default
# All workers: a keyring names the lease of the worker that made it.
QUICK = {"LEASE_S": str(_LEASE_S), "KEYRING_CACHE_S": "0.3"}


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
    who = {
        "old API key": by_api_key(storage, project, before.api_key),
        "new API key": by_api_key(storage, project, after.api_key),
        "master key m1": by_master_keys(storage, project, before.master_keys),
        "master key m2": by_master_keys(storage, project, after.master_keys),
    }
    stored = {key: await stored_sha256(storage, project, key) for key in plain}

    async def right(opening: set[str]) -> bool:
        """Show the bucket; whether just these keys open it, and no stored byte changed."""
        now = {key: await stored_sha256(storage, project, key) for key in plain}
        found = {
            (key, name): await opened_sha256(reading(key))
            for key in plain
            for name, reading in who.items()
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
    refusals = {name: {found[key, name] for key in plain} - set(plain.values()) for name in names}
    table = _new_table("file", "stored bytes", *(name.replace(" ", "\n", 1) for name in names))
    table.caption_justify = "left"
    table.caption = "\nstored bytes: their SHA-256 before and now.\n" + "\n".join(
        f"{name}: {', '.join(sorted(codes))}" for name, codes in refusals.items() if codes
    )
    for key in before:
        same = "[green]same[/]" if now[key] == before[key] else f"[red]{now[key][:8]}[/]"
        opened = (found[key, name] == plain[key] for name in names)
        cells = ("[green]opens[/]" if opens else "no" for opens in opened)
        table.add_row(key, f"{before[key][:8]} {same}", *cells)
    return table


def _new_table(*columns: str) -> Table:
    """A table that fits a terminal of 80 columns."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


_RANGE = 32
_HTTP_S = 120


async def read_all(
    deployment: Deployment,
    keys: tuple[Keys, Keys],
    project: str,
    plain: Mapping[str, str],
    scratch: Path,
    console: Console,
) -> bool:
    """Read everything by HTTP; whether all is as it should be.

    `keys` are those from before the turns and those of now; `plain` holds the SHA-256 of what
    was uploaded, by key.
    """
    before, now = keys
    held = json.dumps({name: to_base64(key) for name, key in now.master_keys.items()})
    env = deployment.gateway_env(MASTER_KEYS=held, KEYRING_CACHE_S=QUICK["KEYRING_CACHE_S"])
    console.print("\n[bold]7.[/] The gateway starts: the holder of the current API key can read.")
    async with gateway(env) as running:
        good = True
        for key, expected in plain.items():
            url = running.url + object_path(project, key)
            status, found = await asyncio.to_thread(_sha256, url, now.api_key)
            refused, _ = await asyncio.to_thread(_sha256, url, before.api_key)
            right = (status, found, refused) == (200, expected, 401)
            outcome = "[green]the file[/]" if found == expected else f"[red]{status}[/]"
            console.print(f"   {key}: {outcome} {found[:12]}; with the old key: {refused}")
            good &= right
        good &= await _by_curl(running.url, now.api_key, project, plain, scratch, console)
        if sys.stdin.isatty():
            console.print("   Paste them into another terminal. Press Enter to end the demo.")
            with contextlib.suppress(KeyboardInterrupt):
                await asyncio.to_thread(sys.stdin.readline)
        return good & (await running.terminate() == 0)


def _sha256(url: str, api_key: str) -> tuple[int, str]:
    """The status of a GET, and the SHA-256 of what came."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {api_key}"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_HTTP_S) as answer:  # noqa: S310  # ours
            return answer.status, hashlib.file_digest(answer, "sha256").hexdigest()
    except urllib.error.HTTPError as refusal:
        return refusal.code, ""


async def _by_curl(
    url: str,
    api_key: str,
    project: str,
    plain: Mapping[str, str],
    scratch: Path,
    console: Console,
) -> bool:
    """A download and a range of it, as one would type them."""
    if shutil.which("curl") is None:
        console.print("   (curl is not on this machine)")
        return True
    header = scratch / "authorization"
    header.touch(mode=0o600)
    header.write_text(f"Authorization: Bearer {api_key}\n")
    key, expected = next(iter(plain.items()))
    place = shlex.quote(url + object_path(project, key))
    download = f"curl -sS -H @{shlex.quote(str(header))} {place}"
    part = f"{download} -r 0-{_RANGE - 1}"
    gone = "" if sys.stdin.isatty() else " (of a gateway that ends with this demo)"
    console.print(f"   A download, and its first bytes{gone}:")
    for command in (f"{download} -o copy", part):
        console.print(f"     {command}", markup=False, soft_wrap=True)
    body, head = await _run(download), await _run(part)
    console.print(f"   {len(body):,} bytes; {head!r}", markup=False)
    return hashlib.sha256(body).hexdigest() == expected and head == body[:_RANGE]


async def _run(command: str) -> bytes:
    process = await asyncio.create_subprocess_shell(command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return output


_PROJECT = "demo"
_TIMEOUT_S = 600
_WIDTH = 80


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
        async with worker(deployment.worker_env(**QUICK)) as first:
            enrollment = await publisher.enroll(_PROJECT, api_key=deployment.api_key)
            event = await publisher.wait(enrollment, timeout_s=_TIMEOUT_S)
            console.print(
                f"   event: {event.type}, exit status of the worker: {await first.terminate()}"
            )
        console.print(
            "[bold]2.[/] The files are published. No worker is running: they wait in the queue."
        )
        uploads = {file: await publisher.upload(_PROJECT, file.key, file.path) for file in files}
        queued = await waiting(deployment.amqp_url, UPLOAD_QUEUE)
        console.print(f"   messages on {UPLOAD_QUEUE}: {len(queued)}")
        console.print("[bold]3.[/] A worker starts and stores them.")
        began = time.perf_counter()
        async with worker(deployment.worker_env(**QUICK)) as second:
            events = {
                file: await publisher.wait(upload_id, timeout_s=_TIMEOUT_S)
                for file, upload_id in uploads.items()
            }
            console.print(f"   {len(events)} events after {time.perf_counter() - began:.1f} s")
            await second.terminate()
        console.print("[bold]4.[/] Everything below is read back from the broker and the bucket.\n")
        async with open_storage(S3Settings.read()) as storage:
            good = await _show(deployment, storage, uploads, queued, events, console)
            plain = {file.key: file_sha256(file.path) for file in files}
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
    opened_by = ("project's\nkey opens", "operator's\nkey opens")
    table = _new_table("file", "queued", "what the bucket shows", *opened_by)
    table.title = f"bucket {deployment.bucket}, project {_PROJECT}"
    table.leading = 1
    project = by_api_key(storage, _PROJECT, deployment.api_key)
    operator = by_master_keys(storage, _PROJECT, {"m1": deployment.master_key})
    good = True
    for file, upload_id in uploads.items():
        event, waited = events[file], queued.get(upload_id)
        if not isinstance(event, UploadStored):
            table.add_row(file.key, _queued(waited), f"[red]{event.type}[/]", "", "")
            good = False
            continue
        shown = await bucket_shows(storage, _PROJECT, event.key)
        by = [await opened_sha256(reading(event.key)) for reading in (project, operator)]
        expected = file_sha256(file.path)
        good = good and waited is not None and all(found == expected for found in by)
        table.add_row(
            f"{event.key}\n{event.size:,} B\nstored {event.at[11:23]}",
            _queued(waited),
            f"{shown.size_bytes:,} B, zlib {shown.zlib_percent} %\n{shown.algorithm}\n"
            f"{shown.first_bytes} …",
            *(_opened(found, expected) for found in by),
        )
    console.print(table)
    left = [row.key async for row in storage.list(".keyturn/staging/")]
    console.print(
        "\nqueued: size of the message, and whether it carried the sealed body or the body was "
        "staged in the bucket.\nstored: time of the worker's signed event (UTC).\nzlib: what it "
        "leaves of the bytes; it compresses text, but no ciphertext.\nopens: SHA-256 of the "
        "plaintext, and whether it equals the file's."
    )
    console.print(f"left in staging: {len(left)}")
    return good and not left


def _queued(waited: Waiting | None) -> str:
    return "[red]not seen[/]" if waited is None else f"{waited.size_bytes:,} B\n{waited.body}"


def _opened(found: str, expected: str) -> str:
    return f"[green]yes[/]\n{found[:8]}" if found == expected else f"[red]no[/]\n{found[:24]}"


def main() -> int:
    """Start what is missing, run, end it; 0 where everything came out right."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument(
        "files", nargs="*", help="files and folders; some of the clone's by default"
    )
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    try:
        with forking(), tempfile.TemporaryDirectory(prefix="keyturn-demo-") as scratch:
            # It imports what the workers need while the files are read and the servers start.
            ensure_running()
            selected = given_files(arguments.files) or of_the_clone(Path(scratch))
            with Servers("moto") as servers:
                names = {
                    "moto": "moto, an imitation of S3 in one process: quick to start, gone after",
                    "given": f"the S3 server at {servers.s3.endpoint_url}",
                }
                private = servers.rabbitmq is not None
                console.print(f"broker:  {'a private RabbitMQ' if private else 'the given one'}")
                console.print(f"storage: {names.get(servers.s3.kind, servers.s3.kind)}")
                console.print(
                    f"leases:  {_LEASE_S} s, not {_DEFAULT_LEASE_S} s as by default: a proof takes "
                    "two of them, and here two proofs are awaited\n"
                )
                deployment = Deployment(servers.amqp_url, servers.s3, servers.new_bucket())
                good = asyncio.run(run(deployment, selected, Path(scratch), console))
    except (DemoFilesError, MissingPackagesError, ServerError, PublisherError) as exc:
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
