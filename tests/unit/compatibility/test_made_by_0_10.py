"""Objects and a keyring that 0.10 wrote are read (SPEC 4, 5.2).

`made_by_0_10.json` holds the bytes as the code of that release wrote them, under keys of a test.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.crypto import Secret, user_kek, v0_user_kek
from keyturn.errors import NotFoundError, NoUsableWrapError
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn.messages import RequestOrigin
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.keys.keyring.store import replace_keyring
from keyturn_workers.offline.download import OperatorAccess, open_object
from tools.harness.api_key_reader import read_with_api_key
from tools.harness.local_keys import operator_keys, parse_keyring
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn_workers.core.keyring import Keyring

_MADE: Final[dict[str, Any]] = json.loads((Path(__file__).parent / "made_by_0_10.json").read_text())
_MASTER_KEYS: Final = {"m1": Secret(base64.b64decode(_MADE["master_key"]))}
_KEYS: Final = operator_keys(_MASTER_KEYS, _MADE["v0_master_key"])
_OPERATOR: Final = OperatorAccess("acme", _KEYS)
_EARLIER_SYSTEM: Final = "stored by the earlier system"
_TEXTS: Final = {
    "before-the-rotation": "stored before the rotation",
    "after-the-rotation": "stored after the rotation",
    "without-tag": "stored without a tag",
    "v0": _EARLIER_SYSTEM,
    "v0-rewrapped": _EARLIER_SYSTEM,
}


def _bucket() -> MemoryStorage:
    storage = MemoryStorage()
    storage.plant(keyring_s3_key("acme"), _MADE["keyring"].encode(), Headers({}))
    for key, made in _MADE["objects"].items():
        body = base64.b64decode(made["body"])
        storage.plant(object_s3_key("acme", key), body, Headers(made["metadata"]))
    return storage


async def _read_as_operator(key: str) -> str:
    async with open_object(_bucket(), key, _OPERATOR) as opened:
        return b"".join([piece async for piece in opened.chunks()]).decode()


async def _read_as_project(key: str) -> str:
    pepper = _MADE["pepper"]
    pieces = read_with_api_key(_bucket(), "acme", key, _MADE["api_key"], pepper=pepper)
    return b"".join([piece async for piece in pieces]).decode()


async def _keyring(storage: MemoryStorage) -> tuple[Keyring, str]:
    head, body = await storage.read(keyring_s3_key("acme"))
    return parse_keyring(body, "acme", _MASTER_KEYS), head.etag


async def test_the_keyring_is_read_with_serial_0() -> None:
    ring, _ = await _keyring(_bucket())
    kek = user_kek(_MADE["api_key"], "acme", _MADE["pepper"])
    assert (ring.serial, ring.recovery) == (0, None)
    assert (ring.current.generation, ring.current.kek) == (2, kek)
    assert ring.history[0].kek is not None
    assert (ring.origin, ring.lease_s) == (RequestOrigin("web", "2" * 64), 15)
    assert ring.evidence == "e" * 64
    assert (ring.plaintext_allowed, ring.v0_allowed) == (False, True)
    assert ring.v0_kek == v0_user_kek(_MADE["v0_api_key"], _MADE["pepper"])


async def test_the_next_change_of_the_keyring_gives_it_a_serial_and_loses_nothing() -> None:
    storage = _bucket()
    before, etag = await _keyring(storage)
    assert await replace_keyring(storage, before, etag, _KEYS, lease_s=15)
    after, _ = await _keyring(storage)
    assert after.serial == 1
    assert {**vars(after), "serial": 0} == vars(before)


@pytest.mark.parametrize("key", _TEXTS)
async def test_the_operator_reads_every_object(key: str) -> None:
    assert await _read_as_operator(key) == _TEXTS[key]


async def test_the_project_reads_what_its_api_key_opens() -> None:
    assert await _read_as_project("after-the-rotation") == "stored after the rotation"
    with pytest.raises(NoUsableWrapError):
        await _read_as_project("before-the-rotation")


async def test_a_deleted_object_is_gone() -> None:
    with pytest.raises(NotFoundError):
        await _read_as_operator("deleted")
