"""What comes along with a source's object: its content type and user metadata (SPEC 17.2). Pure."""

from keyturn.errors import MalformedRequestError
from keyturn.metadata import (
    OWN_PREFIX,
    check_content_type,
    decode_caller_metadata,
    encode_caller_metadata,
)
from keyturn_workers.core.storage_values import ObjectHead


def check_plaintext(head: ObjectHead) -> None:
    """Check that an object is not encrypted by Keyturn, or by the earlier system.

    Raises:
        MalformedRequestError: it is.
    """
    if any(name.startswith(OWN_PREFIX) for name in head.metadata):
        raise MalformedRequestError("the source's object has enc- metadata: it is encrypted")


def content_type_of(head: ObjectHead) -> str | None:
    """The content type; None if the object has none.

    Raises:
        MalformedRequestError: SPEC 4.3 does not allow it.
    """
    content_type = head.headers.content_type
    return None if content_type is None else check_content_type(content_type)


def metadata_of(head: ObjectHead) -> dict[str, str]:
    """The user metadata, without `enc-` names.

    Raises:
        MalformedRequestError: SPEC 4.3 does not allow it.
    """
    caller = {n: v for n, v in head.metadata.items() if not n.startswith(OWN_PREFIX)}
    # Keyturn's metadata names have `-`; other programs write `_`, rare in HTTP headers.
    metadata = {
        name.replace("_", "-"): value for name, value in decode_caller_metadata(caller).items()
    }
    encode_caller_metadata(metadata)
    if len(metadata) != len(caller):
        raise MalformedRequestError("two metadata names differ only in - and _")
    return metadata
