"""Files by the URL `keyturn://project/key`, for pandas, pyarrow, DuckDB and other users of fsspec.

    import pandas

    frame.to_parquet("keyturn://acme/2026/q3.parquet")
    frame = pandas.read_parquet("keyturn://acme/2026/q3.parquet")

Needs `keyturn[fsspec]`. The gateway and the project's API key are the options `gateway` and
`api_key`, or `KEYTURN_GATEWAY_URL` and `KEYTURN_API_KEY`. Reads are ranged and cached. A write
streams, and is complete when the file is closed: then the object is stored, or an error is raised.
An object is written once: appending, overwriting and moving are refused.

The API key is in no repr, JSON or pickle of a file system. If one is unpickled, such as in a worker
process of Dask, `KEYTURN_API_KEY` must be set.
"""

import asyncio
import errno
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, NoReturn, Self
from uuid import uuid4

from fsspec.asyn import AsyncFileSystem, sync, sync_wrapper  # type: ignore[import-untyped]
from fsspec.callbacks import DEFAULT_CALLBACK  # type: ignore[import-untyped]
from fsspec.spec import AbstractBufferedFile  # type: ignore[import-untyped]
from fsspec.utils import stringify_path  # type: ignore[import-untyped]
from pydantic import SecretStr

from keyturn.errors import (
    AlreadyExistsError,
    CodedError,
    DeletedKeyError,
    NotFoundError,
    NotPermittedError,
    RangeNotSatisfiableError,
    SettingsError,
    UnauthorizedError,
)
from keyturn.event_loop import Session, event_loop
from keyturn.gateway.client import Client, RejectedKey
from keyturn.gateway.listing import ListedObject, ListedPrefix
from keyturn.messages.fields import DELETED_KEYS
from keyturn.settings import GatewayClientSettings
from keyturn.tls import GATEWAY, client_context

DELETE_WAIT_S: Final = 60
DELETES_AT_ONCE: Final = 8
_FILE_ERRORS: Final[Mapping[type[CodedError], int]] = {
    NotFoundError: errno.ENOENT,
    AlreadyExistsError: errno.EEXIST,
    DeletedKeyError: errno.EEXIST,
    UnauthorizedError: errno.EACCES,
    NotPermittedError: errno.EACCES,
}


def _refuse(what: str) -> NoReturn:
    raise io.UnsupportedOperation(
        f"an object of Keyturn is written once, so {what}: write another key instead"
    )


