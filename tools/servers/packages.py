"""Debian's packages: those of the private servers, and how this machine's apt reaches others.

For tests, demo and bench: missing packages are installed as root. Without root it installs nothing
and names what is missing. A service that a package starts is not touched: private servers use
their own names and ports. Sources and options for base images and other releases are apt's own, so
that no mirror, proxy or option has to be configured twice.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

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
_INDEX_FORMAT: Final = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
_SUITES: Final = ("", "-updates", "-security")
# Options that do not affect fetching: these describe the index files themselves.
_NOT_FETCHING: Final = (
    *("Acquire::IndexTargets", "Acquire::Changelogs", "Acquire::cdrom"),
    # These run programs of this machine.
    *("Acquire::http::Proxy-Auto-Detect", "Acquire::http::ProxyAutoDetect"),
)


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


# How this machine's apt reaches Debian's packages.


@dataclass(frozen=True, order=True)
class AptSource:
    """One line of apt's sources."""

    uri: str
    suite: str
    component: str

    def __str__(self) -> str:
        return f"deb {self.uri} {self.suite} {self.component}"


def debian_sources(index_targets: str, release: str) -> list[AptSource]:
    """The sources from which apt gets one release of Debian.

    Args:
        index_targets: Lines of `origin|uri|suite|component`, as apt knows its sources.
        release: The release's code name. If this machine runs another release of Debian, the same
            archives are used.

    Returns:
        The release itself, its updates and its security updates; empty if apt has no archive of
        Debian over HTTP, which a container can also reach.
    """
    found = set()
    for line in index_targets.splitlines():
        origin, uri, suite, component = line.split("|")
        if origin == "Debian" and component == "main" and uri.startswith(("http://", "https://")):
            found.add(AptSource(uri, suite, component))
    suites = {release + suffix for suffix in _SUITES}
    same = sorted(source for source in found if source.suite in suites)
    if any(source.suite == release for source in same):
        return same
    # A main archive has every release, and its suites have no suffix.
    return sorted(AptSource(s.uri, release, s.component) for s in found if "-" not in s.suite)[:1]


def apt_sources(release: str) -> list[AptSource]:
    """`debian_sources` for this machine; empty without apt."""
    return debian_sources(
        _output("apt-get", "indextargets", "--format", _INDEX_FORMAT, "Created-By: Packages"),
        release,
    )


def fetch_options(dump: str) -> str:
    """The options for fetching from `apt-config dump`, as a configuration file for another apt."""
    kept = [
        line
        for line in dump.splitlines()
        if line.startswith("Acquire::")
        and not line.endswith('"";')
        and not line.startswith(_NOT_FETCHING)
    ]
    return "".join(f"{line}\n" for line in kept)


def apt_options() -> str:
    """`fetch_options` for this machine."""
    return fetch_options(_output("apt-config", "dump"))


def _output(*command: str) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""
