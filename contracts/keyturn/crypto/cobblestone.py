"""Cobblestone-256, the one sealing primitive (SPEC 3).

Cobblestone-256 is the name that the C2SP specification c2sp.org/chunked-encryption (version 1)
gives to its construction with SHA-512 and AES-256-GCM.

A sealed message is salt (24) ‖ commitment (32) ‖ chunks: 16 KiB of plaintext each, sealed with
AES-256-GCM, 16 bytes longer when sealed, the last one always shorter and perhaps empty. Key, base
nonce and commitment come from HKDF-Expand-SHA512 of the key over salt and context.

Three forms over the same bytes: whole messages (`seal`, `open_sealed`), streams (`Sealer`,
`Opener`) and random access (`ChunkReader`). Two threads must not use one object at once; the
ciphers release the GIL while they work.

It must never open a chunk before the commitment is checked, and never release a byte before its
chunk is authenticated (SPEC 3.1).
"""

import hmac
import io
import os
from collections.abc import Callable
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from keyturn.errors import ChunkError, CommitmentError

BytesLike: TypeAlias = bytes | bytearray | memoryview

KEY_BYTES: Final = 32
CHUNK_BYTES: Final = 16384
TAG_BYTES: Final = 16
SEALED_CHUNK_BYTES: Final = CHUNK_BYTES + TAG_BYTES
SALT_BYTES: Final = 24
COMMITMENT_BYTES: Final = 32
HEADER_BYTES: Final = SALT_BYTES + COMMITMENT_BYTES

MAX_CHUNKS: Final = 2**38
"""The maximum number of chunks of a message (4 PiB), by c2sp.org/chunked-encryption."""

_NONCE_BYTES: Final = 12
_INFO: Final = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0"
_DERIVED_BYTES: Final = KEY_BYTES + _NONCE_BYTES + COMMITMENT_BYTES
_SHA512: Final = SHA512()


def sealed_size(plaintext_bytes: int) -> int:
    """Return the size in bytes of a sealed message of `plaintext_bytes`, header included."""
    chunks = plaintext_bytes // CHUNK_BYTES + 1
    return HEADER_BYTES + plaintext_bytes + chunks * TAG_BYTES


def plaintext_size(sealed_bytes: int) -> int:
    """Return the number of plaintext bytes in a sealed message of `sealed_bytes`.

    Raises:
        ChunkError: no plaintext has that sealed size.
    """
    full, last = divmod(sealed_bytes - HEADER_BYTES, SEALED_CHUNK_BYTES)
    if full < 0 or last < TAG_BYTES:
        raise ChunkError
    return full * CHUNK_BYTES + last - TAG_BYTES


def seal(key: bytes, context: bytes, plaintext: BytesLike, *, salt: bytes | None = None) -> bytes:
    """Return `plaintext` sealed under `key` (32 bytes) for `context`.

    `salt` (24 bytes) is only for known-answer tests: two messages under one key, context
    and salt would share their nonces.

    Raises:
        ValueError: the key or the salt has another length.
    """
    aead, base_nonce, header = _fresh(key, context, salt)
    if len(plaintext) < CHUNK_BYTES:
        return header + aead.encrypt(base_nonce.to_bytes(_NONCE_BYTES, "big"), plaintext, None)
    out = io.BytesIO()
    out.write(header)
    stream = _ChunkStream(aead.encrypt_into, base_nonce, CHUNK_BYTES, SEALED_CHUNK_BYTES)
    stream.push(plaintext, out)
    nonce, rest = stream.last()
    out.write(aead.encrypt(nonce, rest, None))
    return out.getvalue()


