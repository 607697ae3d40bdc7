"""A Docker engine, reached by the `docker` command: the one that is there, or a private one.

An engine that is there gets images, containers and networks under names of this run, which are
removed afterwards. A private one is a dockerd in a scratch folder, with mounts and a network of
this process's own (Linux, as root): they vanish with the last process in them, so nothing on the
machine changes, and no port is taken.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tools.servers import packages
from tools.servers.process import ServerError, ServerProcess

if TYPE_CHECKING:
    from collections.abc import Mapping

_PLUGINS: Final = "/usr/libexec/docker/cli-plugins"
PACKAGES: Final = {
    "dockerd": "docker.io",
    "docker": "docker-cli",
    f"{_PLUGINS}/docker-buildx": "docker-buildx",
    f"{_PLUGINS}/docker-compose": "docker-compose",
    "iptables": "iptables",
}
# Registries and proxies are reached as this machine reaches them.
_KEPT: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
_NO_BRIDGE: Final = (
    *("--iptables=false", "--ip-forward=false", "--ip-masq=false", "--userland-proxy=false"),
)
_CGROUPS: Final = Path("/sys/fs/cgroup")
_GRACE_S: Final = 20.0
_READY_TIMEOUT_S: Final = 60.0
_CLONE_NEWNS: Final = 0x0002_0000
_CLONE_NEWNET: Final = 0x4000_0000
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_IFREQ: Final = "16sh14x"
# All images, with what their builds leave, take 4 GB.
_MEMORY_BYTES: Final = 8 * 2**30
_PLENTY_BYTES: Final = 14 * 2**30

_TIMEOUT_S: Final = 120.0
_FIND_TIMEOUT_S: Final = 20.0
_TAIL_LINES: Final = 30


class CannotRunError(Exception):
    """This machine cannot run the test; the text is one line with the reason."""


class DockerError(Exception):
    """A command of `docker` failed; the text is the end of its output."""


def last_line(text: str) -> str:
    """The last line that is not empty, as a reason."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


