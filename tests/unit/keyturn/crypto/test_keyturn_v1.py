"""The vectors of SPEC v1, made by an independent implementation: keys, record, request, objects.

Objects are opened here by a small reader of what belongs to this package: wraps, header
and body. The whole policy of a reader (which wrap first, when v0 is honored, tombstones,
plaintext) is the envelope's, and is tested there.
"""

import hashlib
import json
from typing import Any, Literal

import pytest

from keyturn.crypto import (
    BODY_CONTEXT,
    IntakeKey,
    Opener,
    Role,
    SealError,
    Secret,
    SigningKey,
    VerifyKey,
    admin_kek,
    commits_to,
    from_base64,
    kek_id,
    open_record,
    open_sealed,
    record_kek,
    transport_context,
    unwrap_dek,
    upload_info,
    user_kek,
    v0_admin_kek,
    v0_open,
    v0_unwrap_dek,
    v0_user_kek,
)
from tests.unit.keyturn.crypto.shared import load

VECTORS = load("keyturn_v1.json")
KEYS: dict[str, Any] = VECTORS["keys"]
MASTER = {name: from_base64(key) for name, key in KEYS["master_keys"].items()}


def test_keys() -> None:
    project = KEYS["project"]
    user = user_kek(KEYS["api_key"], project, KEYS["pepper"])
    assert user.reveal().hex() == KEYS["user_kek"]
    assert kek_id(user) == KEYS["user_kek_id"]
    new_user = user_kek(KEYS["new_api_key"], project, KEYS["pepper"])
    assert new_user.reveal().hex() == KEYS["new_user_kek"]
    assert admin_kek(MASTER["m1"], project).reveal().hex() == KEYS["admin_kek_m1"]
    assert admin_kek(MASTER["m2"], project).reveal().hex() == KEYS["admin_kek_m2"]
    assert record_kek(MASTER["m1"], project).reveal().hex() == KEYS["record_kek_m1"]


def test_intake_and_publisher_keys() -> None:
    intake = IntakeKey.from_seed(bytes.fromhex(KEYS["intake_seed"]))
    assert intake.public_bytes.hex() == KEYS["intake_public_key"]
    publisher = SigningKey.from_seed(bytes.fromhex(KEYS["publisher_seed"]))
    assert publisher.public_bytes.hex() == KEYS["publisher_public_key"]


def test_keyring_record() -> None:
    keyring = VECTORS["keyring"]
    record = keyring["record"]
    kek = record_kek(MASTER[record["master_key"]], record["project"])
    sealed = from_base64(record["sealed"])
    assert json.loads(open_record(kek, keyring["s3_key"], sealed)) == keyring["opens_to"]
    with pytest.raises(SealError):
        open_record(kek, ".keyturn/keyrings/other.json", sealed)


def test_upload_request() -> None:
    vector = VECTORS["upload_request"]
    sent = vector["body"].encode()
    deployment, publisher = vector["deployment"], vector["publisher"]
    verify = VerifyKey.from_bytes(bytes.fromhex(KEYS["publisher_public_key"]))
    verify.verify_request(deployment, publisher, sent, vector["signature"])
    signing = SigningKey.from_seed(bytes.fromhex(KEYS["publisher_seed"]))
    assert signing.sign_request(deployment, publisher, sent) == vector["signature"]
    for other in ((deployment + "x", publisher, sent), (deployment, publisher + "x", sent)):
        with pytest.raises(SealError):
            verify.verify_request(other[0], other[1], other[2], vector["signature"])

    body = json.loads(sent)
    info = upload_info(body["upload_id"], body["project"], body["key"])
    assert info.hex() == vector["hpke_info"]
    intake = IntakeKey.from_seed(bytes.fromhex(KEYS["intake_seed"]))
    ciphertext = from_base64(body["sealed_key"]["ciphertext"])
    transport_key = intake.open(ciphertext, info)
    assert transport_key.hex() == vector["transport_key"]
    for part in range(3):
        names = [body["upload_id"], body["project"], body["key"]]
        names[part] += "x"
        with pytest.raises(SealError):
            intake.open(ciphertext, upload_info(*names))
    inline = from_base64(body["body"]["inline"])
    opened = open_sealed(transport_key, transport_context(body["upload_id"]), inline)
    assert opened == vector["plaintext"].encode()


