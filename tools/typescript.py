"""The TypeScript client's package, installed and built once a checkout (`clients/typescript`).

For tests and bench, and `make typescript`. Node.js and npm come with the Python environment; what
npm installs is locked by `package-lock.json`. Processes that ask at the same time wait for the
first one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PACKAGE: Final = Path(__file__).parents[1] / "clients/typescript"
RUNTIMES: Final = PACKAGE / "tests/runtimes"
"""Where npm installs Deno and Bun, apart from what every test needs."""
_BIN: Final = Path(sys.executable).parent
NODE: Final = _BIN / "node"
_TIMEOUT_S: Final = 300
_OUTPUT_LINES: Final = 40


class NpmError(Exception):
    """A command of npm failed; the text is the end of its output."""


def env() -> dict[str, str]:
    """The environment in which npm's scripts find this Node.js."""
    return {**os.environ, "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}", "CI": "1"}


def npm(*arguments: str, folder: Path = PACKAGE) -> str:
    """Run npm in a folder; return its output.

    Raises:
        NpmError: it failed, or took too long.
    """
    try:
        done = subprocess.run(
            [_BIN / "npm", *arguments],
            cwd=folder,
            env=env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT_S,
            check=False,
            text=True,
        )
    except subprocess.TimeoutExpired as exc:
        raise NpmError(f"npm {arguments[0]} took more than {_TIMEOUT_S} seconds") from exc
    if done.returncode != 0:
        raise NpmError("\n".join(done.stdout.splitlines()[-_OUTPUT_LINES:]))
    return done.stdout


def install(folder: Path = PACKAGE) -> None:
    """Install what the folder's lock file names, unless that is done.

    Raises:
        NpmError: npm failed, perhaps because its registry is out of reach.
    """
    inputs = [folder / "package.json", folder / "package-lock.json"]
    with _once(folder, "install", inputs) as is_due:
        if is_due:
            npm("ci", "--no-audit", "--no-fund", folder=folder)


def build() -> None:
    """Install, and compile to `dist/`, unless that is done.

    Raises:
        NpmError: a step failed.
    """
    install()
    inputs = [
        *sorted((PACKAGE / "src").rglob("*.ts")),
        *sorted(PACKAGE.glob("*.json")),
        PACKAGE / "scripts/build.mjs",
    ]
    with _once(PACKAGE, "build", inputs) as is_due:
        if is_due:
            npm("run", "--silent", "build")


def bundle(entry: Path, target: Path) -> Path:
    """Build, and bundle a module with all that it imports into one file for any runtime.

    Raises:
        NpmError: a step failed.
    """
    build()
    npm(
        "exec",
        "--",
        "esbuild",
        str(entry),
        "--bundle",
        "--format=esm",
        "--platform=neutral",
        "--target=es2022",
        "--external:node:*",
        f"--outfile={target}",
    )
    return target


@contextmanager
def _once(folder: Path, step: str, inputs: Iterable[Path]) -> Iterator[bool]:
    """Yield whether a step is due: not done yet with these inputs. Only one process is inside."""
    lock = folder / f".{step}.lock"
    with lock.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        stamp = folder / "node_modules" / f".keyturn-{step}"
        digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in inputs)).hexdigest()
        is_due = not stamp.exists() or stamp.read_text() != digest
        yield is_due
        if is_due:
            stamp.write_text(digest)


CHECKS: Final = {
    "lint": (),
    "generate": ("--", "--check"),
    "typecheck": (),
    "test": (),
    "size": (),
    "package": (),
    "reference": ("--", "--check"),
}
"""npm's scripts that check the package, in order, with their arguments; `build` comes first."""


def main(arguments: list[str]) -> int:
    """Check everything, or with `--write` renew what is generated from something else."""
    steps: dict[str, tuple[str, ...]]
    match arguments:
        case []:
            steps = CHECKS
        case ["--write"]:
            steps = {"generate": (), "format": (), "reference": ()}
        case _:
            sys.stderr.write("usage: python -m tools.typescript [--write]\n")
            return 2
    try:
        build()
        for name, more in steps.items():
            sys.stdout.write(f"npm run {name}\n")
            sys.stdout.flush()
            npm("run", "--silent", name, *more)
    except NpmError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
