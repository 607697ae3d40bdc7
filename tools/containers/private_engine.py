"""A private Docker engine in a scratch folder, from Debian's packages; it needs root.

Images are built with the host's network, without a bridge and without rules in the firewall. The
containers run later, when this process has a network of its own: there the engine may make
bridges and rules (`namespaces`).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from tools.containers import namespaces
from tools.containers.engine import CannotRunError, Engine, last_line
from tools.servers import packages
from tools.servers.process import ServerError, ServerProcess

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
        namespaces.keep_in_memory(folder)
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
        namespaces.unmount_below(self._folder)
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