def open_sealed(key: bytes, context: bytes, sealed: BytesLike) -> bytes:
    """Return the plaintext of a whole message sealed under `key` for `context`.

    Raises:
        CommitmentError: the header (which may be cut) does not commit to this key and context.
        ChunkError: a chunk is not authentic, or the message is cut or too long.
    """
    view = memoryview(sealed).cast("B")
    aead, base_nonce = _checked(key, context, bytes(view[:HEADER_BYTES]))
    if len(view) < HEADER_BYTES + SEALED_CHUNK_BYTES:
        return _open_chunk(aead, base_nonce.to_bytes(_NONCE_BYTES, "big"), view[HEADER_BYTES:])
    stream = _ChunkStream(aead.decrypt_into, base_nonce, SEALED_CHUNK_BYTES, CHUNK_BYTES)
    out = io.BytesIO()
    try:
        stream.push(view[HEADER_BYTES:], out)
    except (InvalidTag, _TooManyChunksError) as exc:
        raise ChunkError from exc
    nonce, rest = stream.last()
    out.write(_open_chunk(aead, nonce, rest))
    return out.getvalue()


def commits_to(key: bytes, context: bytes, header: bytes) -> bool:
    """Return whether a 56-byte `header` commits to this key and context, in constant time."""
    if len(key) != KEY_BYTES or len(header) != HEADER_BYTES:
        return False
    derived = _derive(key, context, header[:SALT_BYTES])
    return hmac.compare_digest(derived[-COMMITMENT_BYTES:], header[SALT_BYTES:])


class Sealer:
    """Seals a stream. The caller emits `header`, then the results of `update` and `finish`.

    Args:
        key: 32 bytes.
        context: the message's kind, and what it belongs to.
        salt: 24 bytes, only for known-answer tests (see `seal`).

    Raises:
        ValueError: the key or the salt has another length.
    """

    header: bytes
    """The 56 bytes that precede the chunks."""

    def __init__(self, key: bytes, context: bytes, *, salt: bytes | None = None) -> None:
        self._aead, base_nonce, self.header = _fresh(key, context, salt)
        self._stream = _ChunkStream(
            self._aead.encrypt_into, base_nonce, CHUNK_BYTES, SEALED_CHUNK_BYTES
        )
        self._over = False

    def update(self, data: BytesLike) -> bytes:
        """Add plaintext; return the chunks that it fills, sealed (often none).

        Raises:
            ValueError: the stream is finished, or the message would exceed 4 PiB.
        """
        if self._over:
            raise ValueError("this stream is finished")
        out = io.BytesIO()
        self._stream.push(data, out)
        return out.getvalue()

    def finish(self) -> bytes:
        """Return the last chunk, sealed.

        Raises:
            ValueError: the stream is finished already.
        """
        if self._over:
            raise ValueError("this stream is finished")
        self._over = True
        nonce, rest = self._stream.last()
        return self._aead.encrypt(nonce, rest, None)


class Opener:
    """Opens a stream: the output of `update` and `finish` is authentic, in order, from 0.

    Only once `finish` has returned is the plaintext known to be complete. After a failure every
    further call fails, too.

    Args:
        key: 32 bytes.
        context: the message's required kind, and what it must belong to.
        header: the first 56 bytes of the sealed message.

    Raises:
        CommitmentError: the header (which may be cut) does not commit to this key and context.
    """

    def __init__(self, key: bytes, context: bytes, header: bytes) -> None:
        self._aead, base_nonce = _checked(key, context, header)
        self._stream = _ChunkStream(
            self._aead.decrypt_into, base_nonce, SEALED_CHUNK_BYTES, CHUNK_BYTES
        )
        self._over = False

    def update(self, data: BytesLike) -> bytes:
        """Add sealed bytes; return the plaintext of the full chunks that they complete.

        Raises:
            ChunkError: a chunk is not authentic, or the stream is over.
        """
        if self._over:
            raise ChunkError
        self._over = True  # until all of this is known to be authentic
        out = io.BytesIO()
        try:
            self._stream.push(data, out)
        except (InvalidTag, _TooManyChunksError) as exc:
            raise ChunkError from exc
        self._over = False
        return out.getvalue()

    def finish(self) -> bytes:
        """Return the plaintext of the last, short chunk: the message is complete.

        Raises:
            ChunkError: the stream is cut, its last chunk is not authentic, or it is over.
        """
        if self._over:
            raise ChunkError
        self._over = True
        nonce, rest = self._stream.last()
        return _open_chunk(self._aead, nonce, rest)


