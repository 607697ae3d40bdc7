"""Debian's packages for the private servers: which are missing, and installing them as root.

For tests, demo and bench. Without root it says in one line what is missing and installs nothing.
The service that a package may start is left alone: private servers have names and ports of their
own.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tools.servers import ceph, rabbitmq

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RABBITMQ_PACKAGES = {str(rabbitmq.SCRIPT): "rabbitmq-server"}
CEPH_PACKAGES = {
    "ceph": "ceph-common",
    "radosgw-admin": "radosgw",
    "radosgw": "radosgw",
    "monmaptool": "ceph-base",
    "ceph-mon": "ceph-mon",
    "ceph-osd": "ceph-osd",
}
_LOCK_TIMEOUT_S = 300
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class MissingPackagesError(Exception):
    """Packages are missing and cannot be installed here."""


def missing_packages(programs: dict[str, str]) -> list[str]:
    """The packages of those programs that are not on this machine, sorted, each once."""
    return sorted(
        {
            package
            for program, package in programs.items()
            if not Path(program).is_file() and shutil.which(program, path=_SEARCH_PATH) is None
        }
    )


def needed(storage: str, *, broker: bool) -> dict[str, str]:
    """The programs, with their packages, that private servers of these kinds need."""
    found = dict(RABBITMQ_PACKAGES) if broker else {}
    if storage == "ceph":
        found |= CEPH_PACKAGES
    return found


def ensure(programs: dict[str, str]) -> None:
    """Installs what is missing.

    Raises:
        MissingPackagesError: something is missing and this user is not root, or apt failed.
    """
    if missing_packages(programs):
        with _alone():
            # Whoever came first, another process of this suite perhaps, has installed them.
            if missing := missing_packages(programs):
                _install(missing)
    if set(programs) & set(ceph.BINARIES) and not ceph.runs_here():
        raise MissingPackagesError("Ceph's daemons need root; run as root or choose moto")


@contextmanager
def _alone() -> Iterator[None]:
    """One process at a time: apt's own locks make the second one fail, not wait."""
    with Path(tempfile.gettempdir(), "keyturn-packages.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(packages: Iterable[str]) -> None:
    names = " ".join(packages)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise MissingPackagesError(
            f"missing packages: {names} (install them, or run as root on Debian)"
        )
    print(f"installing {names}", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # For somebody else's apt: this machine's own updates, say.
    patient = ["-o", f"DPkg::Lock::Timeout={_LOCK_TIMEOUT_S}"]
    install = ["apt-get", "install", "-y", "--no-install-recommends", *patient, *packages]
    for command in (["apt-get", "update"], install):
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise MissingPackagesError(
                f"could not install {names}: {' '.join(command[:2])} failed:\n{done.stdout[-2000:]}"
            )
