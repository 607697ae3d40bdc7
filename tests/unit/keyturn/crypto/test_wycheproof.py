"""Known answers by C2SP/wycheproof (Apache-2.0), through the primitives as we use them."""

import hashlib
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keyturn.crypto import (
    CHUNK_BYTES,
    HEADER_BYTES,
    SEALED_CHUNK_BYTES,
    TAG_BYTES,
    ChunkReader,
    CommitmentError,
    Opener,
    SealError,
    commits_to,
    open_sealed,
    plaintext_size,
    seal,
)
from tests.unit.keyturn.crypto.shared import load

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
