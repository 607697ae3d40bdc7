"""Find wraps that a bucket writer hid in values that a rewrap keeps (SPEC 8.2). Pure.

A clean end states that the keys it retires open nothing. But each rewrap would keep an old wrap
that an attacker copied into a caller's metadata, a content header or a tag. Only a value that a
retired key opens counts: a caller's value that merely looks like a wrap must not keep rotations
from ending. So a caller's values need no other check.
"""

import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

from keyturn.crypto.keys import Secret
from keyturn.crypto.wraps import Role, unwrap_dek
from keyturn.errors import CustomerKeyRefusedError, HiddenWrapError, SealError
from keyturn.metadata import ALGO, COBBLESTONE, OWN_NAMES, unknown_names
from keyturn_workers.core.admin_keks import AdminKeks
from keyturn_workers.core.customer_keys import NO_SECRETS
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.keyring import DesiredState, Keyring
from keyturn_workers.core.lost_keyring import UNKNOWN_KEK_ID
from keyturn_workers.core.storage_values import ObjectHead
from keyturn_workers.core.wraps import past_generations

_WRAP_LETTERS: Final = 139
"""The number of base64 letters in a wrap, without padding."""
# Of 139 random letters, about 57 are distinct. Fewer than this are less likely than one in 10^8.
# Text in a natural language has about 30, so it costs nothing.
_MIN_DISTINCT: Final = 40
_MAX_ATTEMPTS: Final = 2**16
"""The attempts at one object's values: half a second of CPU."""
_MAX_UNKNOWN_GENERATIONS: Final = 1024
_URL_SAFE: Final = str.maketrans("-_", "+/")
_FOREIGN: Final = re.compile(r"[^A-Za-z0-9+/]")


RetiredKeys: TypeAlias = Sequence[tuple[Role, int, Secret]]
"""A project's KEKs that the next clean end retires, or that a change of master key or of customer
key retired: the role, the generation and the KEK of the wraps that each opens."""


def retired_keys(keyring: Keyring, desired: DesiredState, admin_keks: AdminKeks) -> RetiredKeys:
    """Return the KEKs that must open nothing at a clean end.

    At a generation with a customer key, the KEK is the composite one. A secret that its store
    refuses makes none.

    Raises:
        KmsUnavailableError, UnknownMasterKeyError: one of them is not available now.
        SecretNeededError, CustomerKeyUnavailableError: likewise, of a customer key.
    """
    secrets = admin_keks.secrets
    secrets.check_keys(keyring.customer_keys)
    for generation in secrets.keys:
        with suppress(CustomerKeyRefusedError):
            secrets.require(generation)
    admin_keks.with_secrets(NO_SECRETS).check_complete()
    plain: list[tuple[Role, int, Secret]] = [
        ("user", entry.generation, entry.kek) for entry in keyring.history if entry.kek is not None
    ]
    for master_key, kek in admin_keks.in_order():
        if master_key != desired.master_key:
            generations = (desired.generation, *past_generations(keyring))
            plain += [("admin", generation, kek) for generation in generations]
    for generation, kek_id in _without_secret(keyring).items():
        plain.append(("admin", generation, desired.admin_kek))
        # A lost generation may have had the same API key.
        if generation not in keyring.user_keks and kek_id in (UNKNOWN_KEK_ID, desired.kek_id):
            plain.append(("user", generation, desired.user_kek))
    return [
        (role, generation, there)
        for role, generation, kek in plain
        if (there := secrets.kek_at(generation, role, keyring.project, kek)) is not None
    ]


def may_retire(keyring: Keyring, desired: DesiredState, keys: KekDeriver) -> bool:
    """Return whether `retired_keys` may find any. Asks no provider."""
    has_others = any(master_key != desired.master_key for master_key in keys.ids)
    return has_others or _has_old_keys(keyring)


