"""Known answers by others: SPEC v1's independent implementation, and C2SP/wycheproof (Apache-2.0).

Objects are opened here by a small reader of what belongs to this package: wraps, header
and body. The whole policy of a reader (which wrap first, tombstones, plaintext) is the
envelope's, and is tested there.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keyturn.crypto import (
    BODY_CONTEXT,
    CHUNK_BYTES,
    HEADER_BYTES,
    SEALED_CHUNK_BYTES,
    TAG_BYTES,
    ChunkReader,
    CommitmentError,
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
    plaintext_size,
    record_kek,
    seal,
    transport_context,
    unwrap_dek,
    upload_info,
    user_kek,
)
from tests.unit.keyturn.crypto.shared import load

# The vectors of SPEC v1: keys, record, request, objects.


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


def kek_of(role: Role, vector: dict[str, Any]) -> Secret:
    """Return the KEK that a reader of this role holds."""
    project, metadata = vector["project"], vector["metadata"]
    if role == "admin":
        master = MASTER[metadata.get("enc-kek-admin", "m1")]
        return admin_kek(master, project)
    turned = metadata.get("enc-kek-user", "").startswith("2:") and "turned" in vector["name"]
    api_key = KEYS["new_api_key" if turned else "api_key"]
    return user_kek(api_key, project, KEYS["pepper"])


def read(role: Role, vector: dict[str, Any]) -> bytes | str:
    """Return the plaintext that the wrap of `role` gives, or a code of SPEC 12."""
    metadata, body = vector["metadata"], from_base64(vector["body"])
    algorithm = metadata["enc-algo"]
    if algorithm != "Cobblestone-256":
        return "unknown_algorithm"
    try:
        dek = unwrap_dek(
            kek_of(role, vector),
            role,
            algorithm=algorithm,
            project=vector["project"],
            object_key=vector["key"],
            generation=int(metadata["enc-kek-user"].split(":")[0]),
            wrap=from_base64(metadata[f"enc-dek-{role}"]),
        )
    except SealError:
        return "no_usable_wrap"
    try:
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
    if vector["metadata"]["enc-algo"] == "AES-256-GCM":  # of the earlier system, or said to be
        return "unknown_algorithm"
    if outcome == "corrupt_object by the user wrap, valid by the admin wrap":
        return "corrupt_object" if role == "user" else "valid"
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


# Wycheproof, through the primitives as we use them.


PIECES = (1 << 20, SEALED_CHUNK_BYTES, 1000)


def cases(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for group in load(name)["testGroups"]:
        for case in group["tests"]:
            yield group, case


COBBLESTONE = [
    case for _, case in cases("wycheproof_c2sp_chunked_encryption_aes_256_gcm_test.json")
]


@pytest.fixture(params=COBBLESTONE, ids=lambda case: f"{case['tcId']} {case['comment']}")
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.param
    for name in ("key", "ctx"):
        found = {**found, name: bytes.fromhex(found[name])}
    return {**found, "sealed": zlib.decompress(bytes.fromhex(found["ct"]))}


def drain(opener: Opener, sealed: bytes, piece_bytes: int) -> tuple[bytes, bool]:
    """Return what a streaming reader releases, and whether it ends well."""
    released = bytearray()
    try:
        for at in range(HEADER_BYTES, len(sealed), piece_bytes):
            released += opener.update(sealed[at : at + piece_bytes])
        released += opener.finish()
    except SealError:
        with pytest.raises(SealError):  # and it keeps failing
            opener.update(b"")
        with pytest.raises(SealError):
            opener.finish()
        return bytes(released), False
    return bytes(released), True


def test_all_cases_are_there() -> None:
    assert len(COBBLESTONE) == 35


def test_whole_message(case: dict[str, Any]) -> None:
    if case["result"] == "invalid":
        with pytest.raises(SealError):
            open_sealed(case["key"], case["ctx"], case["sealed"])
        return
    opened = open_sealed(case["key"], case["ctx"], case["sealed"])
    assert len(opened) == case["msgLength"] == plaintext_size(len(case["sealed"]))
    assert hashlib.sha512(opened).hexdigest() == case["msgSha512"]
    assert seal(case["key"], case["ctx"], opened, salt=case["sealed"][:24]) == case["sealed"]


@pytest.mark.parametrize("piece_bytes", PIECES)
def test_stream_releases_no_more_than_the_valid_prefix(
    case: dict[str, Any], piece_bytes: int
) -> None:
    header = case["sealed"][:HEADER_BYTES]
    if "HeaderFailure" in case["flags"]:
        assert not commits_to(case["key"], case["ctx"], header)
        with pytest.raises(CommitmentError):
            Opener(case["key"], case["ctx"], header)
        return
    opener = Opener(case["key"], case["ctx"], header)
    released, ended_well = drain(opener, case["sealed"], piece_bytes)
    assert ended_well == (case["result"] == "valid")
    whole_chunk_at_a_time = piece_bytes <= SEALED_CHUNK_BYTES
    if ended_well or whole_chunk_at_a_time:
        assert len(released) == case.get("msgLength", 0)
        expected = case.get("msgSha512", hashlib.sha512(b"").hexdigest())
        assert hashlib.sha512(released).hexdigest() == expected
    else:  # a large piece fails as one, so that less may be released
        assert len(released) <= case.get("msgLength", 0)


def test_the_final_chunk_proves_the_length_only_where_it_is_valid(case: dict[str, Any]) -> None:
    if "HeaderFailure" in case["flags"]:
        with pytest.raises(CommitmentError):
            ChunkReader(case["key"], case["ctx"], case["sealed"][:HEADER_BYTES])
        return
    reader = ChunkReader(case["key"], case["ctx"], case["sealed"][:HEADER_BYTES])
    index, size = divmod(len(case["sealed"]) - HEADER_BYTES, SEALED_CHUNK_BYTES)
    last = case["sealed"][len(case["sealed"]) - size :]
    if case["result"] == "valid" or "ValidFinalChunk" in case["flags"]:
        opened = reader.open_chunk(index, last, last=True)
        assert len(opened) == size - TAG_BYTES < CHUNK_BYTES
    else:
        with pytest.raises(SealError):
            reader.open_chunk(index, last, last=True)


@pytest.mark.parametrize(("name", "algorithm"), [("sha256", SHA256()), ("sha512", SHA512())])
def test_hkdf(name: str, algorithm: HashAlgorithm) -> None:
    count = 0
    for _, case in cases(f"wycheproof_hkdf_{name}_test.json"):
        count += 1
        ikm, salt, info = (bytes.fromhex(case[part]) for part in ("ikm", "salt", "info"))
        if case["result"] == "invalid":
            with pytest.raises(ValueError, match=r"[Ll]ength|derive"):
                HKDF(algorithm, case["size"], salt, info).derive(ikm)
        else:
            okm = HKDF(algorithm, case["size"], salt, info).derive(ikm)
            assert okm.hex() == case["okm"], case["tcId"]
    assert count > 50


def test_aes_256_gcm_as_used() -> None:
    """Keys of 32 bytes, nonces of 12: whole, and in place into a buffer of our own."""
    count = 0
    for group, case in cases("wycheproof_aes_gcm_test.json"):
        if group["keySize"] != 256 or group["ivSize"] != 96:
            continue
        count += 1
        aead = AESGCM(bytes.fromhex(case["key"]))
        nonce, aad, message = (bytes.fromhex(case[part]) for part in ("iv", "aad", "msg"))
        sealed = bytes.fromhex(case["ct"] + case["tag"])
        opened = bytearray(len(message))
        if case["result"] == "invalid":
            with pytest.raises(InvalidTag):
                aead.decrypt_into(nonce, sealed, aad, opened)
            with pytest.raises(InvalidTag):
                aead.decrypt(nonce, sealed, aad)
            continue
        aead.decrypt_into(nonce, sealed, aad, opened)
        into = bytearray(len(sealed))
        aead.encrypt_into(nonce, message, aad, into)
        assert bytes(opened) == message, case["tcId"]
        assert bytes(into) == aead.encrypt(nonce, message, aad) == sealed, case["tcId"]
    assert count > 30