class KeyturnFileSystem(AsyncFileSystem):  # type: ignore[misc]
    """Objects as files, and the prefixes of their keys up to a `/` as folders.

    A path is `project/key`. Its methods are fsspec's; `fsspec.filesystem("keyturn")` makes it.
    With `asynchronous=True`, call `aclose` on your event loop at the end.

    Args:
        gateway: The gateway's address; `KEYTURN_GATEWAY_URL` by default.
        api_key: The project's current API key, as text; `KEYTURN_API_KEY` by default.
        options: The options of every asynchronous file system of fsspec.

    Raises:
        SettingsError: there is no gateway or no API key.
        TypeError: the API key is not text.
    """

    protocol: ClassVar[str] = "keyturn"

    def __init__(
        self, *, gateway: str | None = None, api_key: str | None = None, **options: Any
    ) -> None:
        if api_key is not None and not isinstance(api_key, str):
            # fsspec finds a cached instance by the text of its options, which is the same for all
            # secrets.
            raise TypeError(f"api_key must be a string, not {type(api_key).__name__}")
        settings = GatewayClientSettings.read()
        url = gateway or settings.gateway_url
        secret = settings.api_key if api_key is None else SecretStr(api_key)
        if url is None:
            raise SettingsError("no gateway: set KEYTURN_GATEWAY_URL, or pass gateway=")
        if secret is None:
            raise SettingsError(
                "no API key: set KEYTURN_API_KEY, or pass api_key=; a pickle does not contain it"
            )
        ca = settings.gateway_ca_file
        tls = None if ca is None else client_context(GATEWAY, ca, with_system=True)
        self._session = Session(partial(Client.connect, url, secret, tls=tls))
        if not options.get("asynchronous"):
            options["loop"] = event_loop().asyncio_loop  # fsspec would start another thread
        super().__init__(**options)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop of this process for blocking methods."""
        return None if self.asynchronous else event_loop().asyncio_loop

    @property
    def storage_options(self) -> dict[str, Any]:
        """The options without the API key: fsspec puts them into JSON and pickles."""
        return self._storage_options

    @storage_options.setter
    def storage_options(self, options: dict[str, Any]) -> None:
        self._storage_options = {n: v for n, v in options.items() if n != "api_key"}

    async def aclose(self) -> None:
        """Close the connections. A blocking file system closes them at exit."""
        await self._session.aclose()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """Return `project/key` from a URL or a path, or from each in a list."""
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return stringify_path(path).removeprefix("keyturn://").strip("/")

    @asynccontextmanager
    async def _object(self, path: str) -> AsyncIterator[tuple[Client, str, str]]:
        """Yield the client, and a path's project and key; rejections become errors of files."""
        project, _, key = self._strip_protocol(path).partition("/")
        try:
            yield await self._session.client(), project, key
        except tuple(_FILE_ERRORS) as exc:
            raise OSError(_FILE_ERRORS[type(exc)], exc.detail or exc.code, path) from exc

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        async with self._object(path) as (client, project, key):
            if key:
                with suppress(NotFoundError):
                    found = await client.stat(project, key)
                    return {
                        "name": path,
                        "size": found.size_bytes,
                        "type": "file",
                        "ETag": found.etag,
                        "last_modified": found.last_modified,
                        "content_type": found.content_type,
                        "metadata": dict(found.metadata),
                    }
            below = client.list(project, prefix=key and f"{key}/")
            first = await anext(below, None)
            await below.aclose()
            if key and first is None:
                raise NotFoundError("no such file or folder")
        return {"name": path, "size": 0, "type": "directory"}

    async def _entries(self, path: str, **options: Any) -> list[dict[str, Any]]:
        """Return the entries of a folder; for a file, the file itself."""
        async with self._object(path) as (client, project, key):
            listing = client.list(project, prefix=key and f"{key}/", **options)
            entries = [_entry(project, entry) async for entry in listing]
        return entries if entries or not key else [await self._info(path)]

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        entries = await self._entries(path, delimiter="/")
        return entries if detail else [entry["name"] for entry in entries]

    async def _find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, **options: Any
    ) -> Any:
        if withdirs or maxdepth is not None:
            return await super()._find(path, maxdepth, withdirs, **options)
        entries: list[dict[str, Any]] = []
        with suppress(FileNotFoundError):
            # One listing of the whole subtree, instead of one for each folder.
            entries = await self._entries(path)
        found = {entry["name"]: entry for entry in entries}
        return found if options.get("detail") else sorted(found)

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        first = start or 0
        if end is not None and min(first, end) < 0:
            first, end, _step = slice(start, end).indices((await self._info(path))["size"])
        length = None if end is None else end - first
        if length is not None and length <= 0:
            return b""
        async with self._object(path) as (client, project, key):
            with suppress(RangeNotSatisfiableError):  # it starts after the end
                async with client.open(project, key, start=first, length=length) as opened:
                    return await opened.read()
        return b""

    async def _get_file(
        self, rpath: str, lpath: str, callback: Any = DEFAULT_CALLBACK, **_: Any
    ) -> None:
        target = Path(lpath)
        if await asyncio.to_thread(target.is_dir):  # a folder of a recursive get
            return
        part = target.with_name(f"{uuid4().hex}.part")
        try:
            async with (
                self._object(rpath) as (client, project, key),
                client.open(project, key) as opened,
            ):
                callback.set_size(opened.length)
                with part.open("xb") as file:
                    async for piece in opened.chunks():
                        await asyncio.to_thread(file.write, piece)
                        callback.relative_update(len(piece))
            part.replace(target)  # only a complete body takes the name
        finally:
            part.unlink(missing_ok=True)

    async def _put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        await self._pipe_file(rpath, Path(lpath), **options)

    async def _pipe_file(
        self,
        path: str,
        value: bytes | Path | AsyncIterator[bytes],
        *_: Any,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        **__: Any,
    ) -> None:
        async with self._object(path) as (client, project, key):
            await client.upload(project, key, value, content_type=content_type, metadata=metadata)

    async def _cp_file(self, path1: str, path2: str, **_: Any) -> None:
        async with self._object(path1) as (client, project, key):
            if (await self._info(path1))["type"] == "directory":
                return
            async with client.open(project, key) as opened:
                await self._pipe_file(
                    path2,
                    opened.chunks(),
                    content_type=opened.content_type,
                    metadata=opened.metadata,
                )

    async def _rm_file(
        self, path: str, *, wait_s: int | None = DELETE_WAIT_S, into: list[str] | None = None
    ) -> None:
        if into is not None:
            into.append(path)
            return
        async with self._object(path) as (client, project, key):
            await client.delete(project, key, wait_s=wait_s)

    async def _rm(
        self,
        path: str | list[str],
        recursive: bool = False,
        batch_size: int | None = None,
        maxdepth: int | None = None,
        **_: Any,
    ) -> None:
        paths: list[str] = []
        # fsspec finds the contents of a folder, and the matches of a pattern.
        await super()._rm(path, recursive, maxdepth=maxdepth, into=paths)
        keys_of: dict[str, list[str]] = {}
        for project, _slash, key in (one.partition("/") for one in paths):
            if key:
                keys_of.setdefault(project, []).append(key)
            elif not recursive:  # else it is a folder, like others: only its contents are deleted
                raise IsADirectoryError(
                    errno.EISDIR,
                    "names a whole project; recursive=True deletes all of its objects",
                    project,
                )
        slots = asyncio.Semaphore(batch_size or DELETES_AT_ONCE)

        async def delete(project: str, keys: list[str]) -> None:
            async with slots, self._object(f"{project}/{keys[0]}") as (client, _project, _key):
                with suppress(NotFoundError) if recursive else nullcontext():
                    receipt = await client.delete_many(project, keys, wait_s=DELETE_WAIT_S)
                    _raise_rejected(project, receipt.rejected, missing_ok=recursive)

        await asyncio.gather(
            *(
                delete(project, keys[start : start + DELETED_KEYS])
                for project, keys in keys_of.items()
                for start in range(0, len(keys), DELETED_KEYS)
            )
        )

    async def _sign(self, path: str, expiration: int = 100, *, inline: bool = False) -> str:
        """Return a link that opens the object without the API key for `expiration` seconds."""
        async with self._object(path) as (client, project, key):
            return (await client.link(project, key, expires_s=expiration, inline=inline)).url

    sign = sync_wrapper(_sign)

    def modified(self, path: str) -> datetime | None:
        """Return when the content was stored; no rotation changes it."""
        stored_at: datetime | None = self.info(path).get("last_modified")
        return stored_at

    created = modified

    def mv(self, path1: str, path2: str, **_: Any) -> NoReturn:  # noqa: ARG002  # fsspec's
        """Refuse to move an object.

        Raises:
            io.UnsupportedOperation: always; copy the object, and delete the first one.
        """
        _refuse("it cannot be moved")

    def _open(self, path: str, mode: str = "rb", **options: Any) -> "KeyturnFile":
        if mode not in ("rb", "wb", "xb"):
            _refuse(f"the mode {mode!r} is not supported")
        if mode != "rb" and self.isfile(path):
            raise FileExistsError(errno.EEXIST, "an object is written once", path)
        return KeyturnFile(self, path, mode, **options)


