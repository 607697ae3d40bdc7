"""The project's own vectors: made again they are the same, and readers open them."""

import json
from typing import Any

import pytest

from keyturn.crypto import (
    IntakeKey,
    Secret,
    SignatureError,
    VerifyKey,
    from_base64,
    open_record,
    open_sealed,
    open_tombstone,
    session_info,
    transport_context,
    unwrap_dek,
    upload_info,
)
from tests.vectors import make_sealing

TEXT = make_sealing.PATH.read_text(encoding="utf-8")
VECTORS: dict[str, Any] = json.loads(TEXT)


def test_made_again_they_are_the_same() -> None:
    assert make_sealing.write(make_sealing.build(VECTORS)) == TEXT


@pytest.mark.parametrize("name", VECTORS["sealed"])
def test_small_messages_open(name: str) -> None:
    vector = {part: value for part, value in VECTORS["sealed"][name].items() if part != "sealed"}
    key, context, plaintext = (bytes.fromhex(vector[part]) for part in vector)
    assert open_sealed(key, context, from_base64(VECTORS["sealed"][name]["sealed"])) == plaintext


def test_they_open_by_their_own_functions() -> None:
    """The contexts are spelled out in the vectors; the functions must build the same ones."""
    project, key = make_sealing.PROJECT, make_sealing.KEY
    sealed = {name: from_base64(vector["sealed"]) for name, vector in VECTORS["sealed"].items()}
    kek = {name: Secret(bytes.fromhex(keys["kek"])) for name, keys in VECTORS["keks"].items()}
    place: dict[str, Any] = {"project": project, "object_key": key, "generation": 3}
    for role in ("user", "admin"):
        wrap = sealed[f"{role} wrap, generation 3"]
        dek = unwrap_dek(
            kek[role],
            "user" if role == "user" else "admin",
            algorithm="Cobblestone-256",
            wrap=wrap,
            **place,
        )
        assert dek == make_sealing.DEK
    record = open_record(kek["record"], f".keyturn/keyrings/{project}.json", sealed["record"])
    assert json.loads(record) == {"generation": "1"}
    time = open_tombstone(kek["admin"], project, key, sealed["tombstone"])
    assert time == "2026-11-24T10:00:00.000000Z"
    context = transport_context(make_sealing.REQUEST_ID)
    assert open_sealed(make_sealing.DEK, context, sealed["inline body"]) == b"hello"


def test_the_intake_ciphertext_opens() -> None:
    vector = VECTORS["intake"]
    intake = IntakeKey.from_seed(make_sealing.SEED)
    info = bytes.fromhex(vector["upload_info"])
    assert intake.open(from_base64(vector["ciphertext"]), info).hex() == vector["opens_to"]


def test_the_key_under_a_session_opens() -> None:
    """With the contexts of the vector, which are those of the functions."""
    vector = VECTORS["session"]
    info, upload = bytes.fromhex(vector["info"]), bytes.fromhex(vector["upload_info"])
    assert info == session_info(vector["deployment"], vector["publisher"])
    assert upload == upload_info(make_sealing.REQUEST_ID, make_sealing.PROJECT, make_sealing.KEY)
    secret = IntakeKey.from_seed(make_sealing.SEED).open(from_base64(vector["session"]), info)
    assert secret.hex() == vector["secret"]
    assert (
        open_sealed(secret, upload, from_base64(vector["ciphertext"])).hex() == vector["opens_to"]
    )


def test_the_signatures_verify() -> None:
    vector = VECTORS["signatures"]
    verify = VerifyKey.from_bytes(bytes.fromhex(vector["public_key"]))
    body = vector["body"].encode()
    verify.verify_request(vector["deployment"], vector["publisher"], body, vector["request"])
    verify.verify_event(vector["deployment"], body, vector["event"])
    batch = vector["batch_body"].encode()
    verify.verify_events(vector["deployment"], batch, vector["batch"])
    with pytest.raises(SignatureError):
        verify.verify_event(vector["deployment"], batch, vector["batch"])
