"""systemd as process 1 of namespaces of its own, with nothing of the machine started.

For the units of `deploy/systemd`: limits, credentials and signals are systemd's own. It needs root
and no container engine. The network is the machine's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tools.servers.packages import MissingPackagesError, path_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_SCRIPT: Final = Path(__file__).with_name("boot_systemd.sh")
_ROOT: Final = _SCRIPT.parents[2]
_SYSTEM_UNITS: Final = Path("/usr/lib/systemd/system")
_BOOT_S: Final = 30
_INTERPRETER: Final = Path("/usr/bin/python3")


class CannotBootError(Exception):
    """systemd cannot be booted here; the text says why."""


@dataclass(frozen=True)
class BootedSystemd:
    """A running systemd."""

    folder: Path
    pid: int

    def run(self, script: str, *, stdin: str = "") -> str:
        """Run a shell script beside it, in the repository's folder; return its output.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run(
            [*("nsenter", "--target", str(self.pid), "--mount", "--pid"),
             *(f"--wdns={_ROOT}", "--", "bash", "-euo", "pipefail", "-c", script)],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )  # fmt: skip
        assert done.returncode == 0, (script, done.stdout, done.stderr, self.console())
        return done.stdout

    def console(self) -> str:
        """What systemd said."""
        return (self.folder / "console").read_text(errors="replace")[-4000:]


def install(folder: Path) -> None:
    """Install Keyturn below a folder, as a user without root's home sees it.

    Raises:
        CannotBootError: there is no uv, or no Python outside of root's home.
    """
    own = _ROOT / ".tools" / "bin" / "uv"
    uv = shutil.which("uv") or (str(own) if own.is_file() else None)
    if uv is None or not _INTERPRETER.exists():
        raise CannotBootError("no uv, or no Python outside of root's home")
    subprocess.run(
        [*(uv, "sync", "--locked", "--package", "keyturn-workers", "--extra", "pkcs11"),
         *("--extra", "console", "--no-default-groups", "--no-editable", "--quiet"),
         *("--reinstall-package", "keyturn", "--reinstall-package", "keyturn-workers"),
         *("--python", str(_INTERPRETER))],
        cwd=_ROOT,
        env={**os.environ, "UV_PROJECT_ENVIRONMENT": str(folder / "opt" / "keyturn")},
        check=True,
    )  # fmt: skip


@contextmanager
def booted_systemd() -> Iterator[BootedSystemd]:
    """Boot it, with Keyturn in /opt/keyturn, and kill it afterwards with all that it started.

    Raises:
        CannotBootError: this machine cannot.
    """
    if os.geteuid() != 0:
        raise CannotBootError("namespaces need root here")
    try:
        path_of("systemctl", "systemd")
    except MissingPackagesError as error:
        raise CannotBootError(str(error)) from None
    # Outside of /tmp and /var/tmp, which units do not see.
    folder = Path("/srv") / f"keyturn-systemd-{os.getpid()}"
    (folder / "units").mkdir(parents=True)
    (folder / "opt").mkdir()
    for unit in (*_SYSTEM_UNITS.glob("*.target"), *_SYSTEM_UNITS.glob("*.slice")):
        shutil.copy(unit, folder / "units", follow_symlinks=False)
    try:
        install(folder)
        yield from _running(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _running(folder: Path) -> Iterator[BootedSystemd]:
    command = ["unshare", "--mount", "--propagation", "private", "sh", str(_SCRIPT), str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as outer:
        try:
            yield BootedSystemd(folder, _wait_until_up(outer, folder))
        finally:
            outer.kill()
            outer.wait()
            _remove_cgroup(folder)


def _wait_until_up(outer: subprocess.Popen[str], folder: Path) -> int:
    deadline = time.monotonic() + _BOOT_S
    while time.monotonic() < deadline:
        if outer.poll() is not None:
            said = outer.stderr.read() if outer.stderr is not None else ""
            raise CannotBootError(said.strip())
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        if children and _is_up(int(children[0])):
            return int(children[0])
        time.sleep(0.1)
    console = folder / "console"
    raise CannotBootError(console.read_text() if console.exists() else "systemd did not start")


def _is_up(pid: int) -> bool:
    enter = ["nsenter", "--target", str(pid), "--mount", "--pid", "--"]
    asked = subprocess.run(
        [*enter, "systemctl", "is-active", "--quiet", "basic.target"],
        capture_output=True,
        check=False,
    )
    return asked.returncode == 0


def _remove_cgroup(folder: Path) -> None:
    """Remove the cgroups that are left, once their processes are gone."""
    script = (
        'mount -t cgroup2 cgroup2 "$1/cgroup"; for i in 1 2 3 4 5 6 7 8 9; do '
        'find "$1/cgroup/$(basename "$1")" -depth -type d -exec rmdir {} + 2>/dev/null && exit; '
        "sleep 0.2; done"
    )
    subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(folder)],
        check=False,
        capture_output=True,
    )
