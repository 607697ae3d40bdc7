"""Standard base64 with padding, read strictly (SPEC, preamble and 6.3).

One byte string has one spelling: what two readers would decode differently, or what
decodes to the same bytes as another text, is refused. An attacker cannot vary a
message that was signed or remembered without its bytes changing.
It must never put the text it refuses into an error, since that may be a sealed key.
"""

import binascii


def b64(data: bytes) -> str:
    """Return `data` in standard base64 with padding, without line breaks."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


class B64Text(str):
    """A text that was found to be base64, and carries its bytes; made by `b64_checked` alone."""

    __slots__ = ("data",)
    data: bytes


def b64_checked(text: str) -> B64Text:
    """Return the text itself with its bytes, so that `b64_decode` need not read it again.

    Raises:
        ValueError: as `b64_decode`.
    """
    checked = B64Text(text)
    checked.data = b64_decode(text)
    return checked


def b64_decode(text: str) -> bytes:
    """Return the bytes that `text` spells.

    Raises:
        ValueError: `text` holds a character outside the standard alphabet (white space too),
            is not padded to a multiple of four, or sets bits that no byte uses.
    """
    if isinstance(text, B64Text):
        return text.data
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise ValueError("not standard base64 with padding") from None  # its cause may quote
    # Strict mode lets stray bits through in the last quantum: "QR==" reads as "QQ==" does.
    tail = data[len(data) - (len(data) % 3 or 3) :] if data else b""
    if binascii.b2a_base64(tail, newline=False) != text[-4:].encode("ascii"):
        raise ValueError("not standard base64 with padding")
    return data
