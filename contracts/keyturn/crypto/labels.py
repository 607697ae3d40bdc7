"""The joining of a label's parts; the labels themselves are beside their uses (SPEC 2 to 6).

A label separates one use of a key from another. It is its parts joined by zero bytes. It must never
be ambiguous: a part with a zero byte of its own could move the border between two parts, and make a
wrap for one object open as the wrap of another.
"""


def label(*parts: str) -> bytes:
    r"""Return the UTF-8 of `parts` joined by one zero byte each.

    Raises:
        ValueError: a part has a zero byte, or cannot be written as UTF-8. The names that SPEC 1
            allows never do; this is a second line of defense, not the check of a name.
    """
    joined = "\0".join(parts)
    if joined.count("\0") != len(parts) - 1:
        raise ValueError("a label's parts hold no zero byte")
    try:
        return joined.encode()
    except UnicodeEncodeError:
        raise ValueError("a label's parts are UTF-8") from None  # its cause quotes the part