@dataclass(frozen=True)
class Engine:
    """One engine.

    Attributes:
        environment: Of the `docker` command, such as `DOCKER_HOST`.
        is_private: Whether it was started for this run, and ends with it.
    """

    environment: Mapping[str, str] = field(repr=False)
    is_private: bool

    def attempt(
        self, *arguments: str, timeout_s: float = _TIMEOUT_S, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `docker`, whatever its exit status; 124 if it took too long."""
        command = ["docker", *arguments]
        try:
            return subprocess.run(
                command,
                env=dict(self.environment),
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 124, "", f"no end in {timeout_s:g} s")

    def run(self, *arguments: str, timeout_s: float = _TIMEOUT_S, stdin: str | None = None) -> str:
        """Run `docker`, and return its standard output.

        Raises:
            DockerError: it failed, or took too long.
        """
        done = self.attempt(*arguments, timeout_s=timeout_s, stdin=stdin)
        if done.returncode != 0:
            output = "\n".join((done.stdout + done.stderr).splitlines()[-_TAIL_LINES:])
            raise DockerError(f"docker {arguments[0]} ended with {done.returncode}:\n{output}")
        return done.stdout

    def has_image(self, reference: str) -> bool:
        """Whether the engine holds an image under this name."""
        return self.attempt("image", "inspect", reference).returncode == 0

    def has_compose(self) -> bool:
        """Whether `docker compose` is installed."""
        return self.attempt("compose", "version").returncode == 0


def find_engine() -> Engine | None:
    """The engine that answers here, if one does."""
    if shutil.which("docker") is None:
        return None
    engine = Engine(dict(os.environ), is_private=False)
    answered = engine.attempt("info", "--format", "{{.ServerVersion}}", timeout_s=_FIND_TIMEOUT_S)
    return engine if answered.returncode == 0 and answered.stdout.strip() else None


def install() -> None:
    """Install what is missing of the engine.

    Raises:
        CannotRunError: it is missing and cannot be installed here.
    """
    try:
        packages.ensure(PACKAGES)
    except packages.MissingPackagesError as exc:
        raise CannotRunError(f"no Docker engine: {last_line(str(exc))}") from exc
    if os.geteuid() != 0:
        raise CannotRunError("no Docker engine, and starting one needs root")


def remove_cgroups(group: Path) -> None:
    """Remove a control group without processes, and those in it; does nothing if there is none."""
    if group.is_dir():
        for child in group.iterdir():
            if child.is_dir():
                remove_cgroups(child)
        with suppress(OSError):  # a process is in it
            group.rmdir()


class PrivateEngine:
    """One dockerd; its images stay in the folder between `stop` and the next `start`.

    The folder is new. It is mounted in this process's own namespace, see `namespaces`.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        keep_in_memory(folder)
        self._folder = folder
        self._starts = 0
        self._process: ServerProcess | None = None
        self.engine = Engine(self._environment(), is_private=True)

    def start(self, *, bridge: bool) -> None:
        """Start it, and wait until it answers.

        Args:
            bridge: Whether it may make bridges and rules in this process's network.

        Raises:
            CannotRunError: it does not start here.
        """
        self._starts += 1
        (self._folder / "daemon.json").write_text("{}\n")
        self._process = ServerProcess(
            [*self._command(), *(() if bridge else _NO_BRIDGE)],
            env=self._environment(),
            scratch=self._folder,
            log=self._folder / f"dockerd-{self._starts}.log",
            grace_s=_GRACE_S,
        )
        try:
            self._process.wait_until(self._answers, what="dockerd", timeout_s=_READY_TIMEOUT_S)
        except ServerError as exc:
            self.stop()
            raise CannotRunError(f"dockerd does not start here: {last_line(str(exc))}") from exc

    def stop(self) -> None:
        """End it with all its containers; its images stay."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def remove(self) -> None:
        """End it, and remove what it left outside of its folder; the folder itself can go then."""
        self.stop()
        unmount_below(self._folder)
        for hierarchy in (_CGROUPS, *_CGROUPS.glob("*")):
            remove_cgroups(hierarchy / self._folder.parent.name)

    def log_tail(self) -> str:
        """The end of its log, for a failure."""
        return "" if self._process is None else self._process.log_tail()

    def _command(self) -> list[str]:
        folder = self._folder
        return [
            "dockerd",
            *("--config-file", str(folder / "daemon.json")),
            *("--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")),
            *("--pidfile", str(folder / "pid"), "-H", f"unix://{folder}/docker.sock"),
            *("--bridge=none", "--ip6tables=false"),
            *("--exec-opt", "native.cgroupdriver=cgroupfs"),
            *("--cgroup-parent", f"/{folder.parent.name}"),
        ]

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if name.upper() in _KEPT and value
        }
        return {
            **kept,
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(self._folder),
            "DOCKER_HOST": f"unix://{self._folder}/docker.sock",
            "DOCKER_CONFIG": str(self._folder / "config"),
        }

    def _answers(self) -> bool:
        answered = self.engine.attempt("version", "--format", "{{.Server.Version}}", timeout_s=10)
        return answered.returncode == 0


def leave_mounts() -> None:
    """From now on, what this process and its children mount is theirs alone.

    Raises:
        CannotRunError: the kernel refuses it.
    """
    _unshare(_CLONE_NEWNS, "mounts")
    done = subprocess.run(
        ["mount", "--make-rprivate", "/"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise CannotRunError(f"no mounts of its own here: {done.stderr.strip()}")


def leave_network() -> None:
    """From now on, this process and its children have a network with only a loopback device.

    Raises:
        CannotRunError: the kernel refuses it.
    """
    _unshare(_CLONE_NEWNET, "network")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack(_IFREQ, b"lo", 0))
        _, flags = struct.unpack(_IFREQ, answer)
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack(_IFREQ, b"lo", flags | _IFF_UP))


def keep_in_memory(folder: Path) -> bool:
    """Mount memory at a new folder if there is plenty; on a slow disk images take minutes more.

    Returns:
        Whether it is in memory.
    """
    if available_bytes(Path("/proc/meminfo").read_text()) < _PLENTY_BYTES:
        return False
    options = f"size={_MEMORY_BYTES},mode=0700"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def available_bytes(meminfo: str) -> int:
    """What `/proc/meminfo` says can be had; 0 if it does not."""
    found = re.search(r"^MemAvailable: *(\d+) kB$", meminfo, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def mounts_below(folder: Path, mountinfo: str) -> list[str]:
    """What is mounted at or below a folder, the deepest first."""
    points = [line.split()[4] for line in mountinfo.splitlines()]
    below = [point for point in points if Path(point).is_relative_to(folder)]
    return sorted(below, key=len, reverse=True)


def unmount_below(folder: Path) -> None:
    """Unmount what an engine left there, so that the folder can be removed."""
    for point in mounts_below(folder, Path("/proc/self/mountinfo").read_text()):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)


def _unshare(flag: int, what: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flag) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise CannotRunError(f"no {what} of its own here: {reason}")
