"""Which DEK a reader gets from each object of the shared test vectors (SPEC 9.1)."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keyturn import metadata as object_metadata
from keyturn.crypto import (
    BODY_CONTEXT,
    HEADER_BYTES,
    SealError,
    Secret,
    open_sealed,
    user_kek,
    v0_admin_kek,
    v0_open,
    v0_user_kek,
)
from keyturn.errors import CodedError, NoUsableWrapError
from keyturn.metadata import COBBLESTONE
from keyturn_workers.objects.open_dek import ReaderKeys, open_dek
from tools.harness.local_keys import admin_keks, parse_keyring

_FILE = Path(__file__).parents[4] / ".." / "shared" / "vectors" / "keyturn_v1.json"
_MISSING = not _FILE.is_file()
_VECTORS: dict[str, Any] = {} if _MISSING else json.loads(_FILE.read_text())
pytestmark = pytest.mark.skipif(
    _MISSING, reason="the shared known answers are not next to the project"
)

_BY_ADMIN = "corrupt_object by the user wrap, valid by the admin wrap"


def _masters() -> dict[str, Secret]:
    keys = _VECTORS["keys"]["master_keys"]
    return {name: Secret(base64.b64decode(key)) for name, key in keys.items()}


def _reader(vector: dict[str, Any]) -> ReaderKeys:
    keys = _VECTORS["keys"]
    api_key = keys["new_api_key"] if vector["name"] == "both keys turned" else keys["api_key"]
    return ReaderKeys(
        project=vector["project"],
        user_kek=user_kek(api_key, vector["project"], keys["pepper"]),
        admin_keks=admin_keks(vector["project"], _masters(), v0_admin_kek(keys["v0_master_key"])),
        v0_user_kek=v0_user_kek(api_key, keys["v0_pepper"]),
        v0_allowed=True,
    )


def _read(vector: dict[str, Any], reader: ReaderKeys) -> bytes:
    body = base64.b64decode(vector["body"])
    envelope = object_metadata.parse(vector["metadata"])
    opened = open_dek(envelope, body[:HEADER_BYTES], vector["key"], reader)
    assert opened is not None
    if opened.algorithm == COBBLESTONE:
        return open_sealed(opened.dek, BODY_CONTEXT, body)
    return v0_open(opened.dek, body)


def _outcome(vector: dict[str, Any], reader: ReaderKeys) -> str:
    try:
        plaintext = _read(vector, reader)
    except CodedError as exc:
        return exc.code
    except SealError:
        return "corrupt_object"
    assert len(plaintext) == vector["size"]
    assert hashlib.sha256(plaintext).hexdigest() == vector["sha256"]
    return "valid"


@pytest.mark.parametrize("vector", _VECTORS.get("objects", []), ids=lambda vector: vector["name"])
def test_each_object_opens_or_fails_with_its_code(vector: dict[str, Any]) -> None:
    """Each object opens to its plaintext, or fails with its code."""
    expected = "corrupt_object" if vector["expect"] == _BY_ADMIN else vector["expect"]
    assert _outcome(vector, _reader(vector)) == expected


@pytest.mark.parametrize("vector", _VECTORS.get("objects", []), ids=lambda vector: vector["name"])
def test_the_operators_key_alone_gives_the_same_result(vector: dict[str, Any]) -> None:
    """Except for what only the user wrap shows."""
    reader = replace(_reader(vector), user_kek=None, v0_user_kek=None)
    expected = "valid" if vector["expect"] == _BY_ADMIN else vector["expect"]
    if vector["name"] == "v0 body with v1 wraps":
        expected = NoUsableWrapError.code  # a v0 body is opened by both keys together
    assert _outcome(vector, reader) == expected


@pytest.mark.parametrize("vector", _VECTORS.get("objects", []), ids=lambda vector: vector["name"])
def test_another_projects_keys_open_nothing(vector: dict[str, Any]) -> None:
    """Another project's keys never open anything."""
    stranger = ReaderKeys(project=vector["project"], user_kek=Secret(bytes(32)), v0_allowed=True)
    assert _outcome(vector, stranger) in {"no_usable_wrap", "unknown_algorithm"}


def test_v0_wraps_need_the_keyrings_permission() -> None:
    """Nothing binds such wraps to their object."""
    vector = next(v for v in _VECTORS["objects"] if v["name"] == "v0")
    assert _outcome(vector, replace(_reader(vector), v0_allowed=False)) == "no_usable_wrap"


def test_the_keyring_record_opens_as_the_vectors_say() -> None:
    """The record opens to what the vectors say."""
    vector = _VECTORS["keyring"]
    keyring = parse_keyring(json.dumps(vector["record"]).encode(), "acme", _masters())
    expected = vector["opens_to"]
    assert keyring.current.generation == expected["generation"]
    assert keyring.current.kek_id == expected["kek_id"]
    assert keyring.current.kek == Secret(base64.b64decode(expected["kek"]))
    assert keyring.current.rotation_id == expected["rotation_id"]
    assert (keyring.plaintext_allowed, keyring.v0_allowed) == (False, True)
    assert keyring.history == ()
