"""Signers of cookies and form tokens that read a signature strictly (SPEC, conventions).

itsdangerous decodes a signature before it compares it, and ignores stray bits and foreign
characters there. Here the texts are compared, so a token has exactly one spelling.
"""

import hmac

from itsdangerous import Signer, TimestampSigner, want_bytes


class StrictSigner(Signer):
    """A signer whose signatures have one spelling."""

    def verify_signature(self, value: str | bytes, sig: str | bytes) -> bool:
        """Whether `sig` is the text that this signer writes for `value`."""
        return hmac.compare_digest(self.get_signature(value), want_bytes(sig))


class StrictTimestampSigner(StrictSigner, TimestampSigner):
    """The same, with a time in what is signed."""
