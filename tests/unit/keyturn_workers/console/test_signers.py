"""A signature has one spelling, and a signature of other bytes is refused as before."""

from __future__ import annotations

import pytest
from itsdangerous import BadSignature, Signer

from keyturn_workers.console.signers import StrictSigner, StrictTimestampSigner


@pytest.mark.parametrize("signer", [StrictSigner(b"key"), StrictTimestampSigner(b"key")])
def test_a_signature_is_the_text_that_the_signer_writes(signer: Signer) -> None:
    signed = signer.sign("value").decode()
    assert signer.unsign(signed) == b"value"
    for other in (signed + "=", signed[:-1] + "\n" + signed[-1], signed[:-2], signed + "é"):
        with pytest.raises(BadSignature):
            signer.unsign(other)


def test_the_library_reads_more_than_one() -> None:
    """Why these classes exist. If this fails, they can go."""
    lenient = Signer(b"key")
    assert lenient.unsign(lenient.sign("value") + b"=") == b"value"


def test_signatures_of_the_library_stay_valid() -> None:
    """So no update signs anyone out."""
    assert StrictSigner(b"key").unsign(Signer(b"key").sign("value")) == b"value"
