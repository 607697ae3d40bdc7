"""A folder as the destination of an export.

Paths are walked one name at a time, and no symbolic link is followed: neither a key nor another
writer to the folder can make an export write outside it.

A body is first written to a temporary file. Its manifest line is written before the rename. So each
file of the export has a line, and a line whose file is missing or has another size is ignored.
"""

import asyncio
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import IO, Final, Self

from keyturn_workers.core.errors import ExportError
from keyturn_workers.offline.export.manifest import MANIFEST, Index, first_line, parse_lines
from keyturn_workers.offline.export.run import Incoming

MANIFEST_FILE: Final = f"{MANIFEST}.jsonl"
PARTIAL_FOLDER: Final = ".keyturn-partial"
_FILE_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700


class Folder:
    """A folder that holds one export, locked for this process. Use `open`."""

    def __init__(self, root: int, partial: int, manifest: IO[bytes], index: Index) -> None:
        self._root = root
        self._partial = partial
        self._manifest = manifest
        self._index = index
        self._numbers = count()

    @classmethod
    @contextmanager
    def open(cls, path: Path, project: str) -> Iterator[Self]:
        """Yield the folder as the destination of a project; created if it does not exist.

        Raises:
            ExportError: the folder has other contents, or another process exports to it.
            OSError: it cannot be read or written.
        """
        path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        with ExitStack() as stack:
            root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, root)
            if not _exists(root, MANIFEST_FILE) and os.listdir(root):  # noqa: PTH208  # a descriptor
                raise ExportError(
                    f"{path} is not empty, and has no {MANIFEST_FILE} to continue from"
                )
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(MANIFEST_FILE, flags, _FILE_MODE, dir_fd=root)
            manifest = stack.enter_context(os.fdopen(descriptor, "r+b"))
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ExportError(f"another process exports to {path}") from None
            partial = _enter(root, PARTIAL_FOLDER.encode(), create=True)
            stack.callback(os.close, partial)
            for name in os.listdir(partial):  # noqa: PTH208  # what a killed process left
                os.unlink(name, dir_fd=partial)
            index = stack.enter_context(closing(Index()))
            folder = cls(root, partial, manifest, index)
            folder._continue(project, str(path / MANIFEST_FILE))
            yield folder
            with suppress(OSError):
                os.rmdir(PARTIAL_FOLDER, dir_fd=root)

    def _continue(self, project: str, name: str) -> None:
        for own in (MANIFEST_FILE, PARTIAL_FOLDER):
            self._index.take(own, "")
        for record in parse_lines(_complete_lines(self._manifest), name, project):
            self._index.add(record)
            self._index.take_all(record)
        if os.fstat(self._manifest.fileno()).st_size == 0:
            self._append(first_line(project))

    async def size_of(self, key: str) -> int | None:
        """Return the size of an exported object's file, in bytes; None if it is not exported."""
        found = self._index.find(key)
        if found is None:
            return None
        path, size_bytes = found
        with suppress(FileNotFoundError), self._parent(path, create=False) as (folder, name):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode) and status.st_size == size_bytes:
                return size_bytes
            os.unlink(name, dir_fd=folder)
        return None

    async def store(self, incoming: Incoming) -> bool:
        """Write an object's file; it has its name once all of it is authenticated and on disk."""
        temporary = str(next(self._numbers))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, _FILE_MODE, dir_fd=self._partial)
        try:
            with os.fdopen(descriptor, "wb") as file:
                async for block in incoming.blocks():
                    await asyncio.to_thread(file.write, block)
                await asyncio.to_thread(_sync, file, incoming.info.last_modified)
            self._publish(temporary, incoming)
            return True
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=self._partial)

    def _publish(self, temporary: str, incoming: Incoming) -> None:
        """Give a complete file its name. Nothing else of this process runs in between."""
        record = incoming.record(self._index.path_for(incoming.key, self._is_free))
        with self._parent(record.path, create=True) as (folder, name):
            self._append(record.line())
            os.rename(temporary, name, src_dir_fd=self._partial, dst_dir_fd=folder)
        self._index.add(record)

    def _append(self, line: bytes) -> None:
        manifest = self._manifest.fileno()
        length_bytes = os.fstat(manifest).st_size
        if os.write(manifest, line) != len(line):
            os.ftruncate(manifest, length_bytes)  # the next line must not follow half of one
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _is_free(self, path: str) -> bool:
        """Check that no file has this name, or one that the file system treats as equal."""
        try:
            with self._parent(path, create=False) as (folder, name):
                return not _exists(folder, name)
        except (FileNotFoundError, NotADirectoryError):
            return True

    @contextmanager
    def _parent(self, path: str, *, create: bool) -> Iterator[tuple[int, bytes]]:
        """Yield the folder of a path's file, and the file's name."""
        *folders, name = path.encode().split(b"/")
        descriptor = os.dup(self._root)
        try:
            for folder in folders:
                inner = _enter(descriptor, folder, create=create)
                os.close(descriptor)
                descriptor = inner
            yield descriptor, name
        finally:
            os.close(descriptor)


def _enter(parent: int, name: bytes, *, create: bool) -> int:
    if create:
        with suppress(FileExistsError):
            os.mkdir(name, _FOLDER_MODE, dir_fd=parent)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=parent)


def _exists(folder: int, name: str | bytes) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _complete_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the complete lines of a file; cut off a part that a killed process left at its end."""
    length_bytes = 0
    for line in file:
        if line.endswith(b"\n"):
            length_bytes += len(line)
            yield line
    file.truncate(length_bytes)


def _sync(file: IO[bytes], modified: datetime | None) -> None:
    """Sync before the rename: after a power failure, a file with its name and size is complete."""
    file.flush()
    if modified is not None:
        os.utime(file.fileno(), (modified.timestamp(), modified.timestamp()))
    os.fsync(file.fileno())
