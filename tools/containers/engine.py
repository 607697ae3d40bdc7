"""A Docker engine, reached by the `docker` command.

An engine that is there is used. It gets images, containers and networks under names of this run,
which are removed afterwards.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

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
