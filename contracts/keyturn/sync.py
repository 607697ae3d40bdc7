"""Blocking clients, for programs without an event loop: Django, Flask, scripts.

    from keyturn.sync import Client

    with Client("https://files.example.com", api_key) as client:
        client.upload("acme", "reports/q3.pdf", Path("q3.pdf"))
        with client.open("acme", "reports/q3.pdf") as opened:
            print(opened.read())

Each method has the arguments and errors of the method of the same name in `keyturn.gateway` or
`keyturn.publisher`. All clients run on one event loop in its own thread: any thread may use them,
and calls of several threads run concurrently. Make a client once and keep it. It is closed at exit,
if not before, and a forked child opens new connections at its first call.
"""

import ssl
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from functools import partial, wraps
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Self,
    TypeVar,
    overload,
)

from pydantic import SecretStr

from keyturn import gateway, publisher
from keyturn.api_key import ApiKey
from keyturn.event_loop import Session, event_loop
from keyturn.gateway.listing import PAGE_MAX_ENTRIES, ListedObject, ListedPrefix
from keyturn.gateway.transport import CONNECT_TIMEOUT_S, IDLE_TIMEOUT_S, MAX_CONNECTIONS
from keyturn.messages.events import DeleteRejected, ObjectDeleted
from keyturn.publisher.client import ALARM_TIMEOUT_S, PUBLISH_TIMEOUT_S
from keyturn.settings import PublisherSettings, S3Settings

if TYPE_CHECKING:
    from keyturn.gateway.responses import ObjectInfo

__all__ = ["Client", "OpenObject", "Publisher"]

_Client = TypeVar("_Client")
_Result = TypeVar("_Result")
_Arguments = ParamSpec("_Arguments")


