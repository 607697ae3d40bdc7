"""Builds the images of Dockerfile, and has those that compose.yaml names beside them."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml

from tools.containers import machine
from tools.containers.base_image import BROKER, base_references, make_base, pull
from tools.containers.engine import CannotRunError, DockerError

if TYPE_CHECKING:
    from tools.containers.engine import Engine

ROOT: Final = Path(__file__).parents[2]
IMAGE: Final = "keyturn"
STORAGE: Final = "keyturn-storage"
_BUILD_TIMEOUT_S: Final = 900.0
# What the build reads, and the deployment's file itself.
_SOURCES: Final = (
    *("Dockerfile", ".dockerignore", "compose.yaml", "pyproject.toml", "uv.lock"),
    *(".ci/uv.txt", "contracts", "workers", "tools"),
)


def copy_sources(target: Path) -> None:
    """Copy what the images are built from, as a fresh clone has it: no secret and no cache."""
    ignored = shutil.ignore_patterns("__pycache__", "node_modules", "*.env", "*.key", ".*_cache")
    for name in _SOURCES:
        source, copy = ROOT / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=ignored)
        else:
            shutil.copyfile(source, copy)


def broker_reference(compose: str) -> str:
    """The image of the service `broker`."""
    return str(yaml.safe_load(compose)["services"]["broker"]["image"])


class Images:
    """The images of one run.

    Attributes:
        made: Names of images made in place of what could not be pulled.
        built: Names of the images of Dockerfile that did not exist before.
    """

    def __init__(self, engine: Engine, project: Path, scratch: Path) -> None:
        self._engine = engine
        self._project = project
        self._scratch = scratch
        self.made: list[str] = []
        self.built: list[str] = []

    def provide(self) -> None:
        """Have the base image and the broker's, and build both targets.

        Raises:
            CannotRunError: an image is neither to be had nor to be made here.
            DockerError: the build failed.
        """
        base = self._base()
        with ThreadPoolExecutor(max_workers=3) as pool:
            builds = [
                pool.submit(self._build, "keyturn", IMAGE),
                pool.submit(self._build, "storage", STORAGE),
                pool.submit(self._broker, base),
            ]
            for build in builds:
                build.result()

    def remove(self) -> None:
        """Remove what was built and what was made; what was pulled or was there before stays."""
        for name in (*self.built, *self.made):
            self._engine.attempt("image", "rm", "--force", name)

    def _base(self) -> str:
        (base,) = base_references((self._project / "Dockerfile").read_text())
        reason = pull(self._engine, base)
        if reason is not None:
            print(f"{base}: made here, since it cannot be pulled ({reason})", flush=True)
            make_base(self._engine, base, self._scratch)
            self.made.append(base)
        return base

    def _broker(self, base: str) -> None:
        reference = broker_reference((self._project / "compose.yaml").read_text())
        # Where the base could not be pulled, no registry answers.
        reason = "no registry" if base in self.made else pull(self._engine, reference)
        if self._engine.has_image(reference):
            return
        if reason is not None:
            print(f"{reference}: Debian's RabbitMQ stands in ({reason})", flush=True)
            self._docker_build(reference, "-", stdin=BROKER.format(base=base))
            self.made.append(reference)

    def _build(self, target: str, name: str) -> None:
        # The name may be in use here: compose.yaml has it too.
        is_new = not self._engine.has_image(name)
        self._docker_build(name, "--target", target, str(self._project))
        if is_new:
            self.built.append(name)

    def _docker_build(self, name: str, *arguments: str, stdin: str | None = None) -> None:
        # A private engine has no bridge while images are built.
        network = ("--network", "host") if self._engine.is_private else ()
        proxies = [
            part
            for proxy in machine.PROXIES
            if os.environ.get(proxy)
            for part in ("--build-arg", proxy)
        ]
        self._engine.run(
            *("build", "--quiet", *network, *proxies, "--tag", name, *arguments),
            timeout_s=_BUILD_TIMEOUT_S,
            stdin=stdin,
        )


__all__ = ["CannotRunError", "DockerError", "Images"]