class ChunkReader:
    """Opens single chunks of a message, in any order.

    A chunk proves its own position and nothing about the length: that is known once the last chunk
    has been opened with `last=True`.

    Args:
        key: 32 bytes.
        context: the message's required kind, and what it must belong to.
        header: the first 56 bytes of the sealed message.

    Raises:
        CommitmentError: the header (which may be cut) does not commit to this key and context.
    """

    def __init__(self, key: bytes, context: bytes, header: bytes) -> None:
        self._aead, self._base_nonce = _checked(key, context, header)

    def open_chunk(self, index: int, sealed_chunk: BytesLike, *, last: bool) -> bytes:
        """Return the plaintext of chunk `index`, counted from 0.

        Args:
            index: the chunk's number.
            sealed_chunk: 16400 bytes, or 16 to 16399 for the last chunk.
            last: whether this chunk ends the message.

        Raises:
            ChunkError: it is not the chunk of that number, or not of that length.
        """
        size = len(sealed_chunk)
        fits = size < SEALED_CHUNK_BYTES if last else size == SEALED_CHUNK_BYTES
        if not fits or not 0 <= index < MAX_CHUNKS:
            raise ChunkError
        nonce = (self._base_nonce ^ index).to_bytes(_NONCE_BYTES, "big")
        return _open_chunk(self._aead, nonce, sealed_chunk)

    def open_chunks(self, first: int, sealed_chunks: BytesLike) -> bytearray:
        """Return the plaintext of consecutive chunks, none of which ends the message.

        Args:
            first: the number of the first one.
            sealed_chunks: whole chunks of 16400 bytes.

        Raises:
            ChunkError: they are not the chunks of these numbers; none of their plaintext is
                returned.
        """
        view = memoryview(sealed_chunks).cast("B")
        count, rest = divmod(len(view), SEALED_CHUNK_BYTES)
        if rest or first < 0 or first + count >= MAX_CHUNKS:
            raise ChunkError
        plaintext = bytearray(count * CHUNK_BYTES)
        target = memoryview(plaintext)
        try:
            for chunk in range(count):
                self._aead.decrypt_into(
                    (self._base_nonce ^ (first + chunk)).to_bytes(_NONCE_BYTES, "big"),
                    view[chunk * SEALED_CHUNK_BYTES : (chunk + 1) * SEALED_CHUNK_BYTES],
                    None,
                    target[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES],
                )
        except InvalidTag as exc:
            raise ChunkError from exc
        return plaintext

    @staticmethod
    def chunk_range(offset: int, length: int) -> tuple[int, int]:
        """Return the first chunk and the number of chunks over plaintext `offset`, `length`.

        No chunk covers a length of 0.

        Raises:
            ValueError: `offset` or `length` is negative.
        """
        if offset < 0 or length < 0:
            raise ValueError("an offset or a length is negative")
        first = offset // CHUNK_BYTES
        count = (offset + length - 1) // CHUNK_BYTES - first + 1 if length else 0
        return first, count

    @staticmethod
    def sealed_span(first: int, count: int) -> tuple[int, int]:
        """Return offset and length in the sealed message of `count` chunks from `first` on.

        The length is that of full chunks: the message may end before it, in its last chunk.
        """
        return HEADER_BYTES + first * SEALED_CHUNK_BYTES, count * SEALED_CHUNK_BYTES


class _TooManyChunksError(ValueError):
    """The message would exceed 2³⁸ chunks."""

    def __init__(self) -> None:
        super().__init__("a message holds at most 4 PiB")