class _Blocking(Generic[_Client]):
    """A client whose calls block the calling thread until they are done."""

    def __init__(self, session: Session[_Client]) -> None:
        self._session = session

    async def _client(self) -> _Client:
        return await self._session.client()

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        event_loop().run(self._session.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _blocking(
    method: Callable[Concatenate[_Client, _Arguments], Coroutine[Any, Any, _Result]],
) -> Callable[Concatenate[_Blocking[_Client], _Arguments], _Result]:
    """Return a blocking version of an asynchronous client's method."""

    @wraps(method)
    def call(
        self: _Blocking[_Client], /, *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> _Result:
        async def run() -> _Result:
            return await method(await self._client(), *args, **kwargs)

        return event_loop().run(run())

    return call


def _iterating(
    method: Callable[Concatenate[_Client, _Arguments], AsyncGenerator[_Result, None]],
) -> Callable[Concatenate[_Blocking[_Client], _Arguments], Generator[_Result, None, None]]:
    """Return a blocking version of a method that yields. Close the generator to end it early."""

    @wraps(method)
    def iterate(
        self: _Blocking[_Client], /, *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> Generator[_Result, None, None]:
        async def begin() -> AsyncGenerator[_Result, None]:
            return method(await self._client(), *args, **kwargs)

        return _items(event_loop().run(begin()))

    return iterate


def _items(source: AsyncGenerator[_Result, None]) -> Generator[_Result, None, None]:
    async def following() -> _Result:
        return await anext(source)

    async def end() -> None:
        await source.aclose()

    loop = event_loop()
    try:
        while True:
            try:
                item = loop.run(following())
            except StopAsyncIteration:
                return
            yield item
    finally:
        loop.release(end())


def _secret(api_key: ApiKey) -> SecretStr:
    # The asynchronous client refuses anything but text.
    return SecretStr(api_key) if isinstance(api_key, str) else api_key


class OpenObject:
    """An object, or a range of one, whose body is not read yet. Made by `Client.open`.

    Attributes:
        info: Its size and metadata.
        length: Bytes of plaintext to come, of the whole object or the range.
    """

    def __init__(self, opened: gateway.OpenObject) -> None:
        self.info: ObjectInfo = opened.info
        self.length = opened.length
        self._opened = opened

    def chunks(self) -> Generator[bytes, None, None]:
        """Yield the body in pieces of any size, once; complete only if it ends without an error.

        Raises:
            IncompleteBodyError: the body ended before its length, or stalled.
        """
        return _items(self._opened.chunks())

    def read(self) -> bytes:
        """Return the rest of the body, all of it in memory.

        Raises:
            IncompleteBodyError: as `chunks`; nothing is returned.
        """
        return event_loop().run(self._opened.read())


class Client(_Blocking[gateway.Client]):
    """Access to one project through a gateway; needs `keyturn[gateway]`.

    It has every call of `keyturn.gateway.Client`.

    Args:
        url: The gateway's address, such as `https://files.example.com`.
        api_key: The project's current API key.
        connect_timeout_s: Seconds to make one connection.
        idle_timeout_s: Seconds without progress after which a request fails.
        max_connections: Connections at once; further requests wait for one.
        tls: The authorities that verify the gateway's certificate; the system's by default.

    Raises:
        TypeError, MalformedRequestError, SettingsError: as `keyturn.gateway.Client.connect`.
    """

    def __init__(
        self,
        url: str,
        api_key: ApiKey,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        max_connections: int = MAX_CONNECTIONS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        connect = partial(
            gateway.Client.connect,
            url,
            api_key,
            connect_timeout_s=connect_timeout_s,
            idle_timeout_s=idle_timeout_s,
            max_connections=max_connections,
            tls=tls,
        )
        super().__init__(Session(connect))
        self._api_key = _secret(api_key)
        event_loop().run(self._client())

    async def _client(self) -> gateway.Client:
        return (await self._session.client()).with_api_key(self._api_key)

    def with_api_key(self, api_key: ApiKey) -> Self:
        """Return a client with another API key, on this one's connections and with their life.

        Args:
            api_key: Another project's, or the new one after a rotation.
        """
        other = object.__new__(type(self))
        _Blocking.__init__(other, self._session)
        other._api_key = _secret(api_key)
        return other

    stat = _blocking(gateway.Client.stat)
    upload = _blocking(gateway.Client.upload)
    delete = _blocking(gateway.Client.delete)
    delete_many = _blocking(gateway.Client.delete_many)
    link = _blocking(gateway.Client.link)
    ciphertext_link = _blocking(gateway.Client.ciphertext_link)
    upload_link = _blocking(gateway.Client.upload_link)
    keys = _blocking(gateway.Client.keys)
    rotate = _blocking(gateway.Client.rotate)
    rotation = _blocking(gateway.Client.rotation)

    @contextmanager
    def open(
        self, project: str, object_key: str, *, start: int = 0, length: int | None = None
    ) -> Iterator[OpenObject]:
        """Open an object, or a range of it, as long as the block lasts."""
        loop, stack = event_loop(), AsyncExitStack()

        async def enter() -> gateway.OpenObject:
            client = await self._client()
            opening = client.open(project, object_key, start=start, length=length)
            return await stack.enter_async_context(opening)

        try:
            yield OpenObject(loop.run(enter()))
        finally:
            loop.release(stack.aclose())

    @overload
    def list(
        self,
        project: str,
        *,
        prefix: str = "",
        delimiter: None = None,
        after: str = "",
        page_size: int = PAGE_MAX_ENTRIES,
    ) -> Generator[ListedObject, None, None]: ...

    @overload
    def list(
        self,
        project: str,
        *,
        prefix: str = "",
        delimiter: Literal["/"],
        after: str = "",
        page_size: int = PAGE_MAX_ENTRIES,
    ) -> Generator[ListedObject | ListedPrefix, None, None]: ...

    def list(self, project: str, **options: Any) -> Generator[Any, None, None]:
        """List objects in the byte order of their keys, without deleted ones."""

        async def begin() -> AsyncGenerator[ListedObject | ListedPrefix, None]:
            return (await self._client()).list(project, **options)

        return _items(event_loop().run(begin()))


class Publisher(_Blocking[publisher.Publisher]):
    """A client of one deployment of Keyturn, over its broker.

    It has every call of `keyturn.publisher.Publisher`.

    Args:
        settings: `PublisherSettings.read()`, or constructed by the caller.
        s3: The bucket for staging bodies above 256 KiB; without it they are rejected.
        publish_timeout_s: Seconds for one publish, reconnecting and confirmation included.
        alarm_timeout_s: Seconds of these that a publish waits while the broker has a memory or
            disk alarm.
        connect: True to connect now, so that a wrong address fails here; False at the first use.

    Raises:
        BrokerTlsError, BrokerUnavailableError, SettingsError: as `Publisher.open`.
    """

    def __init__(
        self,
        settings: PublisherSettings,
        *,
        s3: S3Settings | None = None,
        publish_timeout_s: float = PUBLISH_TIMEOUT_S,
        alarm_timeout_s: float = ALARM_TIMEOUT_S,
        connect: bool = True,
    ) -> None:
        open_publisher = partial(
            publisher.Publisher.open,
            settings,
            s3=s3,
            publish_timeout_s=publish_timeout_s,
            alarm_timeout_s=alarm_timeout_s,
            connect=connect,
        )
        super().__init__(Session(open_publisher))
        event_loop().run(self._client())

    connect = _blocking(publisher.Publisher.connect)
    send = _blocking(publisher.Publisher.send)
    enroll = _blocking(publisher.Publisher.enroll)
    upload = _blocking(publisher.Publisher.upload)
    upload_from_source = _blocking(publisher.Publisher.upload_from_source)
    rotate = _blocking(publisher.Publisher.rotate)
    sweep = _blocking(publisher.Publisher.sweep)
    delete = _blocking(publisher.Publisher.delete)
    delete_many = _blocking(publisher.Publisher.delete_many)
    status = _blocking(publisher.Publisher.status)
    move_dead_letters = _blocking(publisher.Publisher.move_dead_letters)
    recover = _blocking(publisher.Publisher.recover)
    wait = _blocking(publisher.Publisher.wait)
    wait_completed = _blocking(publisher.Publisher.wait_completed)
    progress = _iterating(publisher.Publisher.progress)
    events = _iterating(publisher.Publisher.events)
    worker_reports = _iterating(publisher.Publisher.worker_reports)

    def delete_outcomes(self, request_id: str) -> Mapping[str, ObjectDeleted | DeleteRejected]:
        """Return the outcomes of a delete that this publisher sent, by object key, as far as known.

        Raises:
            NotSentHereError: not sent by this publisher in this process, or forgotten.
        """

        async def outcomes() -> Mapping[str, ObjectDeleted | DeleteRejected]:
            return (await self._client()).delete_outcomes(request_id)

        return event_loop().run(outcomes())
