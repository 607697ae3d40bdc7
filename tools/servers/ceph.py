"""A private in-memory Ceph cluster with its S3 gateway on loopback, from Debian's packages.

Storage for tests and benchmarks (SPEC 10): real conditional puts under real races, which moto
cannot reproduce. One monitor, one memory-backed OSD and one gateway; no manager, which only serves
statistics and whose modules do not load on Debian 13. Needs root. It must never read or write the
system's own Ceph configuration. `make doctor` also starts a newer Ceph from another
Debian release.
"""

from __future__ import annotations

import base64
import os
import secrets
import struct
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from tools.servers.process import (
    ServerError,
    ServerProcess,
    free_port,
    remove_scratch,
    run_program,
    scratch_folder,
)
from tools.servers.s3 import S3Server

if TYPE_CHECKING:
    from tools.servers.certificates import Certificate
    from tools.servers.other_release import OtherRelease

BINARIES = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool")
_DEFAULT_DEVICE_BYTES = 12 * 2**30
_READY_TIMEOUT_S = 30.0

# All data is discarded, so the daemons get SIGKILL: on a graceful shutdown a memory-backed OSD
# would write all its objects to disk.
_GRACE_S = 0.0

_CONFIG = """\
[global]
fsid = {fsid}
mon host = {mon_address}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr1 = false
keyring = {folder}/keyring
run dir = {folder}
admin socket =
log file = {folder}/$name.log
crash dir = {folder}
mon cluster log file = {folder}/cluster.log
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
rgw rados pool pg num min = 4
[mon]
mon data = {folder}/mon
mon data avail warn = 1
mon data avail crit = 1
mon tick interval = 1
paxos propose interval = 0.05
paxos min wait = 0.01
[osd]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = {device_bytes}
osd class dir = {classes}
osd scrub min interval = 864000
osd op num shards = 2
[client.admin]
rgw frontends = beast endpoint={rgw_endpoint} tcp_nodelay=1
rgw data = {folder}/rgw
rgw thread pool size = 64
rgw enable usage log = false
rgw enable quota threads = false
rgw enable lc threads = false
rgw dynamic resharding = false
rgw run sync thread = false
rgw gc obj min wait = 60
rgw gc processor period = 60
rgw override bucket index max shards = 2
rgw allow notification secrets in cleartext = true
"""

_KEYRING_ENTRY = """\
[{name}]
key = {key}
{caps}
"""
_CAPS = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *"},
    "osd.0": {"mon": "allow *", "osd": "allow *"},
}


@dataclass(frozen=True)
class KeyType:
    """A type of cephx key: its number in Ceph's encoding, and its number of random bytes."""

    number: int
    size_bytes: int


AES_128 = KeyType(1, 16)
AES_256 = KeyType(2, 32)
"""New in Ceph 20, which by default no longer accepts `AES_128`."""


@dataclass(frozen=True)
class CephPrograms:
    """Which Ceph to run: the one installed here, or that of another Debian release."""

    key_type: KeyType = AES_128
    release: OtherRelease | None = None

    def command(self, folder: Path, program: str, *arguments: str) -> list[str]:
        """The command line of a program that reads and writes only below this folder."""
        command = [program, "-c", str(folder / "ceph.conf"), *arguments]
        return self.release.command(folder, *command) if self.release else command

    def rados_classes(self) -> Path:
        """The folder of the OSD's plugins, as the OSD sees it.

        Raises:
            ServerError: there is none.
        """
        root = self.release.root if self.release else Path("/")
        found = sorted((root / "usr" / "lib").glob("*/rados-classes"))
        if not found:
            raise ServerError(f"Ceph's rados-classes folder is missing below {root / 'usr/lib'}")
        return "/" / found[0].relative_to(root)


OWN_CEPH = CephPrograms()


def cephx_key(key_type: KeyType) -> str:
    """A fresh cephx secret in Ceph's encoding: type, time, length, random bytes."""
    header = struct.pack("<HIIH", key_type.number, int(time.time()), 0, key_type.size_bytes)
    return base64.b64encode(header + secrets.token_bytes(key_type.size_bytes)).decode()


def keyring_text(key_type: KeyType) -> str:
    """One keyring file for all daemons, with a fresh key for each."""
    return "".join(
        _KEYRING_ENTRY.format(
            name=name,
            key=cephx_key(key_type),
            caps="\n".join(f'caps {daemon} = "{cap}"' for daemon, cap in caps.items()),
        )
        for name, caps in _CAPS.items()
    )


