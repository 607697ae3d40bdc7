"""Which files an upload means, and the keys that they take (SPEC 1).

A folder keeps its own name, as `cp -r` does: `photos/2026/a.jpg` under the argument
`photos` becomes that key. Links and special files inside folders are left out: a link can
lead anywhere, and a pipe never ends.
"""

import mimetypes
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer

from keyturn.identifiers import check_object_key

_ENCODINGS: Final = {"gzip": "application/gzip", "bzip2": "application/x-bzip2"}
_UNKNOWN: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Source:
    """One body to upload; `path` is None for standard input. `problem` refuses it."""

    path: Path | None
    key: str
    size_bytes: int | None
    content_type: str | None
    problem: str | None = None

    @property
    def shown(self) -> str:
        """What a person knows it by."""
        return "-" if self.path is None else str(self.path)


def find(
    paths: list[Path], prefix: str, content_type: str | None, skipped: Callable[[str], None]
) -> list[Source]:
    """All files that the arguments mean, in a stable order.

    Args:
        paths: Files and folders.
        prefix: What stands before every key, with its `/` where one is meant.
        content_type: For all of them; guessed from each name where None.
        skipped: Is told what was left out, and why.

    Raises:
        typer.BadParameter: a path does not exist, or two files would take one key.
    """
    sources: dict[str, Source] = {}
    for argument in paths:
        for path, name in _files(argument, skipped):
            source = _source(path, prefix + name, content_type)
            if source.key in sources:
                first = sources[source.key].shown
                raise typer.BadParameter(f"{first} and {path} would take the same key")
            sources[source.key] = source
    return list(sources.values())


def _files(argument: Path, skipped: Callable[[str], None]) -> Iterator[tuple[Path, str]]:
    """The files of one argument, with names relative to where it stands."""
    if argument.is_file():
        yield argument, argument.name
        return
    if not argument.is_dir():
        reason = "is no file and no folder" if argument.exists() else "does not exist"
        raise typer.BadParameter(f"{argument} {reason}")
    own = "" if argument.name in ("", "..") else f"{argument.name}/"

    def unreadable(error: OSError) -> None:
        skipped(f"{error.filename}: {error.strerror}")

    for folder, folders, names in os.walk(argument, onerror=unreadable):
        folders.sort()
        for name in [*folders, *sorted(names)]:
            path = Path(folder, name)
            if path.is_symlink():
                skipped(f"{path}: a symbolic link")
            elif path.is_file():
                yield path, own + path.relative_to(argument).as_posix()
            elif not path.is_dir():
                skipped(f"{path}: no regular file")


def _source(path: Path, key: str, content_type: str | None) -> Source:
    try:
        check_object_key(key)
        problem = None
    except ValueError as exc:
        problem = str(exc)
    size_bytes = path.stat().st_size
    return Source(path, key, size_bytes, content_type or guessed_type(path.name), problem)


def guessed_type(name: str) -> str:
    """A content type by the name's ending; a compressed file is what it is compressed by."""
    guessed, encoding = mimetypes.guess_type(name, strict=True)
    if encoding is not None:
        return _ENCODINGS.get(encoding, _UNKNOWN)
    return guessed or _UNKNOWN