class _ChunkStream:
    """Cuts a stream into full chunks and ciphers each one, all through one small buffer.

    That buffer stays in the processor's cache, and a BytesIO returns its bytes without a copy: so
    each byte of output is written to memory once, however large the pieces are.
    """

    def __init__(
        self,
        cipher: Callable[[BytesLike, BytesLike, None, memoryview], int],
        base_nonce: int,
        in_bytes: int,
        out_bytes: int,
    ) -> None:
        self._cipher = cipher
        self._base_nonce = base_nonce
        self._in_bytes = in_bytes
        self._index = 0
        self._held = bytearray()  # less than a full chunk, always
        self._chunk = memoryview(bytearray(out_bytes))

    def push(self, data: BytesLike, out: io.BytesIO) -> None:
        """Add input; write the output of the chunks that are now full.

        Raises:
            InvalidTag: a chunk is not authentic. The chunks before it have been written.
            _TooManyChunksError: the message would exceed its limit.
        """
        view = memoryview(data).cast("B")
        in_bytes, chunk, cipher, write = self._in_bytes, self._chunk, self._cipher, out.write
        # The last, short chunk needs its own number.
        if self._index + (len(self._held) + len(view)) // in_bytes >= MAX_CHUNKS:
            raise _TooManyChunksError
        at = 0
        if self._held:
            at = min(in_bytes - len(self._held), len(view))
            self._held += view[:at]
            if len(self._held) < in_bytes:
                return
            cipher(self._next_nonce(), self._held, None, chunk)
            write(chunk)
            self._held.clear()
        while len(view) - at >= in_bytes:
            cipher(self._next_nonce(), view[at : at + in_bytes], None, chunk)
            write(chunk)
            at += in_bytes
        self._held += view[at:]

    def last(self) -> tuple[bytes, bytes]:
        """Return the nonce of the last chunk, and its input."""
        return self._next_nonce(), bytes(self._held)

    def _next_nonce(self) -> bytes:
        nonce = (self._base_nonce ^ self._index).to_bytes(_NONCE_BYTES, "big")
        self._index += 1
        return nonce


def _derive(key: bytes, context: bytes, salt: bytes) -> bytes:
    """Return AEAD key (32) ‖ base nonce (12) ‖ commitment (32)."""
    return HKDFExpand(_SHA512, _DERIVED_BYTES, _INFO + salt + context).derive(key)


def _fresh(key: bytes, context: bytes, salt: bytes | None) -> tuple[AESGCM, int, bytes]:
    """Return cipher, base nonce and header of a new message."""
    if salt is None:
        salt = os.urandom(SALT_BYTES)
    if len(key) != KEY_BYTES or len(salt) != SALT_BYTES:
        raise ValueError("a key has 32 bytes, a salt 24")
    derived = _derive(key, context, salt)
    aead, base_nonce = _split(derived)
    return aead, base_nonce, salt + derived[-COMMITMENT_BYTES:]


def _checked(key: bytes, context: bytes, header: bytes) -> tuple[AESGCM, int]:
    """Return cipher and base nonce of a message whose header commits to this key and context."""
    if len(key) != KEY_BYTES or len(header) != HEADER_BYTES:
        raise CommitmentError
    derived = _derive(key, context, header[:SALT_BYTES])
    if not hmac.compare_digest(derived[-COMMITMENT_BYTES:], header[SALT_BYTES:]):
        raise CommitmentError
    return _split(derived)


def _split(derived: bytes) -> tuple[AESGCM, int]:
    """Return cipher and base nonce from the derived bytes."""
    nonce = int.from_bytes(derived[KEY_BYTES:-COMMITMENT_BYTES], "big")
    return AESGCM(derived[:KEY_BYTES]), nonce


def _open_chunk(aead: AESGCM, nonce: bytes, sealed_chunk: BytesLike) -> bytes:
    """Open one chunk, whose length fits its position. One without a tag is not authentic."""
    try:
        return aead.decrypt(nonce, sealed_chunk, None)
    except InvalidTag as exc:
        raise ChunkError from exc