class KeyturnFile(AbstractBufferedFile):  # type: ignore[misc]
    """An object that is read in ranges, or a new one that is written from its beginning to its end.

    A write below one block (5 MiB) is one request at the end; a longer one streams. If a `with`
    block fails, or the file is never closed, nothing is stored.
    """

    _upload: "_StreamedUpload | None" = None
    _is_discarded = False

    def _upload_chunk(self, final: bool = False) -> bool:
        if final:
            if self.autocommit:
                self.commit()
            return False  # in a transaction, the rest stays in the buffer until `commit`
        if self._upload is None:
            store = partial(self.fs._pipe_file, self.path, **self.kwargs)  # noqa: SLF001  # fsspec's name
            self._upload = sync(self.fs.loop, _StreamedUpload.begin, store)
        sync(self.fs.loop, self._upload.send, self.buffer.getvalue())
        return True

    def commit(self) -> None:
        """Complete the upload, and wait until the object is stored.

        Raises:
            FileExistsError: the key holds an object, or was deleted.
            KeyturnError: any other rejection, or the outcome is unknown.
        """
        if self._is_discarded:
            return
        rest = self.buffer.getvalue()
        if self._upload is None:
            self.fs.pipe_file(self.path, rest, **self.kwargs)
        else:
            sync(self.fs.loop, self._upload.finish, rest)

    def discard(self) -> None:
        """End the upload: nothing is stored."""
        self._is_discarded = self.forced = self.closed = True
        if self._upload is not None:
            # Without waiting: a finalizer may run on the loop's own thread.
            with suppress(RuntimeError):  # the loop and the upload have ended
                self.fs.loop.call_soon_threadsafe(self._upload.cancel)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None and self.writable():
            self.discard()
        self.close()

    def __del__(self) -> None:
        if self.writable():
            self.discard()


