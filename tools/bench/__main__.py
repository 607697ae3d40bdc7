"""`python -m tools.bench`: measure, print a table, write JSON (docs/operations/performance.md).

Exit status 0 if everything could be measured, even if targets were missed, which the table and the
JSON show. Exit status 1 if a measurement failed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console

from tools.bench import (
    against_plain,
    large_upload,
    limited_storage,
    profiles,
    sealing,
    tenants,
    tracing,
    uploads,
)
from tools.bench.console import dead_letters as console_dead
from tools.bench.console import memory as console_memory
from tools.bench.console import pages as console_pages
from tools.bench.console import reports as console_reports
from tools.bench.console import uploads as console_uploads
from tools.bench.figures import Results, profile_table, table
from tools.bench.gateway import keyrings as gateway_keyrings
from tools.bench.gateway import listings, opening, typescript
from tools.bench.gateway import measurements as gateway
from tools.bench.kms import measurements as kms
from tools.bench.kms.providers import PROVIDERS
from tools.bench.processes import BenchError
from tools.bench.rotation import pages, scaling, sizes, whole_rotation
from tools.bench.rotation.world import LEASE_S, open_world
from tools.harness.console import ConsoleDeployment
from tools.harness.deployment import Deployment
from tools.servers import Servers
from tools.servers.process import ServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tools.bench.figures import Row
    from tools.bench.kms.providers import ProviderName
    from tools.servers import StorageKind

_ROTATION: Final = ("rotation-pages", "rotation-size", "rotation-scaling", "rotation-many")
_GATEWAY: Final = ("gateway-large", "gateway-first", "gateway-bodies", "gateway-small")
_CONSOLE: Final = (
    "console-dead",
    "console-memory",
    "console-pages",
    "console-reports",
    "console-uploads",
)
_PARTS: Final = (
    "uploads",
    "uploads-limited",
    "plain",
    "latency",
    "projects",
    "layers",
    "big",
    "sealing",
    *_ROTATION,
    *_GATEWAY,
    "gateway-keyrings",
    "listing",
    "open",
    "typescript",
    "kms",
    "tracing",
    *_CONSOLE,
)
_KINDS: Final[tuple[StorageKind, ...]] = ("ceph", "moto")
_NO_BROKER: Final = "amqp://127.0.0.1:1/"
_MIB: Final = 2**20
# moto handles a few hundred puts per second, so fewer objects take as long.
_COUNTS: Final = {"ceph": 3000, "moto": 1200}
_QUICK_COUNT: Final = 600
_LIMITED: Final = 1500
_MANY: Final = 10_000
_QUICK_MANY: Final = 300
_QUICK_LEASE_S: Final = 3
_SCALING: Final = 800
_LATENCY_S: Final = 10
_QUICK_LATENCY_S: Final = 4
_UPLOADS_A_PROJECT: Final = 5
_QUICK_SCALING: Final = 100
_LETTERS: Final = 100_000
_QUICK_LETTERS: Final = 1000
_REQUESTS: Final = 200
_QUICK_REQUESTS: Final = 20
_DAY: Final = 2_000_000  # events
_QUICK_DAY: Final = 50_000
# One per cent is less than what rounds differ by: it takes many of them.
_CONSOLE_ROUNDS: Final = 10


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description="Measure Keyturn.")
    parser.add_argument(
        "--only",
        default=",".join(_PARTS),
        metavar="PART,PART",
        help=f"some of {', '.join(_PARTS)}; rotation, gateway and console are all of theirs",
    )
    parser.add_argument("--server", choices=["ceph", "moto", "both"], default="both")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer rounds")
    parser.add_argument("--rounds", type=int, choices=range(1, 21), metavar="1-20")
    parser.add_argument(
        "--objects",
        type=_numbers,
        metavar="N,N",
        help=f"objects of rotation-many, one rotation each ({_MANY} where not given)",
    )
    parser.add_argument(
        "--before",
        type=Path,
        metavar="FOLDER",
        help="a checkout of an earlier commit, for tracing: what does the code cost without it?",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    given = parser.parse_args(argv)
    given.only = given.only.split(",")
    for name, parts in (("rotation", _ROTATION), ("gateway", _GATEWAY), ("console", _CONSOLE)):
        if name in given.only:
            given.only = [*(part for part in given.only if part != name), *parts]
    if unknown := set(given.only) - set(_PARTS):
        parser.error(f"--only knows {', '.join(_PARTS)}, not {', '.join(sorted(unknown))}")
    return given


def _numbers(text: str) -> list[int]:
    numbers = [int(number) for number in text.split(",")]
    if min(numbers) < 1:
        raise ValueError("at least one object")
    return numbers


@contextmanager
def _served(kind: StorageKind, *, broker: bool = True) -> Iterator[tuple[Deployment, Path]]:
    """Fresh servers, a deployment on them, and a scratch folder."""
    with (
        Servers(kind, broker=broker, environ={}) as servers,
        tempfile.TemporaryDirectory(prefix="keyturn-bench-") as folder,
    ):
        amqp_url = servers.amqp_url if broker else _NO_BROKER
        yield Deployment(amqp_url, servers.s3, servers.new_bucket()), Path(folder)


def _uploads(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    count = _QUICK_COUNT if given.quick else _COUNTS[kind]
    rounds = given.rounds or (1 if given.quick else 3)
    with _served(kind) as (deployment, scratch):
        measuring = uploads.measure(deployment, scratch, count=count, rounds=rounds)
        rows, results.profiles[f"upload worker, {kind}"] = asyncio.run(measuring)
        results.rows += rows


def _limited(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    with _served(kind) as (deployment, scratch):
        measuring = limited_storage.measure(
            deployment,
            scratch,
            count=_QUICK_COUNT if given.quick else _LIMITED,
            rounds=given.rounds or (1 if given.quick else 3),
        )
        rows, notes = asyncio.run(measuring)
        results.rows += rows
        results.notes += notes


def _plain(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    with _served(kind) as (deployment, scratch):
        measuring = against_plain.measure_drained(
            deployment,
            scratch,
            count=_QUICK_COUNT if given.quick else _COUNTS[kind],
            rounds=given.rounds or (1 if given.quick else 3),
        )
        results.rows += asyncio.run(measuring)


def _latency(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    with _served(kind) as (deployment, scratch):
        measuring = against_plain.measure_latency(
            deployment,
            scratch,
            rates=against_plain.RATES,
            seconds=_QUICK_LATENCY_S if given.quick else _LATENCY_S,
            rounds=given.rounds or (1 if given.quick else 3),
        )
        results.rows += asyncio.run(measuring)


def _projects(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    with _served(kind) as (deployment, scratch):
        measuring = tenants.measure(
            deployment,
            scratch,
            numbers=tenants.QUICK_PROJECTS if given.quick else tenants.PROJECTS,
            uploads_a_project=_UPLOADS_A_PROJECT,
            least=_QUICK_COUNT if given.quick else _COUNTS[kind],
            rounds=given.rounds or (1 if given.quick else 2),
        )
        results.rows += asyncio.run(measuring)


def _tracing(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    with _served(kind) as (deployment, scratch):
        measuring = tracing.measure(
            deployment,
            scratch,
            count=_QUICK_COUNT if given.quick else _COUNTS[kind],
            rounds=given.rounds or (1 if given.quick else _CONSOLE_ROUNDS),
            before=given.before,
        )
        results.rows += asyncio.run(measuring)


def _layers(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    count = _QUICK_COUNT if given.quick else _COUNTS[kind]
    with _served(kind) as (deployment, scratch):
        results.profiles |= asyncio.run(profiles.measure(deployment, scratch, count=count))


def _big(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    size_bytes = 128 * _MIB if given.quick else 1024 * _MIB
    found = large_upload.Rounds()
    for _ in range(given.rounds or (1 if given.quick else 2)):
        large_upload.check_memory(size_bytes)
        with _served(kind) as (deployment, scratch):
            asyncio.run(large_upload.one_round(deployment, scratch, found, size_bytes=size_bytes))
    results.rows += large_upload.rows(kind, found, size_bytes)


def _sealing(given: argparse.Namespace, results: Results) -> None:
    size_bytes = 32 * _MIB if given.quick else 256 * _MIB
    rows, notes = sealing.measure(size_bytes, given.rounds or (2 if given.quick else 5))
    results.rows += rows
    results.notes += notes


def _rotation_pages(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    count = _QUICK_COUNT if given.quick else _COUNTS[kind]
    rounds = given.rounds or (1 if given.quick else 3)
    with _served(kind) as (deployment, scratch):
        measuring = pages.measure(deployment, scratch, count=count, rounds=rounds)
        rows, layers = asyncio.run(measuring)
        results.rows += rows
        for name, by_layer in layers.items():
            results.profiles[f"page worker, {name} pass, {kind}"] = by_layer


def _rotation_size(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    of = sizes.QUICK_SIZES if given.quick else sizes.SIZES
    rounds = given.rounds or (1 if given.quick else 3)
    with _served(kind) as (deployment, _):
        results.rows += asyncio.run(sizes.measure(deployment, sizes=of, rounds=rounds))


def _rotation_scaling(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    with _served(kind) as (deployment, scratch):
        measuring = scaling.measure(
            deployment,
            scratch,
            workers=scaling.QUICK_WORKERS if given.quick else scaling.WORKERS,
            objects_a_worker=_QUICK_SCALING if given.quick else _SCALING,
            rounds=given.rounds or 1,
        )
        rows, notes = asyncio.run(measuring)
        results.rows += rows
        results.notes += notes


def _rotation_many(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    lease_s = _QUICK_LEASE_S if given.quick else LEASE_S
    found: dict[int, list[whole_rotation.Found]] = {}
    for count in given.objects or [_QUICK_MANY if given.quick else _MANY]:
        for _ in range(given.rounds or 1):
            # Fresh servers for each rotation: data of an earlier one does not affect it.
            with _served(kind) as (deployment, scratch):
                measuring = whole_rotation.measure(
                    deployment, scratch, count=count, lease_s=lease_s
                )
                found.setdefault(count, []).append(asyncio.run(measuring))
    results.rows += whole_rotation.rows(kind, found)


_OF_ROTATION: Final = {
    "rotation-pages": _rotation_pages,
    "rotation-size": _rotation_size,
    "rotation-scaling": _rotation_scaling,
    "rotation-many": _rotation_many,
}


def _gateway(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    requested = frozenset(given.only) & frozenset(_GATEWAY)
    with _served(kind, broker=False) as (deployment, scratch):
        # After each part: if one fails, the earlier results are kept.
        measuring = gateway.measure(
            deployment, scratch, requested, results.rows, quick=given.quick, rounds=given.rounds
        )
        asyncio.run(measuring)


def _gateway_keyrings(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    with _served(kind, broker=False) as (deployment, scratch):
        measuring = gateway_keyrings.measure(
            deployment,
            scratch,
            numbers=gateway_keyrings.QUICK_PROJECTS if given.quick else gateway_keyrings.PROJECTS,
            rounds=given.rounds or (1 if given.quick else 3),
        )
        results.rows += asyncio.run(measuring)


def _listing(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    async def measure(deployment: Deployment, scratch: Path) -> list[Row]:
        async with open_world(deployment) as world:
            return await listings.measure(
                world,
                scratch,
                compared=listings.QUICK_COMPARED if given.quick else listings.COMPARED,
                many=listings.QUICK_MANY if given.quick else listings.MANY,
                rounds=given.rounds or (1 if given.quick else 5),
            )

    with _served(kind, broker=False) as (deployment, scratch):
        results.rows += asyncio.run(measure(deployment, scratch))


def _open(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    async def measure(deployment: Deployment, scratch: Path) -> list[Row]:
        async with open_world(deployment) as world:
            return await opening.measure(
                world,
                scratch,
                size_bytes=opening.QUICK_BYTES if given.quick else opening.LARGE_BYTES,
                rounds=given.rounds or (1 if given.quick else 5),
            )

    with _served(kind, broker=False) as (deployment, scratch):
        results.rows += asyncio.run(measure(deployment, scratch))


def _typescript(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    async def measure(deployment: Deployment, scratch: Path) -> list[Row]:
        async with open_world(deployment) as world:
            return await typescript.measure(
                world,
                scratch,
                size_bytes=typescript.QUICK_BYTES if given.quick else typescript.LARGE_BYTES,
                rounds=given.rounds or (1 if given.quick else 5),
            )

    with _served(kind, broker=False) as (deployment, scratch):
        results.rows += asyncio.run(measure(deployment, scratch))


def _derivations(provider: ProviderName, given: argparse.Namespace, results: Results) -> None:
    rounds = given.rounds or (1 if given.quick else 3)
    measuring = kms.measure_derivations(provider, quick=given.quick, rounds=rounds)
    results.rows += asyncio.run(measuring)


def _kms(
    provider: ProviderName, kind: StorageKind, given: argparse.Namespace, results: Results
) -> None:
    rounds = given.rounds or (1 if given.quick else 3)
    with _served(kind) as (deployment, scratch):
        measuring = kms.measure_uploads(
            deployment, scratch, provider, results.rows, quick=given.quick, rounds=rounds
        )
        asyncio.run(measuring)


@contextmanager
def _with_console(kind: StorageKind) -> Iterator[tuple[ConsoleDeployment, Path]]:
    with _served(kind) as (made, scratch):
        yield ConsoleDeployment(made.amqp_url, made.s3, made.bucket), scratch


def _console_dead(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    with _with_console(kind) as (deployment, scratch):
        measuring = console_dead.measure(
            deployment, scratch, letters=_QUICK_LETTERS if given.quick else _LETTERS
        )
        results.rows += asyncio.run(measuring)


def _console_pages(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    with _with_console(kind) as (deployment, scratch):
        measuring = console_pages.measure(
            deployment,
            scratch,
            projects=_QUICK_MANY if given.quick else _MANY,
            letters=_QUICK_LETTERS if given.quick else _LETTERS,
            requests=_QUICK_REQUESTS if given.quick else _REQUESTS,
        )
        results.rows += asyncio.run(measuring)


def _console_reports(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    with _with_console(kind) as (deployment, scratch):
        measuring = console_reports.measure(
            deployment,
            scratch,
            projects=_QUICK_MANY if given.quick else _MANY,
            rounds=given.rounds or (1 if given.quick else 3),
        )
        results.rows += asyncio.run(measuring)


def _console_uploads(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    with _with_console(kind) as (deployment, scratch):
        measuring = console_uploads.measure(
            deployment,
            scratch,
            count=_QUICK_COUNT if given.quick else _COUNTS[kind],
            rounds=given.rounds or (1 if given.quick else _CONSOLE_ROUNDS),
        )
        results.rows += asyncio.run(measuring)


def _console_memory(kind: StorageKind, given: argparse.Namespace, results: Results) -> None:
    del kind  # it needs no storage
    results.rows += console_memory.measure(
        events=_QUICK_DAY if given.quick else _DAY,
        projects=_QUICK_MANY if given.quick else _MANY,
    )


_OF_CONSOLE: Final = {
    "console-memory": _console_memory,
    "console-dead": _console_dead,
    "console-pages": _console_pages,
    "console-reports": _console_reports,
    "console-uploads": _console_uploads,
}
_OF_CLIENTS: Final = {
    "gateway-keyrings": _gateway_keyrings,
    "listing": _listing,
    "open": _open,
    "typescript": _typescript,
}
_OF_UPLOADS: Final = {
    "plain": _plain,
    "latency": _latency,
    "projects": _projects,
    "tracing": _tracing,
}


def _parts_of(
    parts: Mapping[str, Callable[[StorageKind, argparse.Namespace, Results], None]],
    kind: StorageKind,
    given: argparse.Namespace,
) -> Iterator[tuple[str, Callable[[Results], None]]]:
    for part, measure in parts.items():
        if part in given.only:
            yield f"{part} on {kind}", partial(measure, kind, given)


def _measurements(given: argparse.Namespace) -> Iterator[tuple[str, Callable[[Results], None]]]:
    kinds = _KINDS if given.server == "both" else (given.server,)
    if "sealing" in given.only:
        yield "sealing and opening", partial(_sealing, given)
    for kind in kinds if "uploads" in given.only else ():
        yield f"4 KiB uploads on {kind}", partial(_uploads, kind, given)
    for kind in kinds if "layers" in given.only else ():
        yield f"CPU time by layer on {kind}", partial(_layers, kind, given)
    # The proxy is the bottleneck, so the server behind it hardly matters.
    if "uploads-limited" in given.only:
        yield f"uploads to a limited storage on {kinds[0]}", partial(_limited, kinds[0], given)
    # moto is slower than either side, so it would only measure itself.
    yield from _parts_of(_OF_UPLOADS, kinds[0], given)
    # On moto it would only measure moto.
    if "big" in given.only and "ceph" in kinds:
        yield "a large staged upload on ceph", partial(_big, "ceph", given)
    # As above, unless only moto was requested.
    kind = "ceph" if "ceph" in kinds else kinds[0]
    yield from _parts_of(_OF_ROTATION, kind, given)
    if set(_GATEWAY) & set(given.only):
        yield f"the gateway on {kind}", partial(_gateway, kind, given)
    yield from _parts_of(_OF_CLIENTS, kind, given)
    yield from _parts_of(_OF_CONSOLE, kind, given)
    if "kms" in given.only:
        for provider in PROVIDERS:
            yield f"derivations by {provider}", partial(_derivations, provider, given)
        for provider in kms.WITH_UPLOADS:
            yield f"uploads with {provider} on {kind}", partial(_kms, provider, kind, given)


def main(argv: list[str]) -> int:
    """Measure the requested parts; returns the exit status."""
    given = _arguments(argv)
    # On SIGTERM it still stops the workers and servers that it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(width=None if sys.stdout.isatty() else 150)
    results = Results()
    began = time.monotonic()
    failed = False
    for name, measure in _measurements(given):
        console.print(f"{name} …")
        try:
            measure(results)
        except (BenchError, ServerError) as exc:
            failed = True
            results.notes.append(f"{name}: NOT MEASURED: {exc}")
        # After each part: an interrupted run keeps its results.
        if given.json:
            given.json.write_text(results.as_json())
    results.notes.append(
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the end, "
        f"{time.monotonic() - began:.0f} s in total"
    )
    if results.rows:
        console.print(table(results.rows))
    for process, layers in results.profiles.items():
        console.print(profile_table(process, layers))
    for note in results.notes:
        console.print(note, markup=False)
    if given.json:
        given.json.write_text(results.as_json())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
