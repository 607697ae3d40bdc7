"""Object keys that SPEC 1 allows but this bucket cannot store (SPEC 1, 7.2, 8.5). Pure.

A server that keeps objects as files in folders may treat two keys as one, or hide some folders
from its listings. An object under the first kind of key would be another key's object. Every
sweep would miss an object under the second kind, and a proof would not cover it. So neither is
ever stored.
"""

from typing import Final

from keyturn.errors import MalformedRequestError
from keyturn_workers.core.storage_values import Capabilities

_HIDDEN_ENDING: Final = ".versions"
_HIDDEN_BEGINNING: Final = ".uploads"
# A file's name may have 255 bytes, and SeaweedFS adds the ending for an object with versions. An
# unversioned bucket could store a longer name, but not rewrap it once versioning is enabled.
_NAME_MAX_BYTES: Final = 255 - len(_HIDDEN_ENDING)


def check_storable(object_key: str, capabilities: Capabilities) -> None:
    """Refuse an object key that this bucket cannot store unchanged.

    Raises:
        MalformedRequestError: the bucket treats it as another key, would not list it, or cannot
            store a name that long.
    """
    names = object_key.split("/")
    if is_alias(object_key, capabilities):
        raise MalformedRequestError(
            "this bucket's storage treats a backslash as a slash: choose a key without one"
        )
    if capabilities.unlisted_names and any(map(_is_hidden, names)):
        raise MalformedRequestError(
            f"this bucket's storage reserves names that end with {_HIDDEN_ENDING} or begin with "
            f"{_HIDDEN_BEGINNING}: choose another key"
        )
    if capabilities.keys_are_paths and any(len(n.encode()) > _NAME_MAX_BYTES for n in names):
        raise MalformedRequestError(
            f"this bucket's storage allows at most {_NAME_MAX_BYTES} bytes between two slashes"
        )


def is_alias(object_key: str, capabilities: Capabilities) -> bool:
    """Return True if the storage treats this key as another one: nothing is stored under it."""
    return capabilities.keys_are_paths and "\\" in object_key


def _is_hidden(name: str) -> bool:
    return name.endswith(_HIDDEN_ENDING) or name.startswith(_HIDDEN_BEGINNING)
