"""What is sealed to an intake key opens for one purpose alone (SPEC 3.2, 6.4, 6.5)."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keyturn.crypto import (
    IntakeKey,
    IntakePublicKey,
    SealError,
    kek_info,
    upload_info,
)

INTAKE = IntakeKey.from_seed(bytes(range(32)))
INFO = upload_info("2f6c9a0e-6a55-4f0b-9d1e-0a1b2c3d4e5f", "acme", "a/b")
ENC_BYTES = 1088 + 32


def test_intake_round_trip() -> None:
    public = IntakePublicKey.from_bytes(INTAKE.public_bytes)
    assert public.public_bytes == INTAKE.public_bytes
    sealed = public.seal(b"transport key", INFO)
    assert len(sealed) == len(b"transport key") + 1136
    assert INTAKE.open(sealed, INFO) == b"transport key"
    with pytest.raises(SealError):
        IntakeKey.from_seed(bytes(32)).open(sealed, INFO)


def test_infos_are_for_one_purpose_each() -> None:
    infos = [INFO, kek_info("enroll", "id", "acme"), kek_info("rotation", "id", "acme")]
    infos += [kek_info("enroll", "id2", "acme"), kek_info("enroll", "id", "acme2")]
    infos += [upload_info("id", "acme", "a")]
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


@settings(max_examples=50)
@given(
    st.binary(max_size=100)
    | st.binary(max_size=100).map(lambda end: bytes(ENC_BYTES) + end)
    | st.binary(max_size=40).map(lambda end: INTAKE.public_key.seal(b"x", INFO)[:-1] + end),
    st.binary(max_size=20),
)
def test_intake_raises_seal_errors_alone(ciphertext: bytes, info: bytes) -> None:
    with pytest.raises(SealError):
        INTAKE.open(ciphertext, info)


@settings(max_examples=25)
@given(st.integers(0, (ENC_BYTES + 17) * 8 - 1))
@example(ENC_BYTES * 8 - 1)
def test_any_flipped_bit_of_a_sealed_secret_fails(bit: int) -> None:
    """The top bit of the X25519 share too, which RFC 7748 ignores: HPKE binds it as sent."""
    broken = bytearray(INTAKE.public_key.seal(b"x", INFO))
    broken[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealError):
        INTAKE.open(bytes(broken), INFO)


def test_an_intake_key_does_not_show() -> None:
    assert bytes(range(32)).hex() not in repr(INTAKE)
    assert not any("seed" in name for name in vars(INTAKE))
