"""What the sealing core raises: that something does not open, and nothing more.

    SealError
     ├── CommitmentError   the header is no header of this key and context
     ├── ChunkError        a chunk fails, or the stream is cut or too long
     └── SignatureError    not signed by this key for this purpose

These carry no code of SPEC 12: what a failure means depends on what was being opened
(`bad_seal` for a request, `corrupt_object` for an object), so callers map them.
They must never carry a key, a plaintext, a sealed byte or a reason finer than their name:
whoever can tell failures apart can use the reader as an oracle.
"""


class SealError(Exception):
    """Sealed bytes do not open under this key and context."""

    def __init__(self, detail: str = "does not open") -> None:
        super().__init__(detail)


class CommitmentError(SealError):
    """The header does not commit to this key and context, or is no header at all (SPEC 3.1)."""

    def __init__(self) -> None:
        super().__init__("the key does not match the header")


class ChunkError(SealError):
    """A chunk is not authentic, or the stream is cut or too long (SPEC 3)."""

    def __init__(self) -> None:
        super().__init__("a chunk is not authentic, or the stream is cut or too long")


class SignatureError(SealError):
    """The signature is not this key's over these bytes for this deployment (SPEC 6.3, 6.7)."""

    def __init__(self) -> None:
        super().__init__("the signature does not verify")