class CephRgw:
    """One throwaway cluster.

    Args:
        device_bytes: Capacity in bytes; memory is allocated only as it fills.
        server: The gateway's port and keys; a free port and fresh keys by default.
        listen: The gateway's address; everything else stays on loopback.
        tls: With it, the gateway also listens for TLS on loopback.
        programs: Which Ceph to run; one of another release cannot read the files of `tls`.
    """

    def __init__(
        self,
        *,
        device_bytes: int = _DEFAULT_DEVICE_BYTES,
        server: S3Server | None = None,
        listen: str = "127.0.0.1",
        tls: Certificate | None = None,
        programs: CephPrograms = OWN_CEPH,
    ) -> None:
        self._folder = scratch_folder("ceph")
        self._programs = programs
        self._device_bytes = device_bytes
        self._fsid = str(uuid.uuid4())
        self._mon_address = f"v2:127.0.0.1:{free_port()}/0"
        self._daemons: list[ServerProcess] = []
        self.server = server or S3Server.private(free_port(), "ceph")
        self._rgw_endpoint = f"{listen}:{urlsplit(self.server.endpoint_url).port}"
        if tls is not None:
            port = free_port()
            self._rgw_endpoint += (
                f" ssl_endpoint=127.0.0.1:{port} ssl_certificate={tls.certificate}"
                f" ssl_private_key={tls.key}"
            )
            secured = f"https://localhost:{port}"
            self.server = replace(self.server, tls_endpoint_url=secured, ca=tls.ca)

    def start(self) -> S3Server:
        """Start the cluster, create the S3 user, and wait until the gateway responds.

        Raises:
            ServerError: a daemon exited or was not ready in time.
        """
        self._write_files()
        self._make_monmap()
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(self._folder / "monmap"))
        self._daemon("ceph-mon", "-i", "a")
        osd_id = str(uuid.uuid4())
        self._run("ceph", "osd", "new", osd_id, "0")
        self._run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd_id)
        self._daemon("ceph-osd", "-i", "0")
        self._make_user()
        gateway = self._daemon("radosgw", "-n", "client.admin")
        gateway.wait_until(self._answers, what="radosgw", timeout_s=_READY_TIMEOUT_S)
        return self.server

    def close(self) -> None:
        """Kill every daemon, the gateway first, and remove the scratch folder."""
        while self._daemons:
            self._daemons.pop().kill()
        remove_scratch(self._folder)

    def _write_files(self) -> None:
        for name in ("mon", "osd", "rgw"):
            (self._folder / name).mkdir()
        (self._folder / "keyring").write_text(keyring_text(self._programs.key_type))
        config = _CONFIG.format(
            fsid=self._fsid,
            mon_address=self._mon_address,
            rgw_endpoint=self._rgw_endpoint,
            folder=self._folder,
            classes=self._programs.rados_classes(),
            device_bytes=self._device_bytes,
        )
        (self._folder / "ceph.conf").write_text(config)

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(self._folder),
            "CEPH_CONF": str(self._folder / "ceph.conf"),
        }

    def _run(self, program: str, *arguments: str) -> None:
        command = self._programs.command(self._folder, program, *arguments)
        run_program(program, command, self._environment(), timeout_s=_READY_TIMEOUT_S)

    def _daemon(self, program: str, *arguments: str) -> ServerProcess:
        daemon = ServerProcess(
            self._programs.command(self._folder, program, "-f", *arguments),
            env=self._environment(),
            scratch=self._folder,
            log=self._folder / f"{program}.out",
            grace_s=_GRACE_S,
        )
        self._daemons.append(daemon)
        return daemon

    def _make_monmap(self) -> None:
        path = self._folder / "monmap"
        address = f"[{self._mon_address}]"
        self._run("monmaptool", "--create", "--addv", "a", address, "--fsid", self._fsid, str(path))

    def _make_user(self) -> None:
        self._run(
            *("radosgw-admin", "user", "create", "--uid", "keyturn", "--display-name", "Keyturn"),
            *("--access-key", self.server.access_key_id),
            *("--secret-key", self.server.secret_access_key),
        )

    def _answers(self) -> bool:
        try:
            with urlopen(self.server.endpoint_url, timeout=2):  # noqa: S310 - our own http address
                return True
        except (HTTPError, URLError, OSError):
            return False


def runs_here() -> bool:
    """Whether this user may run the cluster: Ceph's daemons need root."""
    return os.geteuid() == 0
