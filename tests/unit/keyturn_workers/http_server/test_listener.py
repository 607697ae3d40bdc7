"""The gateway's listening sockets: their options reach each connection (SPEC 9.2)."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvloop

from keyturn_workers.http_server.server import AddressError, open_listeners

_IDLE_TIMEOUT_S = 1.5


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_an_accepted_connection_has_the_options_of_its_listener(
    new_loop: type[asyncio.AbstractEventLoop],
) -> None:
    """Both event loops leave it to the kernel, which copies them."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        options = runner.run(_options_of_an_accepted_connection())
    assert options == {"user timeout, ms": 1500, "unsent bytes": 128 * 1024}


async def _options_of_an_accepted_connection() -> dict[str, int]:
    loop = asyncio.get_running_loop()
    made: asyncio.Future[asyncio.BaseTransport] = loop.create_future()

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.set_result(transport)

    (listener,) = await open_listeners("127.0.0.1", 0, idle_timeout_s=_IDLE_TIMEOUT_S)
    async with asyncio.timeout(5), await loop.create_server(Accepted, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        transport = await made
        sock = transport.get_extra_info("socket")
        options = {
            "user timeout, ms": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
            "unsent bytes": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT),
        }
        writer.transport.abort()
        transport.abort()  # type: ignore[attr-defined]
    return options


async def test_a_name_with_several_addresses_has_a_socket_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()

    async def two(*arguments: object, **more: object) -> list[object]:
        del arguments, more
        v4 = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
        other = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 0))
        return [v4, other, v4]

    monkeypatch.setattr(loop, "getaddrinfo", two)
    listeners = await open_listeners("gateway.test", 0, idle_timeout_s=_IDLE_TIMEOUT_S)
    assert [each.getsockname()[0] for each in listeners] == ["127.0.0.1", "127.0.0.2"]
    for each in listeners:
        each.close()


async def test_an_address_in_use_is_reported_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(AddressError, match=f"^cannot listen on 127.0.0.1 port {port}$"):
            await open_listeners("127.0.0.1", port, idle_timeout_s=_IDLE_TIMEOUT_S)


async def test_an_address_of_another_host_is_reported() -> None:
    with pytest.raises(AddressError):
        await open_listeners("192.0.2.1", 0, idle_timeout_s=_IDLE_TIMEOUT_S)
