"""A storage of files for Django: `FileField`, `ImageField` and the admin, on Keyturn.

    STORAGES = {
        "default": {
            "BACKEND": "keyturn.django.KeyturnStorage",
            "OPTIONS": {"project": "acme", "location": "media"},
        },
        "staticfiles": {...},
    }

Needs `keyturn[django]`. The gateway and the project's API key are the options `gateway` and
`api_key`, or `KEYTURN_GATEWAY_URL` and `KEYTURN_API_KEY`.

A key can be used only once, even if its object was deleted since; only an upload can detect that.
So `save` picks another name whenever an upload is rejected because of its key. `delete` returns
when the request is on its queue: a moment later the file cannot be opened, and the delete is final
after two leases.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final, Self

from django.conf import settings  # type: ignore[import-untyped]
from django.core.files import File  # type: ignore[import-untyped]
from django.core.files.storage import Storage  # type: ignore[import-untyped]
from django.utils import timezone  # type: ignore[import-untyped]

from keyturn.fsspec import KeyturnFileSystem

LINK_EXPIRES_S: Final = 3600


class StoredFile(File):  # type: ignore[misc]
    """A file that is read in ranges, or a new one. Made by `KeyturnStorage.open`."""

    def __init__(self, open_file: Callable[[str], Any], name: str, mode: str) -> None:
        super().__init__(open_file(mode), name)
        self._open_file = open_file

    def open(self, mode: str | None = None) -> Self:
        """Go back to the beginning; reopen a closed file."""
        if self.closed:
            self.file = self._open_file(mode or self.mode)
        else:
            self.seek(0)
        return self


class KeyturnStorage(Storage):  # type: ignore[misc]
    """The objects of a project below a location, as the files of Django.

    `url` is a link: it opens the file without the API key until it expires, or until the project's
    key is rotated. So a page gets a new link each time.

    Args:
        project: The project's id.
        location: The folder that names are relative to; the project itself by default.
        gateway: The gateway's address; `KEYTURN_GATEWAY_URL` by default.
        api_key: The project's current API key; `KEYTURN_API_KEY` by default.
        link_expires_s: Seconds that a link is valid, 1 to 604800 (7 days).
        link_inline: True to let a browser show a linked file, instead of saving it.

    Raises:
        SettingsError: there is no gateway or no API key.
    """

    def __init__(
        self,
        *,
        project: str,
        location: str = "",
        gateway: str | None = None,
        api_key: str | None = None,
        link_expires_s: int = LINK_EXPIRES_S,
        link_inline: bool = False,
    ) -> None:
        self._files = KeyturnFileSystem(gateway=gateway, api_key=api_key)
        self._folder = f"{project}/{location}".rstrip("/")
        self._link_options = {"expiration": link_expires_s, "inline": link_inline}
        self._options = {
            "project": project,
            "location": location,
            "gateway": gateway,
            "link_expires_s": link_expires_s,
            "link_inline": link_inline,
        }

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        """Return the arguments for migrations, which are files in a repository: no API key."""
        return "keyturn.django.KeyturnStorage", [], self._options

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def save(self, name: str | None, content: Any, max_length: int | None = None) -> str:
        """Store a file, and return its name: another one if this name was used before."""
        while True:
            try:
                saved: str = super().save(name, content, max_length)
            except FileExistsError:
                # The name's file was deleted, or the name was taken after the check.
                used = PurePosixPath(name or content.name)
                name = self.get_alternative_name(str(used.with_suffix("")), used.suffix)
                content.seek(0)
            else:
                return saved

    def _save(self, name: str, content: Any) -> str:
        content_type = getattr(content, "content_type", None)
        with self._files.open(self._path(name), "wb", content_type=content_type) as file:
            for chunk in content.chunks():
                file.write(chunk.encode() if isinstance(chunk, str) else chunk)
        return name

    def _open(self, name: str, mode: str = "rb") -> Any:
        return StoredFile(partial(self._files.open, self._path(name)), name, mode)

    def delete(self, name: str) -> None:
        """Request that a file be deleted permanently; a missing one is not an error."""
        with suppress(FileNotFoundError):
            self._files.rm_file(self._path(name), wait_s=None)

    def exists(self, name: str) -> bool:
        """Return whether the file exists. A deleted one does not, but its name stays used."""
        found: bool = self._files.exists(self._path(name))
        return found

    def listdir(self, path: str) -> tuple[list[str], list[str]]:
        """Return the names of the folders and of the files in a folder."""
        names: dict[str, list[str]] = {"directory": [], "file": []}
        for entry in self._files.ls(self._path(path)):
            names[entry["type"]].append(entry["name"].rpartition("/")[2])
        return names["directory"], names["file"]

    def size(self, name: str) -> int:
        """Return the bytes of plaintext."""
        size_bytes: int = self._files.size(self._path(name))
        return size_bytes

    def url(self, name: str | None) -> str:
        """Return a new link; anyone who has it can read the file."""
        if not name:
            raise ValueError("a file without a name has no URL")
        link: str = self._files.sign(self._path(name), **self._link_options)
        return link

    def get_modified_time(self, name: str) -> datetime | None:
        """Return when the file was stored; no rotation changes it."""
        stored_at: datetime | None = self._files.modified(self._path(name))
        if stored_at is None or settings.USE_TZ:
            return stored_at
        naive: datetime = timezone.make_naive(stored_at)
        return naive

    get_created_time = get_modified_time
