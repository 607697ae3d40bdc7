"""Programs of another Debian release, for `make doctor`, without installing them on this machine.

The packages are extracted into a folder, which later runs reuse. Each program runs under
bubblewrap, with that folder's `/usr` instead of the machine's, the machine's network, and one
writable folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tools.servers import packages
from tools.servers.packages import CACHE, AptSource, MissingPackagesError
from tools.servers.process import run_program

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROGRAMS: Final = {"mmdebstrap": "mmdebstrap", "bwrap": "bubblewrap"}
_TIMEOUT_S: Final = 900.0
# Debian has a merged /usr: these are links into it.
_LINKS: Final = ("bin", "lib", "lib64", "sbin")


@dataclass(frozen=True)
class OtherRelease:
    """Packages of one release, with all their dependencies.

    Args:
        release: Its code name, such as `forky`.
        packages: Their names.
        cache: The folder in which extracted packages are kept.
    """

    release: str
    packages: tuple[str, ...]
    cache: Path = CACHE

    @property
    def root(self) -> Path:
        """The folder of the extracted packages. Each set of packages has its own."""
        digest = hashlib.sha256(" ".join(sorted(self.packages)).encode()).hexdigest()[:8]
        return self.cache / f"debian-{self.release}-{digest}"

    def ensure(self) -> None:
        """Extract the packages, unless an earlier run did.

        Raises:
            MissingPackagesError: they cannot be installed here; the text says why.
        """
        if os.geteuid() != 0:
            raise MissingPackagesError(f"only root can run packages of Debian {self.release}")
        packages.ensure(_PROGRAMS)
        if self.root.is_dir():
            return
        sources = packages.apt_sources(self.release)
        if not sources:
            raise MissingPackagesError(f"apt has no archive of Debian {self.release} here")
        with _scratch(self.cache) as folder:
            self._extract(sources, folder)
            (folder / "root").rename(self.root)

    def command(self, writable: Path, *command: str) -> list[str]:
        """The command line that runs a program of the release.

        Args:
            writable: The folder that the program shares with this machine, under the same path.
            command: The program's name or path in the release, and its arguments.
        """
        return [
            *("bwrap", "--die-with-parent"),
            *("--ro-bind", str(self.root / "usr"), "/usr"),
            *(part for link in _LINKS for part in ("--symlink", f"usr/{link}", f"/{link}")),
            *("--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"),  # noqa: S108 - its own
            *("--bind", str(writable), str(writable)),
            *("--", *command),
        ]

    def _extract(self, sources: list[AptSource], folder: Path) -> None:
        options = folder / "apt.conf"
        options.write_text(packages.apt_options())
        run_program(
            f"the download of Debian {self.release}",
            [
                *("mmdebstrap", "--quiet", "--variant=extract", "--format=directory"),
                *(f"--aptopt={options}", f"--include={','.join(self.packages)}"),
                *(self.release, str(folder / "root"), *(str(source) for source in sources)),
            ],
            {**os.environ, "TMPDIR": str(folder)},
            timeout_s=_TIMEOUT_S,
            error=MissingPackagesError,
        )


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A folder on the file system of `parent`, removed at the end."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="new-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
