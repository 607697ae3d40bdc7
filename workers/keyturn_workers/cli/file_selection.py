"""The files that `keyturn upload` selects, and their object keys (SPEC 1).

A folder keeps its own name, as with `cp -r`: with the argument `photos`, the file
`photos/2026/a.jpg` gets that key. Links and special files inside folders are skipped: a
link can lead anywhere, and a pipe never ends.
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
class SelectedFile:
    """One file to upload; `path` is None for standard input.

    `problem` says why it cannot be uploaded.
    """

    path: Path | None
    object_key: str
    size_bytes: int | None
    content_type: str | None
    problem: str | None = None

    @property
    def display_name(self) -> str:
        """Its name on the command line."""
        return "-" if self.path is None else str(self.path)


def select_files(
    paths: list[Path], prefix: str, content_type: str | None, on_skip: Callable[[str], None]
) -> list[SelectedFile]:
    """All files that the arguments name, in a stable order.

    Args:
        paths: Files and folders.
        prefix: Precedes every object key, including its `/` if it has one.
        content_type: Of all files; None guesses it from each name.
        on_skip: Called with the name of each skipped file, and why.

    Raises:
        typer.BadParameter: a path does not exist, or two files would have the same key.
    """
    files: dict[str, SelectedFile] = {}
    for argument in paths:
        for path, name in _walk(argument, on_skip):
            file = _describe(path, prefix + name, content_type)
            if file.object_key in files:
                first = files[file.object_key].display_name
                raise typer.BadParameter(f"{first} and {path} would have the same key")
            files[file.object_key] = file
    return list(files.values())


def _walk(argument: Path, on_skip: Callable[[str], None]) -> Iterator[tuple[Path, str]]:
    """The files of one argument, with names relative to its parent."""
    if argument.is_file():
        yield argument, argument.name
        return
    if not argument.is_dir():
        reason = "is neither a file nor a folder" if argument.exists() else "does not exist"
        raise typer.BadParameter(f"{argument} {reason}")
    own = "" if argument.name in ("", "..") else f"{argument.name}/"

    def unreadable(error: OSError) -> None:
        on_skip(f"{error.filename}: {error.strerror}")

    for folder, folders, names in os.walk(argument, onerror=unreadable):
        folders.sort()
        for name in [*folders, *sorted(names)]:
            path = Path(folder, name)
            if path.is_symlink():
                on_skip(f"{path} is a symbolic link")
            elif path.is_file():
                yield path, own + path.relative_to(argument).as_posix()
            elif not path.is_dir():
                on_skip(f"{path} is not a regular file")


def _describe(path: Path, object_key: str, content_type: str | None) -> SelectedFile:
    try:
        check_object_key(object_key)
        problem = None
    except ValueError as exc:
        problem = str(exc)
    size_bytes = path.stat().st_size
    content_type = content_type or guess_content_type(path.name)
    return SelectedFile(path, object_key, size_bytes, content_type, problem)


def guess_content_type(name: str) -> str:
    """A content type by file extension; that of a compressed file is its compression."""
    guessed, encoding = mimetypes.guess_type(name, strict=True)
    if encoding is not None:
        return _ENCODINGS.get(encoding, _UNKNOWN)
    return guessed or _UNKNOWN