def _has_old_keys(keyring: Keyring) -> bool:
    """Return whether the next clean end clears a KEK, or a secret that wraps may need.

    Or whether it is the first to show that all wraps of an unproven project need a secret.
    """
    others = {key.secret_id for key in keyring.customer_keys.values()}
    is_unproven = keyring.unproven and keyring.current.customer_key is not None
    return keyring.has_old_keks or bool(others - {keyring.current.secret_id}) or is_unproven


def _without_secret(keyring: Keyring) -> Mapping[int, str]:
    """The generations whose wraps lack the secret that the next clean end says every wrap needs.

    Each with its KEK id. Whoever removes the keyring in the middle of the first rotation to a
    customer key must not end the search.
    """
    if not _has_old_keys(keyring):
        return {}
    current, kek_ids = keyring.current, dict[int, str]()
    if keyring.unproven and current.customer_key is not None:
        first = max(1, current.generation - _MAX_UNKNOWN_GENERATIONS)
        kek_ids = dict.fromkeys(range(first, current.generation), UNKNOWN_KEK_ID)
    kek_ids |= {entry.generation: entry.kek_id for entry in keyring.history}
    with_secret = {e.generation for e in keyring.history if e.secret_id == current.secret_id}
    return {number: kek_id for number, kek_id in kek_ids.items() if number not in with_secret}


def long_values(head: ObjectHead, tags: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the values that a rewrap keeps and that are as long as a wrap, with their places."""
    tagged = [(f"the tag {key!a}", text) for key, value in tags.items() for text in (key, value)]
    values = (*_values(head), *tagged)
    return [(place, value) for place, value in values if len(value) >= _WRAP_LETTERS]


def check_nothing_hidden(
    values: Sequence[tuple[str, str]], project: str, object_key: str, keys: RetiredKeys
) -> None:
    """Check that no retired key opens a wrap of this object in its `long_values`.

    This may take half a second.

    Raises:
        HiddenWrapError: a value contains such a wrap, or there is too much to try.
    """
    search = _Search(project, object_key, keys)
    for place, value in values:
        if search.opens(value):
            raise HiddenWrapError(
                f"{place} holds a wrap that a retired key opens: remove that value"
            )


def _values(head: ObjectHead) -> Iterator[tuple[str, str]]:
    # Without an algorithm, no check has covered any `enc-` name.
    checked = OWN_NAMES.difference(unknown_names(head.metadata)) if ALGO in head.metadata else ()
    for name, value in head.metadata.items():
        if name not in checked:
            yield f"the metadata {name!a}", value
    yield "the content type", head.headers.content_type or ""
    for name, value in head.headers.restated.items():
        yield f"the header {name}", value


@dataclass(slots=True)
class _Search:
    """The search of one object's values, limited because a bucket writer decides their number."""

    project: str
    object_key: str
    keys: RetiredKeys
    attempts: int = 0

    def opens(self, value: str) -> bool:
        """Return whether a retired key opens any part of a value."""
        letters = _FOREIGN.sub("", value.translate(_URL_SAFE))
        for part in _parts(letters) if self.keys else ():
            self._count(len(self.keys))
            if any(self._is_wrap(part, *key) for key in self.keys):
                return True
        return False

    def _count(self, attempts: int) -> None:
        self.attempts += attempts
        if self.attempts > _MAX_ATTEMPTS:
            raise HiddenWrapError("too many long values to search: shorten or remove them")

    def _is_wrap(self, part: bytes, role: Role, generation: int, kek: Secret) -> bool:
        with suppress(SealError):
            unwrap_dek(
                kek,
                role,
                algorithm=COBBLESTONE,
                project=self.project,
                object_key=self.object_key,
                generation=generation,
                wrap=part,
            )
            return True
        return False


def _parts(letters: str) -> Iterator[bytes]:
    """The bytes of each run of letters that could be a wrap."""
    for first in range(len(letters) - _WRAP_LETTERS + 1):
        part = letters[first : first + _WRAP_LETTERS]
        if len(set(part)) >= _MIN_DISTINCT:
            yield binascii.a2b_base64(part + "=")
