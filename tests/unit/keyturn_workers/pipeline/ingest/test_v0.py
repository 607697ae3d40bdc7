"""Objects of the earlier system open by one KEK, completely or not at all (SPEC 17.6)."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keyturn.crypto import Secret, from_base64, new_dek, to_base64
from keyturn.errors import CorruptObjectError, NoUsableWrapError
from keyturn_workers.pipeline.ingest.v0 import is_v0, open_object, parse_key, user_kek
from tests.unit.keyturn.crypto.shared import load
from tests.unit.keyturn_workers.pipeline.ingest.v0_objects import V0_KEK, v0_metadata, v0_seal
from tests.vectors import make_sealing

if TYPE_CHECKING:
    from collections.abc import Callable

DEK, OTHER_DEK = new_dek(), new_dek()
BODY = v0_seal(DEK, b"hello")


# Known answers.


def _vectors() -> dict[str, Any]:
    found: dict[str, Any] = load("keyturn_v1.json")
    return found


def _keks(keys: dict[str, str]) -> list[Secret]:
    """The user KEK, and the admin KEK, which an operator derives by the specification."""
    info = b"acontext envelope encryption admin KEK"
    admin = HKDF(SHA256(), 32, b"acontext-admin-kek", info)
    derived = Secret(admin.derive(keys["v0_master_key"].encode()))
    return [user_kek(keys["api_key"], keys["v0_pepper"]), derived]


def test_the_independent_implementations_objects_open() -> None:
    vectors = _vectors()
    user, admin = _keks(vectors["keys"])
    objects = [each for each in vectors["objects"] if is_v0(each["metadata"])]
    assert [each["name"] for each in objects] == ["v0", "v0 empty", "v0 admin wrap only"]
    for each in objects:
        body = from_base64(each["body"])
        has_user_wrap = bool(each["metadata"]["enc-dek-user"])
        for kek in (user, admin) if has_user_wrap else (admin,):
            plaintext = open_object(kek, each["metadata"], body)
            assert len(plaintext) == each["size"]
            assert hashlib.sha256(plaintext).hexdigest() == each["sha256"]
        if not has_user_wrap:
            with pytest.raises(NoUsableWrapError):
                open_object(user, each["metadata"], body)


def test_the_user_kek_is_the_recorded_one() -> None:
    recorded = json.loads(make_sealing.PATH.read_text(encoding="utf-8"))["keks"]["v0 user"]
    derived = user_kek(make_sealing.API_KEY, make_sealing.PEPPER)
    assert derived.reveal().hex() == recorded["kek"]


# The key file.


@pytest.mark.parametrize(
    ("document", "kek"),
    [
        ({"kek": to_base64(V0_KEK.reveal())}, V0_KEK),
        ({"api_key": "sk-old", "pepper": "salt"}, user_kek("sk-old", "salt")),
        ({"api_key": "sk-öld", "pepper": ""}, user_kek("sk-öld", "")),
    ],
    ids=["KEK", "API key", "API key without a pepper"],
)
def test_a_key_file_names_one_kek(document: dict[str, str], kek: Secret) -> None:
    assert parse_key(json.dumps(document)) == kek
    assert parse_key(json.dumps(document, ensure_ascii=False) + "\n") == kek


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s3cr3t",
        '"s3cr3t"',
        '["s3cr3t"]',
        "{}",
        '{"kek": "s3cr3t"}',
        '{"kek": "AAAA"}',
        '{"kek": 7}',
        '{"api_key": "s3cr3t"}',
        '{"api_key": "", "pepper": "s3cr3t"}',
        '{"api_key": "s3cr3t", "pepper": null}',
        '{"api_key": "s3cr3t", "api_key": "s3cr3t", "pepper": ""}',
        json.dumps({"kek": to_base64(bytes(32)), "pepper": "s3cr3t"}),
        json.dumps({"api_key": "s3cr3t", "pepper": "", "kek": to_base64(bytes(32))}),
    ],
)
def test_any_other_key_file_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ValueError, match="a v0 key file is JSON") as refused:
        parse_key(text)
    assert "s3cr3t" not in str(refused.value)
    assert refused.value.__cause__ is None


# Objects.


def test_such_an_object_has_no_other_name_of_ours() -> None:
    metadata = v0_metadata(user=DEK)
    assert is_v0(metadata)
    assert is_v0({**metadata, "author": "kim"})
    assert is_v0({n: v for n, v in metadata.items() if n != "enc-dek-admin"})
    for other in ({"enc-kek-user": "1:a"}, {"enc-upload": "x"}, {"enc-algo": "Cobblestone-256"}):
        assert not is_v0({**metadata, **other})
    assert not is_v0({})


@pytest.mark.parametrize(
    "metadata",
    [
        v0_metadata(user=DEK),
        v0_metadata(admin=DEK),
        v0_metadata(user=DEK, admin=DEK),
        {**v0_metadata(admin=DEK), "enc-dek-user": to_base64(v0_seal(bytes(32), DEK))},
    ],
    ids=["user", "admin", "both", "beside a wrap of another key"],
)
def test_either_wrap_opens_the_object(metadata: dict[str, str]) -> None:
    assert open_object(V0_KEK, metadata, BODY) == b"hello"


@pytest.mark.parametrize(
    "metadata",
    [
        v0_metadata(),
        {"enc-algo": "AES-256-GCM"},
        {**v0_metadata(), "enc-dek-user": to_base64(v0_seal(bytes(32), DEK))},
        {**v0_metadata(), "enc-dek-user": to_base64(v0_seal(V0_KEK.reveal(), DEK[:16]))},
        {**v0_metadata(), "enc-dek-user": to_base64(bytes(27))},
    ],
    ids=["empty", "missing", "another key", "a short DEK", "cut"],
)
def test_without_a_wrap_that_opens_there_is_no_plaintext(metadata: dict[str, str]) -> None:
    with pytest.raises(NoUsableWrapError):
        open_object(V0_KEK, metadata, BODY)


@pytest.mark.parametrize(
    "metadata",
    [
        v0_metadata(user=OTHER_DEK),
        v0_metadata(user=DEK, admin=OTHER_DEK),
        {**v0_metadata(user=DEK), "enc-dek-admin": "!"},
    ],
    ids=["another DEK", "two DEKs", "no base64"],
)
def test_wraps_that_do_not_fit_the_body_are_corrupt(metadata: dict[str, str]) -> None:
    with pytest.raises(CorruptObjectError):
        open_object(V0_KEK, metadata, BODY)


_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "nonce": lambda body: bytes([body[0] ^ 1]) + body[1:],
    "ciphertext": lambda body: body[:13] + bytes([body[13] ^ 1]) + body[14:],
    "tag": lambda body: body[:-1] + bytes([body[-1] ^ 1]),
    "cut": lambda body: body[:-1],
    "longer": lambda body: body + b"\0",
    "a nonce alone": lambda body: body[:12],
    "nothing": lambda _: b"",
}


@pytest.mark.parametrize("damage", _DAMAGE)
def test_a_damaged_body_does_not_open(damage: str) -> None:
    with pytest.raises(CorruptObjectError):
        open_object(V0_KEK, v0_metadata(user=DEK), _DAMAGE[damage](BODY))
