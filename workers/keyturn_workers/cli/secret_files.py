"""Files that hold secrets: written whole, for their owner alone."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from keyturn_workers.cli.errors import CommandError

_OWNER_ONLY: Final = 0o600


def write_secret(path: Path, content: str | bytes, *, force: bool = False) -> None:
    """Write a file of mode 0600; an existing one is replaced, as a whole, with `force` alone.

    Raises:
        CommandError: the file stands already.
        OSError: it cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    # The name is linked in only when all is written: no half file, no wider mode for a moment.
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
            os.link(temporary, path)  # fails where the name is taken, unlike a rename
    except FileExistsError as exc:
        raise CommandError(f"{path} stands already") from exc
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108  # as above