class _StreamedUpload:
    """An upload whose body arrives piece by piece. Use `begin`."""

    def __init__(self, store: Callable[[AsyncIterator[bytes]], Awaitable[None]]) -> None:
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._storing = asyncio.ensure_future(store(self._body()))
        # The error of an abandoned upload is not reported.
        self._storing.add_done_callback(lambda task: task.cancelled() or task.exception())

    @classmethod
    async def begin(cls, store: Callable[[AsyncIterator[bytes]], Awaitable[None]]) -> Self:
        """Begin an upload on the running loop."""
        return cls(store)

    async def _body(self) -> AsyncIterator[bytes]:
        while (piece := await self._pieces.get()) is not None:
            yield piece

    async def send(self, piece: bytes | None) -> None:
        """Pass on a piece, None at the end; raise the error that ended the upload, if any."""
        sending = asyncio.ensure_future(self._pieces.put(piece))
        await asyncio.wait((sending, self._storing), return_when=asyncio.FIRST_COMPLETED)
        if self._storing.done():
            sending.cancel()
            self._storing.result()

    async def finish(self, rest: bytes) -> None:
        """Pass on the last piece, and wait for the outcome."""
        await self.send(rest)
        await self.send(None)
        await self._storing

    def cancel(self) -> None:
        """Cancel the upload; the gateway drops an incomplete body."""
        self._storing.cancel()


def _raise_rejected(project: str, rejected: Iterable[RejectedKey], *, missing_ok: bool) -> None:
    """Raise the error of the first key that was not deleted; that of a folder is ignored."""
    for one in rejected:
        is_missing = one.code == NotFoundError.code
        if not (is_missing and missing_ok):
            number = errno.ENOENT if is_missing else errno.EIO
            raise OSError(number, f"{one.code}: {one.detail}", f"{project}/{one.key}")


def _entry(project: str, listed: ListedObject | ListedPrefix) -> dict[str, Any]:
    if isinstance(listed, ListedPrefix):
        name = f"{project}/{listed.prefix.removesuffix('/')}"
        return {"name": name, "size": 0, "type": "directory"}
    return {
        "name": f"{project}/{listed.key}",
        "size": listed.size_bytes,
        "type": "file",
        "changed_at": listed.changed_at,
    }
