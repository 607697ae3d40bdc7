"""HPKE intake, signatures and base64: for one purpose, and safe on any bytes (SPEC 3.2, 6)."""

import base64

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keyturn.crypto import (
    IntakeKey,
    IntakePublicKey,
    SealError,
    SignatureError,
    SigningKey,
    VerifyKey,
    from_base64,
    kek_info,
    to_base64,
    upload_info,
)

INTAKE = IntakeKey.from_seed(bytes(range(32)))
INFO = upload_info("2f6c9a0e-6a55-4f0b-9d1e-0a1b2c3d4e5f", "acme", "a/b")
ENC_BYTES = 1088 + 32
SIGNING = SigningKey.from_seed(bytes(range(32)))
VERIFY = VerifyKey.from_bytes(SIGNING.public_bytes)


def test_intake_round_trip() -> None:
    public = IntakePublicKey.from_bytes(INTAKE.public_bytes)
    assert public.public_bytes == INTAKE.public_bytes
    sealed = public.seal(b"transport key", INFO)
    assert len(sealed) == len(b"transport key") + 1136
    assert INTAKE.open(sealed, INFO) == b"transport key"
    with pytest.raises(SealError):
        IntakeKey.from_seed(bytes(32)).open(sealed, INFO)


def test_infos_are_for_one_purpose_each() -> None:
    infos = [INFO, kek_info("enroll", "id", "acme"), kek_info("v0", "id", "acme")]
    infos += [kek_info("rotation", "id", "acme"), kek_info("enroll", "id2", "acme")]
    infos += [kek_info("enroll", "id", "acme2"), upload_info("id", "acme", "a")]
    assert len(set(infos)) == len(infos)
    sealed = INTAKE.public_key.seal(b"kek", infos[1])
    for other in (*infos[:1], *infos[2:], b""):
        with pytest.raises(SealError):
            INTAKE.open(sealed, other)


def test_keys_of_another_length_are_refused() -> None:
    for length in (0, 31, 33):
        with pytest.raises(ValueError, match="32 bytes"):
            IntakeKey.from_seed(bytes(length))
    for length in (0, 1215, 1217):
        with pytest.raises(ValueError, match="1216 bytes"):
            IntakePublicKey.from_bytes(bytes(length))
    with pytest.raises(ValueError, match="key"):  # coefficients beyond the modulus (FIPS 203, 7.2)
        IntakePublicKey.from_bytes(b"\xff" * 1216)


def test_an_x25519_key_of_low_order_is_refused() -> None:
    """Its shared secret is zero whatever the other side does."""
    public = IntakePublicKey.from_bytes(INTAKE.public_bytes[:1184] + bytes(32))
    with pytest.raises(SealError):
        public.seal(b"x", INFO)
    sealed = INTAKE.public_key.seal(b"x", INFO)
    with pytest.raises(SealError):
        INTAKE.open(sealed[:1088] + bytes(32) + sealed[ENC_BYTES:], INFO)


def test_a_share_that_the_library_refuses_by_name_is_a_seal_error_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Refusing:
        def decrypt(self, *_: object, **__: object) -> bytes:
            raise ValueError("a share of low order")

    monkeypatch.setattr("keyturn.crypto.intake._suite", Refusing)
    with pytest.raises(SealError, match="does not open"):
        INTAKE.open(b"", INFO)


@settings(max_examples=200)
@given(
    st.binary(max_size=100)
    | st.binary(max_size=100).map(lambda end: bytes(ENC_BYTES) + end)
    | st.binary(max_size=40).map(lambda end: INTAKE.public_key.seal(b"x", INFO)[:-1] + end),
    st.binary(max_size=20),
)
def test_intake_raises_seal_errors_alone(ciphertext: bytes, info: bytes) -> None:
    with pytest.raises(SealError):
        INTAKE.open(ciphertext, info)


@settings(max_examples=60)
@given(st.integers(0, (ENC_BYTES + 17) * 8 - 1))
@example(ENC_BYTES * 8 - 1)
def test_any_flipped_bit_of_a_sealed_secret_fails(bit: int) -> None:
    """The top bit of the X25519 share too, which RFC 7748 ignores: HPKE binds it as sent."""
    broken = bytearray(INTAKE.public_key.seal(b"x", INFO))
    broken[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealError):
        INTAKE.open(bytes(broken), INFO)


def test_signatures_are_for_one_deployment_publisher_and_kind() -> None:
    body = b'{"type": "upload.requested"}'
    request = SIGNING.sign_request("default", "api", body)
    VERIFY.verify_request("default", "api", body, request)
    event = SIGNING.sign_event("default", body)
    VERIFY.verify_event("default", body, event)
    refused = [("other", "api", body), ("default", "apj", body), ("default", "api", body + b" ")]
    refused += [("default", "", b"api\0" + body), ("default\0api", "", body), ("\ud800", "", body)]
    for deployment, publisher, sent in refused:
        with pytest.raises(SignatureError):
            VERIFY.verify_request(deployment, publisher, sent, request)
    for deployment, sent in (("other", body), ("default", b""), ("default\0", body)):
        with pytest.raises(SignatureError):
            VERIFY.verify_event(deployment, sent, event)
    with pytest.raises(SignatureError):  # a request is never an event
        VERIFY.verify_event("default", b"api\0" + body, request)
    with pytest.raises(SignatureError):
        VERIFY.verify_request("default", "api", body, event)


@given(
    st.text(max_size=90)
    | st.binary(max_size=70).map(to_base64)
    | st.binary(min_size=64).map(to_base64)
)
def test_whatever_the_signature_only_signature_errors_come_out(signature: str) -> None:
    with pytest.raises(SignatureError):
        VERIFY.verify_request("default", "api", b"{}", signature)
    with pytest.raises(SignatureError):
        VERIFY.verify_event("default", b"{}", signature)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_signing_keys_are_32_bytes(length: int) -> None:
    for read in (SigningKey.from_seed, VerifyKey.from_bytes):
        with pytest.raises(ValueError, match=r"32|key"):
            read(bytes(length))


def test_a_key_is_named_by_its_public_half() -> None:
    """RFC 8032's first test key; its id is that of `sha256sum`, cut to 8 bytes."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    signing = SigningKey.from_seed(seed)
    assert signing.id == "21fe31dfa154a261"
    assert VerifyKey.from_bytes(signing.public_bytes).id == signing.id
    assert signing.id != SIGNING.id


def test_private_keys_do_not_show() -> None:
    assert bytes(range(32)).hex() not in repr(SIGNING) + repr(INTAKE)
    assert not any("seed" in name for name in vars(SIGNING) | vars(INTAKE))


@given(st.binary(max_size=100))
def test_base64_round_trip(data: bytes) -> None:
    assert from_base64(to_base64(data)) == data


@given(st.text("AQg+/=-_ \n\0é", max_size=12))
def test_base64_has_one_spelling(text: str) -> None:
    """Against the standard library's decoder: accepted only where encoding gives the text back."""
    try:
        decoded = base64.b64decode(text, validate=True)
        canonical = base64.b64encode(decoded).decode() == text
    except ValueError:
        canonical = False
    if canonical:
        assert from_base64(text) == decoded
    else:
        with pytest.raises(ValueError, match=r"^not standard base64 with padding$"):
            from_base64(text)


@pytest.mark.parametrize(
    "text", ["QQ", "QQ=", "QR==", "QQ==\n", "Q Q==", "QQ==QQ==", "QQ===", "====", "_-==", "é", "A"]
)
def test_base64_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not standard base64 with padding$"):
        from_base64(text)
