"""Finds missing Debian packages of the private servers, and installs them as root.

For tests, demo and bench. Without root it installs nothing and names what is missing. A service
that a package starts is not touched: private servers use their own names and ports.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tools.servers import ceph, rabbitmq
from tools.servers.process import run_program

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
CACHE = Path(__file__).parents[2] / ".scratch" / "servers"
"""Packages that servers need but that are not installed on the machine; `make clean` removes it."""
_LOCK_TIMEOUT_S = 300
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class MissingPackagesError(Exception):
    """Packages are missing and cannot be installed here."""


def missing_packages(programs: dict[str, str]) -> list[str]:
    """The packages of the programs that are not installed, sorted and without duplicates."""
    return sorted(
        {
            package
            for program, package in programs.items()
            if not Path(program).is_file() and shutil.which(program, path=_SEARCH_PATH) is None
        }
    )


def needed(storage: str, *, broker: bool) -> dict[str, str]:
    """The programs that private servers of these kinds need, with their packages."""
    found = dict(RABBITMQ_PACKAGES) if broker else {}
    if storage == "ceph":
        found |= CEPH_PACKAGES
    return found


def ensure(programs: dict[str, str]) -> None:
    """Install missing packages.

    Raises:
        MissingPackagesError: a package is missing and this user is not root, or apt failed.
    """
    if missing_packages(programs):
        with _alone():
            # Another process of this suite may have installed them meanwhile.
            if missing := missing_packages(programs):
                _install(missing)
    if set(programs) & set(ceph.BINARIES) and not ceph.runs_here():
        raise MissingPackagesError("Ceph's daemons need root; run as root or choose moto")


def path_of(program: str, package: str) -> Path:
    """The path of a program; its package is installed where it is missing.

    Raises:
        MissingPackagesError: as `ensure`.
    """
    ensure({program: package})
    path = shutil.which(program, path=_SEARCH_PATH)
    if path is None:
        raise MissingPackagesError(f"the package {package} has no program {program}")
    return Path(path)


@contextmanager
def _alone() -> Iterator[None]:
    """One process at a time: with apt's own locks a second one fails instead of waiting."""
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
    # Waits for other users of apt, such as the system's updates.
    patient = ["-o", f"DPkg::Lock::Timeout={_LOCK_TIMEOUT_S}"]
    install = ["apt-get", "install", "-y", "--no-install-recommends", *patient, *packages]
    for command in (["apt-get", "update"], install):
        what = f"could not install {names}: {' '.join(command[:2])}"
        run_program(what, command, environment, timeout_s=None, error=MissingPackagesError)
