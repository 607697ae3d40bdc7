"""The library changes nothing in its host process: no patch, no logger, no global hook."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
import types
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from aio_pika.message import decode_expiration

import keyturn.gateway
from keyturn.messages import INLINE_MAX_BYTES
from keyturn.publisher import Publisher, WaitTimeoutError
from keyturn.settings import S3Settings
from tests.integration.publisher.side import WorkerSide, answer, stored

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyturn.settings import PublisherSettings
    from tools.servers.s3 import S3Server

_LIBRARIES = (
    "aio_pika",
    "aioboto3",
    "aiobotocore",
    "aiohttp",
    "aiormq",
    "asyncio",
    "boto3",
    "botocore",
    "cryptography",
    "keyturn",
    "logging",
    "orjson",
    "pamqp",
    "pydantic",
)


def _contents(value: object) -> object:
    """What a change in place would change, too."""
    if isinstance(value, dict):
        return {repr(name): id(item) for name, item in value.items()}
    if isinstance(value, list | set | frozenset):
        return sorted(map(id, value))
    return None


def _attributes() -> Iterator[tuple[str, tuple[int, object]]]:
    for name, module in sorted(sys.modules.items()):
        if name == "keyturn.django":  # the settings that it refers to are made when looked at
            continue
        if name.partition(".")[0] not in _LIBRARIES or not isinstance(module, types.ModuleType):
            continue
        for attribute, value in list(vars(module).items()):
            # The modules that are imported for the first time only now are no change.
            if isinstance(value, types.ModuleType):
                continue
            yield f"{name}.{attribute}", (id(value), _contents(value))
            if isinstance(value, type) and value.__module__ == name:
                for own, item in list(vars(value).items()):
                    yield f"{name}.{attribute}.{own}", (id(item), None)


def _loggers() -> dict[str, object]:
    named = logging.root.manager.loggerDict
    loggers = {name: item for name, item in named.items() if isinstance(item, logging.Logger)}
    loggers["root"] = logging.root
    return {
        name: (logger.level, logger.filters[:], logger.handlers[:], logger.propagate)
        for name, logger in loggers.items()
        if name.partition(".")[0] != "keyturn"
    }


def _hooks() -> dict[str, object]:
    loop = asyncio.get_running_loop()
    return {
        "excepthook": sys.excepthook,
        "unraisablehook": sys.unraisablehook,
        "displayhook": sys.displayhook,
        "thread excepthook": threading.excepthook,
        "meta path": sys.meta_path[:],
        "path hooks": sys.path_hooks[:],
        "warning filters": warnings.filters[:],
        "showwarning": warnings.showwarning,
        "log record factory": logging.getLogRecordFactory(),
        "logger class": logging.getLoggerClass(),
        "loop exception handler": loop.get_exception_handler(),
        "task factory": loop.get_task_factory(),
        "event loop policy": asyncio.get_event_loop_policy(),
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "expiration decoders": dict(decode_expiration.registry),
    }


def _snapshot() -> dict[str, Any]:
    return dict(_attributes()) | {"loggers": _loggers(), "hooks": _hooks()}


def _difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {name: (old, after.get(name)) for name, old in before.items() if after.get(name) != old}


async def _use(settings: PublisherSettings, s3: S3Settings, worker: WorkerSide) -> None:
    """Open, publish inline and staged, wait, follow, fail to wait, and close."""
    async with Publisher.open(settings, s3=s3) as publisher:
        for body in (b"x", bytes(INLINE_MAX_BYTES + 1)):
            upload_id = await publisher.upload("acme", "a", body)
            event = answer(publisher, stored(upload_id))
            await worker.publish(event)
            assert await publisher.wait(upload_id, timeout_s=30) == event
        upload_id = await publisher.upload("acme", "a", b"x")
        with pytest.raises(WaitTimeoutError):
            await publisher.wait(upload_id, timeout_s=0.1)
    async with keyturn.gateway.Client.connect("http://localhost:1", "k" * 40):
        pass


async def test_the_host_process_stays_as_it_was(
    settings: PublisherSettings,
    worker: WorkerSide,
    moto: S3Server,
    moto_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in moto.environment(moto_bucket).items():
        monkeypatch.setenv(name, value)
    s3 = S3Settings.read()
    await _use(settings, s3, worker)  # what libraries import or cache at their first use
    before = _snapshot()
    await _use(settings, s3, worker)
    assert _difference(before, _snapshot()) == {}


async def test_a_first_use_changes_no_logger_and_no_hook(
    settings: PublisherSettings, worker: WorkerSide, tmp_path: Any
) -> None:
    """In a fresh process, where nothing has happened before."""
    del worker
    program = tmp_path / "first.py"
    program.write_text(_FIRST_USE)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        str(program),
        settings.amqp_url.get_secret_value(),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert (process.returncode, output.decode()) == (0, "published\n")


_FIRST_USE = """
import asyncio, logging, sys, warnings
import aio_pika, aiormq, pamqp
from pamqp import decode, encode

def state():
    loggers = [logging.getLogger(name) for name in
               ("", "aio_pika", "aiormq", "aiormq.channel", "aiormq.connection", "asyncio")]
    return (
        [(one.level, one.filters[:], one.handlers[:]) for one in loggers],
        dict(decode.METHODS), dict(decode.TABLE_MAPPING), dict(encode.METHODS),
        encode.encode_table_value, encode.field_table,
        {name: item for name, item in vars(aio_pika.DeliveryMode).items()},
        warnings.filters[:], sys.excepthook, sys.meta_path[:],
    )

before = state()

from keyturn import Publisher, PublisherSettings
from keyturn.crypto import IntakeKey, SigningKey, VerifyKey
from keyturn.settings import NamedIntakeKey

async def main():
    key = SigningKey.from_seed(b"p" * 32)
    settings = PublisherSettings(
        deployment="test", amqp_url=sys.argv[1], publisher_name="billing", publisher_key=key,
        intake_public_key=NamedIntakeKey("main", IntakeKey.from_seed(bytes(32)).public_key),
        event_public_key=VerifyKey.from_bytes(key.public_bytes),
    )
    async with Publisher.open(settings) as publisher:
        await publisher.upload("acme", "a", b"x")
        print("published")

asyncio.run(main())
assert state() == before
"""
