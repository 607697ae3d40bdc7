"""Style sheets, scripts and icons: read once, named by their hash, cached for ever (SPEC 16.3).

The URL that pages use holds a hash of the content, so a browser never asks again, and an upgrade
is seen at once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException
from starlette.responses import Response

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from starlette.requests import Request

_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_IMMUTABLE: Final = "public, max-age=31536000, immutable"
_HASH_CHARACTERS: Final = 16


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file as served."""

    body: bytes
    media_type: str
    version: str


class StaticFiles:
    """All files of the package's folder `static` with a type that pages use."""

    def __init__(self) -> None:
        folder = files("keyturn_workers.console.web") / "static"
        self._files = dict(_read(folder, ""))

    def url(self, name: str) -> str:
        """The address of a file, with its version.

        Raises:
            KeyError: there is no such file.
        """
        return f"/static/{name}?v={self._files[name].version}"

    async def serve(self, request: Request) -> Response:
        """Answer `GET /static/{name}`."""
        file = self._files.get(request.path_params["name"])
        if file is None:
            raise HTTPException(404)
        etag = f'"{file.version}"'
        is_current = request.query_params.get("v") == file.version
        headers = {"ETag": etag, "Cache-Control": _IMMUTABLE if is_current else "no-cache"}
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(file.body, media_type=file.media_type, headers=headers)


def _read(folder: Traversable, prefix: str) -> list[tuple[str, StaticFile]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _read(entry, f"{prefix}{entry.name}/")
            continue
        media_type = _TYPES.get(entry.name.rpartition(".")[2])
        if media_type is not None:
            body = entry.read_bytes()
            version = hashlib.sha256(body).hexdigest()[:_HASH_CHARACTERS]
            found.append((f"{prefix}{entry.name}", StaticFile(body, media_type, version)))
    return found