def test_hpke_private_key_gives_public_key() -> None:
    for vector in load("hpke_mlkem768_x25519.json"):
        if vector["kem_id"] == 0x647A:
            intake = IntakeKey.from_seed(bytes.fromhex(vector["skRm"]))
            assert intake.public_bytes.hex() == vector["pkRm"]
            return
    pytest.fail("no vector of suite 0x647a")


def keks(role: Role, vector: dict[str, Any]) -> tuple[Secret, Secret]:
    """Return the v1 and the v0 KEK that a reader of this role holds."""
    project, metadata = vector["project"], vector["metadata"]
    if role == "admin":
        master = MASTER[metadata.get("enc-kek-admin", "m1")]
        return admin_kek(master, project), v0_admin_kek(KEYS["v0_master_key"])
    turned = metadata.get("enc-kek-user", "").startswith("2:") and "turned" in vector["name"]
    api_key = KEYS["new_api_key" if turned else "api_key"]
    v0 = v0_user_kek(KEYS["api_key"], KEYS["v0_pepper"])
    return user_kek(api_key, project, KEYS["pepper"]), v0


def read(role: Role, vector: dict[str, Any]) -> bytes | str:
    """Return the plaintext that the wrap of `role` gives, or a code of SPEC 12."""
    metadata, body = vector["metadata"], from_base64(vector["body"])
    algorithm = metadata["enc-algo"]
    if algorithm not in ("Cobblestone-256", "AES-256-GCM"):
        return "unknown_algorithm"
    v1, v0 = keks(role, vector)
    wrap = from_base64(metadata[f"enc-dek-{role}"])
    try:
        if "enc-kek-user" in metadata:
            generation = int(metadata["enc-kek-user"].split(":")[0])
            dek = unwrap_dek(
                v1,
                role,
                algorithm=algorithm,
                project=vector["project"],
                object_key=vector["key"],
                generation=generation,
                wrap=wrap,
            )
        else:
            dek = v0_unwrap_dek(v0, wrap)
    except SealError:
        return "no_usable_wrap"
    try:
        if algorithm == "AES-256-GCM":
            return v0_open(dek, body)
        opened = open_sealed(dek, BODY_CONTEXT, body)
    except SealError:
        return "corrupt_object"
    opener = Opener(dek, BODY_CONTEXT, body[:56])  # and streamed it reads the same
    streamed = b"".join(opener.update(body[at : at + 999]) for at in range(56, len(body), 999))
    assert streamed + opener.finish() == opened
    assert commits_to(dek, BODY_CONTEXT, body[:56])
    return opened


def expected(role: Literal["user", "admin"], vector: dict[str, Any]) -> str:
    outcome: str = vector["expect"]
    if outcome == "corrupt_object by the user wrap, valid by the admin wrap":
        return "corrupt_object" if role == "user" else "valid"
    if not vector["metadata"][f"enc-dek-{role}"]:
        return "no_usable_wrap"
    return outcome


def test_all_objects_are_there() -> None:
    assert len(VECTORS["objects"]) == 27


@pytest.mark.parametrize("role", ["user", "admin"])
@pytest.mark.parametrize("vector", VECTORS["objects"], ids=lambda vector: vector["name"])
def test_objects(vector: dict[str, Any], role: Role) -> None:
    got = read(role, vector)
    outcome = expected(role, vector)
    if outcome != "valid":
        assert got == outcome
        return
    assert isinstance(got, bytes), got
    assert (len(got), hashlib.sha256(got).hexdigest()) == (vector["size"], vector["sha256"])
