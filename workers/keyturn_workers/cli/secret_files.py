"""Files with secrets: written atomically, readable only by their owner."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from keyturn_workers.cli.errors import CommandError

_OWNER_ONLY: Final = 0o600


def write_secret(path: Path, content: str | bytes, *, force: bool = False) -> None:
    """Write a file of mode 0600; `force` replaces an existing one atomically.

    Raises:
        CommandError: the file exists.
        OSError: it cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    # The name appears only after everything is written: never half a file or a wider mode.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, _OWNER_ONLY)
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
