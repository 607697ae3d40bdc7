"""Nothing of ours uses what another distribution has not made public (ADR 0006).

What begins with an underscore, and what replaces an attribute of a module or class of others, can
change with each of their releases.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from tests.support.public_apis import names_of_tree, violations

_ROOT = Path(__file__).parents[2]
# The one exception, which ADR 0013 explains.
_PATCHES = "workers/keyturn_workers/process/property_tolerance.py"


def _files() -> list[Path]:
    return sorted(
        path
        for folder in ("contracts", "workers", "tools")
        for path in _ROOT.glob(f"{folder}/**/*.py")
    )


@cache
def _ours() -> set[str]:
    return names_of_tree(_files())


@pytest.mark.slow
def test_only_public_names_of_others_are_used() -> None:
    found = {
        str(path.relative_to(_ROOT)): places
        for path in _files()
        if (places := violations(path.read_text(), _ours()))
    }
    found.pop(_PATCHES, None)
    assert found == {}


def test_the_exception_is_one() -> None:
    """A module that patches nothing any more is no exception."""
    found = violations((_ROOT / _PATCHES).read_text(), set())
    assert [place for place in found if ": writes to " in place]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(queue):\n    return queue._consumer_tag", "2: uses queue._consumer_tag"),
        ("async def f(m):\n    await m.channel._channel.close()", "2: uses m.channel._channel"),
        ("tag = getattr(queue, '_consumer_tag')", "1: uses _consumer_tag by getattr"),
        (("import faststream\nclass A(faststream.FastStream):\n    def f(self):\n"
         "        self._should_exit = self._unheard_of"), "4: uses self._unheard_of"),
        ("from aiohttp import _websocket", "1: imports aiohttp._websocket"),
        ("from faststream._internal.broker import BrokerUsecase",
         "1: imports faststream._internal.broker.BrokerUsecase"),
        ("import faststream._internal", "1: imports faststream._internal"),
        ("import asyncio\nasyncio.sleep = None", "2: writes to asyncio"),
        ("from aiormq import Channel\nChannel.rpc = None", "2: writes to aiormq.Channel"),
        ("from pamqp import decode\ndecode.METHODS['table'] = None",
         "2: writes to pamqp.decode.METHODS"),
        ("from pamqp import decode as d\nsetattr(d, 'table', None)", "2: writes to pamqp.decode"),
        ("import pamqp.decode\nname = 'x'\nsetattr(pamqp.decode, name, None)",
         "3: writes to pamqp.decode"),
        ("from aiormq import Channel\ndel Channel.rpc", "2: writes to aiormq.Channel"),
        (("from faststream.rabbit.subscriber import RabbitSubscriber\n"
         "def f(subscriber: RabbitSubscriber):\n    subscriber.consume = print"),
         "3: writes to faststream.rabbit.subscriber.RabbitSubscriber"),
        ("import aiormq\ndef f(channel: 'aiormq.Channel'):\n    channel.consumers['a'] = print",
         "3: writes to aiormq.Channel.consumers"),
    ],
)  # fmt: skip
def test_each_use_of_something_private_is_found(source: str, expected: str) -> None:
    found = violations(source, set())
    assert expected in found


@pytest.mark.parametrize(
    "source",
    [
        "class A:\n    def f(self):\n        self._a = 1\n        return self._a",
        (
            "class A:\n    def __init__(self, a):\n        self._a = a\n"
            "    def __eq__(self, other):\n        return self._a == other._a"
        ),
        "class B:\n    def f(self):\n        return self._inherited",
        "from keyturn import a\ndef f(b: a.B):\n    return b.c._inherited, a._inherited",
        "import os\nos.environ['A'] = 'b'",
        ("from types import FrameType\ndef f(frame: FrameType):\n    frame.f_trace_opcodes = True"),
        "from __future__ import annotations\nfrom keyturn import _private",
        "from aiormq import Channel\nclass A(Channel):\n    def f(self):\n        self.a = 1",
        "from aiormq import Channel\ndef f(own: dict, Channel: object):\n    own['a'] = 1",
        "from collections import namedtuple\nP = namedtuple('P', 'x')\nP(1)._replace(x=2)",
    ],
)
def test_what_is_ours_may_be_private(source: str) -> None:
    assert violations(source, {"_inherited"}) == []
