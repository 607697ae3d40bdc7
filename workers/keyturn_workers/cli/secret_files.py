"""Files with secrets: small ones read; written atomically, readable only by their owner."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

import typer

from keyturn_workers.cli.errors import CommandError

_OWNER_ONLY: Final = 0o600
_MAX_BYTES: Final = 4096


def read_secret(path: Path) -> str:
    """The text of a small file with a secret.

    Raises:
        typer.BadParameter: it cannot be read, is too long, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise typer.BadParameter(f"{path}: longer than {_MAX_BYTES} bytes")
        return data.decode()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise typer.BadParameter(f"{path}: {reason}") from None


def write_secret(path: Path, content: str | bytes, *, force: bool = False) -> None:
    """Write a file of mode 0600; `force` replaces an existing one atomically, with its owner.

    Raises:
        CommandError: the file exists.
        OSError: it cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    # The name appears only after everything is written: never half a file or a wider mode.
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as exc:
        # Names the file that was asked for.
        raise OSError(exc.errno, exc.strerror, str(path)) from exc
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, _OWNER_ONLY)
            if force:
                _keep_owner(descriptor, path)
            os.fsync(descriptor)
        if force:
            os.replace(temporary, path)  # noqa: PTH105  # a path as mkstemp gives it
        else:
            os.link(temporary, path)  # fails if the name exists, unlike a rename
    except FileExistsError as exc:
        raise CommandError(f"{path} already exists") from exc
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108  # as above


def _keep_owner(descriptor: int, path: Path) -> None:
    """Root replaces a file that a process of another user must still read."""
    if os.geteuid() == 0 and path.exists():
        before = path.stat()
        os.fchown(descriptor, before.st_uid, before.st_gid)
