"""Object keys that SPEC 1 allows and this bucket cannot hold as they are (SPEC 1, 7.2, 8.5). Pure.

A server that keeps objects as files in folders may take two keys for one, or hide some folders
from its listings. An object under the first kind of key would be another key's object. One under
the second kind would be missed by every sweep, and proven away. So neither is ever stored.
"""

from typing import Final

from keyturn.errors import MalformedRequestError
from keyturn_workers.storage import Capabilities

_HIDDEN_ENDING: Final = ".versions"
_HIDDEN_BEGINNING: Final = ".uploads"
# A file's name may have 255 bytes, and SeaweedFS adds the ending for an object with versions. In
# a bucket that has none yet, a longer name could be stored, but not rewrapped once it has them.
_NAME_MAX_BYTES: Final = 255 - len(_HIDDEN_ENDING)


def check_storable(object_key: str, capabilities: Capabilities) -> None:
    """Refuse an object key that this bucket cannot hold as it is.

    Raises:
        MalformedRequestError: the bucket takes it for another key, would not list it, or has no
            place for a name that long.
    """
    names = object_key.split("/")
    if is_alias(object_key, capabilities):
        raise MalformedRequestError(
            "this bucket's storage takes a backslash for a slash: choose a key without one"
        )
    if capabilities.unlisted_names and any(map(_is_hidden, names)):
        raise MalformedRequestError(
            f"this bucket's storage keeps names that end with {_HIDDEN_ENDING} or begin with "
            f"{_HIDDEN_BEGINNING} for itself: choose another key"
        )
    if capabilities.keys_are_paths and any(len(n.encode()) > _NAME_MAX_BYTES for n in names):
        raise MalformedRequestError(
            f"this bucket's storage allows {_NAME_MAX_BYTES} bytes between two slashes of a key"
        )


def is_alias(object_key: str, capabilities: Capabilities) -> bool:
    """Whether the storage takes this key for another one, so that nothing is stored under it."""
    return capabilities.keys_are_paths and "\\" in object_key


def _is_hidden(name: str) -> bool:
    return name.endswith(_HIDDEN_ENDING) or name.startswith(_HIDDEN_BEGINNING)
