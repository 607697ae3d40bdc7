"""The demo's files: the user's own, or real ones that any clone has."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

from keyturn.identifiers import is_object_key

_ROOT = Path(__file__).parents[2]
_BIG_BYTES = 64 * 1024 * 1024
_OWN = ("README.md", "LICENSE", "uv.lock", "pyproject.toml", "docs/spec.md")


class DemoFilesError(Exception):
    """A file that the user named cannot be used."""


@dataclass(frozen=True)
class DemoFile:
    """A file on disk, and the key that it gets."""

    path: Path
    key: str


def given(arguments: list[str]) -> list[DemoFile]:
    """The files named, and those in the folders named.

    Raises:
        DemoFilesError: a name is missing, or two files would get one key.
    """
    found: list[DemoFile] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and not p.is_symlink())
            found += [DemoFile(p, f"{path.name or 'files'}/{p.relative_to(path)}") for p in inside]
        elif path.is_file():
            found.append(DemoFile(path, path.name))
        else:
            raise DemoFilesError(f"{argument}: no such file or folder")
    keys = [file.key for file in found]
    for key in keys:
        if keys.count(key) > 1:
            raise DemoFilesError(f"two files would get the key {key}")
        if not is_object_key(key):
            raise DemoFilesError(f"{key!r} cannot be a key")
    return found


def of_the_clone(scratch: Path) -> list[DemoFile]:
    """Files of this repository, an empty one, and its installed libraries as one big archive."""
    found = [DemoFile(_ROOT / name, name) for name in _OWN if (_ROOT / name).is_file()]
    empty = scratch / "empty.txt"
    empty.touch()
    return [
        *found,
        DemoFile(empty, "empty.txt"),
        DemoFile(_archive(scratch), "backup/libraries.tar"),
    ]


def _archive(scratch: Path) -> Path:
    """A tar of the environment's libraries, stopped once it has 64 MiB."""
    path = scratch / "libraries.tar"
    libraries = next((_ROOT / ".venv" / "lib").glob("python*/site-packages"))
    size_bytes = 0
    with tarfile.open(path, "w") as archive:
        for file in sorted(libraries.rglob("*")):
            if file.is_file():
                archive.add(file, arcname=str(file.relative_to(libraries)))
                size_bytes += file.stat().st_size
            if size_bytes >= _BIG_BYTES:
                return path
    raise DemoFilesError("the environment's libraries have less than 64 MiB")
