"""Standard base64 with padding, read strictly (SPEC, preamble and 6.3).

Each byte string has exactly one spelling. A text that two readers could decode differently, or that
decodes to the same bytes as another one, is refused. So a signed or remembered message has only one
encoding. It must never put a refused text into an error, since it may be a sealed key.
"""

import binascii


def to_base64(data: bytes) -> str:
    """Return `data` in standard base64 with padding, without line breaks."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


class Base64Text(str):
    """A text that is valid base64 and carries its bytes. Made by `validate_base64` only."""

    __slots__ = ("data",)
    data: bytes


def validate_base64(text: str) -> Base64Text:
    """Return the text with its bytes attached, so that `from_base64` need not decode it again.

    Raises:
        ValueError: as `from_base64`.
    """
    checked = Base64Text(text)
    checked.data = from_base64(text)
    return checked


def from_base64(text: str) -> bytes:
    """Return the decoded bytes of `text`.

    Raises:
        ValueError: `text` has a character outside the standard alphabet (white space, too), is not
            padded to a multiple of four, or sets bits that no byte uses.
    """
    if isinstance(text, Base64Text):
        return text.data
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise ValueError("not standard base64 with padding") from None  # its cause may quote
    # Strict mode allows stray bits in the last quantum: "QR==" reads as "QQ==" does.
    tail = data[len(data) - (len(data) % 3 or 3) :] if data else b""
    if binascii.b2a_base64(tail, newline=False) != text[-4:].encode("ascii"):
        raise ValueError("not standard base64 with padding")
    return data
