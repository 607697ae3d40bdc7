"""What the URI of a key on a PKCS #11 token names: a module, a token, its PIN, a key (SPEC 2.2)."""

from contextlib import suppress
from pathlib import Path
from typing import Final

import pkcs11
from pkcs11 import Attribute, KeyType, ObjectClass, PKCS11Error

from keyturn.crypto import Secret
from keyturn.errors import KmsUnavailableError, SettingsError
from keyturn_workers.key_uris import Pkcs11Uri
from keyturn_workers.master_keys.pkcs11_module import Pkcs11Module, module_at, translate
from keyturn_workers.master_keys.port import KmsRefusedError
from keyturn_workers.settings import KmsSettings

_HMAC_KEY_TYPES: Final = (KeyType.GENERIC_SECRET, KeyType.SHA256_HMAC)


class TokenAccess:
    """The module, the token and the PIN that a URI and the settings name.

    Raises:
        SettingsError: there is no module's path, or no PIN.
    """

    def __init__(self, uri: Pkcs11Uri, settings: KmsSettings) -> None:
        path = uri.module_path or settings.pkcs11_module
        if path is None:
            raise SettingsError("KEYTURN_PKCS11_MODULE is missing")
        self._uri = uri
        self._pin = uri.pin
        self._pin_file = None if uri.pin_source is None else Path(uri.pin_source)
        if self._pin is None and self._pin_file is None:
            self._pin_file = settings.pkcs11_pin_file
            if settings.pkcs11_pin is not None:
                self._pin = Secret(settings.pkcs11_pin.get_secret_value().encode())
        if self._pin is None and self._pin_file is None:
            raise SettingsError("KEYTURN_PKCS11_PIN or KEYTURN_PKCS11_PIN_FILE is missing")
        self.module: Pkcs11Module = module_at(str(path))

    def open_session(self, epoch: int, *, writable: bool = False) -> pkcs11.Session:
        """Open a session of the token's user. Only within `module.call`."""
        token = self.module.token(self._uri)
        return self.module.open_session(token, self._read_pin, epoch, writable=writable)

    def _read_pin(self) -> Secret:
        """The PIN; a file is read at each login, so that a corrected one is noticed."""
        if self._pin is not None:
            return self._pin
        assert self._pin_file is not None  # noqa: S101  # one of the two is there
        try:
            pin = self._pin_file.read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError):
            raise KmsUnavailableError("the file with the PKCS #11 PIN cannot be read") from None
        if not pin:  # it may be on its way; an empty PIN would be a wrong one
            raise KmsUnavailableError("the file with the PKCS #11 PIN is empty")
        return Secret(pin.encode())


def close_quietly(session: pkcs11.Session) -> None:
    """Close a session that may be lost."""
    with suppress(PKCS11Error):
        session.close()


def key_name(uri: Pkcs11Uri) -> dict[Attribute, object]:
    """The label and the id of the key that a URI names."""
    name: dict[Attribute, object] = {}
    if uri.object is not None:
        name[Attribute.LABEL] = uri.object
    if uri.id is not None:
        name[Attribute.ID] = uri.id
    return name


def key_template(uri: Pkcs11Uri) -> dict[Attribute, object]:
    """What the key that a URI names has in common with no other."""
    return {Attribute.CLASS: ObjectClass.SECRET_KEY, **key_name(uri)}


def find_key(session: pkcs11.Session, uri: Pkcs11Uri) -> pkcs11.SignMixin:
    """Find the one key that the URI matches, and check that it can compute an HMAC.

    Raises:
        KmsRefusedError: no key matches, or more than one, or one of another kind.
    """
    try:
        keys = list(session.get_objects(key_template(uri)))
        if not keys:
            raise KmsRefusedError("the PKCS #11 token has no key that matches the URI")
        if len(keys) > 1:
            raise KmsRefusedError(
                f"{len(keys)} keys of the PKCS #11 token match the URI: add id= to the URI"
            )
        key = keys[0]
        if not isinstance(key, pkcs11.SignMixin) or not _is_hmac_key(key):
            raise KmsRefusedError(
                "the PKCS #11 key is not an HMAC key: its type must be GENERIC_SECRET or "
                "SHA256_HMAC, and CKA_SIGN must be true"
            )
    except PKCS11Error as exc:
        raise translate(exc) from exc
    return key


def _is_hmac_key(key: pkcs11.SignMixin) -> bool:
    try:
        return key[Attribute.KEY_TYPE] in _HMAC_KEY_TYPES
    except ValueError:  # a type that python-pkcs11 does not know
        return False
