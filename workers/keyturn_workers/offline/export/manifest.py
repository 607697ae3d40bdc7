"""The manifest of an export: JSON lines, one for each object, after a first one for the project.

An export that was interrupted continues from its manifest. Anyone who can write to the destination
can change it, so it is checked like any other untrusted input.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from keyturn_workers.core.errors import ExportError
from keyturn_workers.offline.export.names import candidates, folded, is_path

MANIFEST: Final = "keyturn-manifest"
_FORMAT: Final = 1
_CACHE_KIB: Final = 16 * 1024


def _check_path(path: str) -> str:
    if not is_path(path):
        raise ValueError("not a path below the destination")
    return path


class Record(BaseModel):
    """One exported object.

    Attributes:
        key: The object's key.
        path: Where it is below the destination, with `/` between the parts.
        size: Bytes of the file.
        sha256: Of the file, in hex.
        etag: Of the object in a bucket, as its storage gave it.
        content_type: As stored with the object; not authenticated.
        metadata: The caller's own, decoded; not authenticated.
        last_modified: When the content was stored; not authenticated.
    """

    model_config = ConfigDict(frozen=True)

    key: str
    path: Annotated[str, AfterValidator(_check_path)]
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    etag: str | None = None
    content_type: str | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    last_modified: datetime | None = None

    def line(self) -> bytes:
        """Return the record as a line; pure ASCII, so that nothing in it can control a terminal."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True)).encode() + b"\n"


def first_line(project: str) -> bytes:
    """Return the first line of this project's manifest."""
    return json.dumps({"export": _FORMAT, "project": project}).encode() + b"\n"


def parse_lines(lines: Iterable[bytes], name: str, project: str) -> Iterator[Record]:
    """Yield the records of a manifest, whose `lines` include the first one.

    Raises:
        ExportError: it belongs to another project, or is not a manifest.
    """
    for number, line in enumerate(lines, 1):
        if number == 1:
            if line != first_line(project):
                raise ExportError(
                    f"{name} does not belong to an export of {project}; use another destination"
                )
            continue
        try:
            yield Record.model_validate_json(line)
        except ValidationError:
            raise ExportError(
                f"line {number} of {name} is not valid; remove it, and its object is exported again"
            ) from None


class Index:
    """The exported objects, and the names that are taken: on disk, since there may be millions.

    Close it after use (`contextlib.closing`).
    """

    def __init__(self) -> None:
        # A database without a name is a temporary file of SQLite's own.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(
            f"""
            PRAGMA journal_mode = OFF;
            PRAGMA synchronous = OFF;
            PRAGMA cache_size = -{_CACHE_KIB};
            CREATE TABLE exported (key TEXT PRIMARY KEY, path TEXT, size INTEGER, etag TEXT)
                WITHOUT ROWID;
            CREATE TABLE stored (path TEXT PRIMARY KEY, size INTEGER, etag TEXT) WITHOUT ROWID;
            CREATE TABLE names (path TEXT PRIMARY KEY, owner TEXT) WITHOUT ROWID;
            """
        )

    def close(self) -> None:
        """Close and remove the file."""
        self._database.close()

    def add(self, record: Record) -> None:
        """Record an object as exported."""
        self._database.execute(
            "INSERT OR REPLACE INTO exported VALUES (?, ?, ?, ?)",
            (record.key, record.path, record.size, record.etag),
        )

    def find(self, key: str) -> tuple[str, int] | None:
        """Return path and size of an object, if it is exported."""
        found: tuple[str, int] | None = self._database.execute(
            "SELECT path, size FROM exported WHERE key = ?", (key,)
        ).fetchone()
        return found

    def add_stored(self, path: str, size_bytes: int, etag: str) -> None:
        """Record an object that is in the destination's bucket, by any writer."""
        self._database.execute(
            "INSERT OR REPLACE INTO stored VALUES (?, ?, ?)", (path, size_bytes, etag)
        )

    def find_stored(self, key: str) -> int | None:
        """Return the size of an exported object that is still stored unchanged, or None."""
        found: tuple[int] | None = self._database.execute(
            "SELECT size FROM exported JOIN stored USING (path, size, etag) WHERE key = ?", (key,)
        ).fetchone()
        return None if found is None else found[0]

    def take(self, path: str, owner: str) -> bool:
        """Claim a path for an owner; return False if another one has it."""
        row = (folded(path), owner)
        self._database.execute("INSERT OR IGNORE INTO names VALUES (?, ?)", row)
        found = "SELECT 1 FROM names WHERE path = ? AND owner = ?"
        return self._database.execute(found, row).fetchone() is not None

    def take_all(self, record: Record) -> None:
        """Claim the paths of a recorded object and of its folders."""
        for owner, path in zip(_steps(record.key), _steps(record.path), strict=False):
            self.take(path.removesuffix("/"), owner)

    def path_for(self, key: str, is_free: Callable[[str], bool]) -> str:
        """Claim a path for an object, and one for each of its folders, which all below it share.

        `is_free` checks that no file is at an unclaimed path.
        """
        path = ""
        for owner in _steps(key):
            segment = owner.removesuffix("/").rpartition("/")[2]
            for name in candidates(segment, owner):
                below = f"{path}{name}"
                if (owner != key or is_free(below)) and self.take(below, owner):
                    break
            path = f"{below}/"
        return path.removesuffix("/")


def _steps(text: str) -> Iterator[str]:
    """Yield a key or path up to each of its separators, with the separator, and all of it."""
    end = text.find("/")
    while end >= 0:
        yield text[: end + 1]
        end = text.find("/", end + 1)
    yield text
