"""What the operator holds: master keys, and the KEKs that follow from them (SPEC 2.2, 4.6). Pure.

A sweep looks at thousands of objects a second, so that an admin KEK is derived once a
project and master key, not once an object.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from keyturn.crypto import Secret, admin_kek

_MAX_DERIVED: Final = 4096


@dataclass(frozen=True, slots=True)
class OperatorKeys:
    """The master keys by their ids, and the earlier system's admin KEK where it is held."""

    master_keys: Mapping[str, Secret]
    v0_admin_kek: Secret | None = None
    _derived: dict[tuple[str, str], Secret] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def admin_kek(self, name: str, project: str) -> Secret | None:
        """A project's admin KEK under the master key `name`, or None where that is not held."""
        derived = self._derived.get((name, project))
        if derived is not None:
            return derived
        master_key = self.master_keys.get(name)
        if master_key is None:
            return None
        if len(self._derived) >= _MAX_DERIVED:
            self._derived.clear()  # a sweep of all projects must not grow for ever
        derived = self._derived[name, project] = admin_kek(master_key.reveal(), project)
        return derived
