"""The operator's keys: master keys, and the KEKs derived from them (SPEC 2.2, 4.6). Pure.

A process builds one `OperatorKeys` and passes it on. It derives an admin KEK once per project
and master key: a sweep opens thousands of objects a second.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from keyturn.crypto import Secret, admin_kek, v0_admin_kek

_MAX_DERIVED: Final = 4096


@dataclass(frozen=True, slots=True)
class OperatorKeys:
    """The master keys by id, and the admin KEK of the earlier system if it is available."""

    master_keys: Mapping[str, Secret]
    v0_admin_kek: Secret | None = None
    _derived: dict[tuple[str, str], Secret] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def derive(cls, master_keys: Mapping[str, Secret], v0_master_key: str | None) -> Self:
        """The operator's keys from the settings; `v0_master_key` is that of the earlier system."""
        return cls(master_keys, None if v0_master_key is None else v0_admin_kek(v0_master_key))

    def admin_kek(self, master_key: str, project: str) -> Secret | None:
        """A project's admin KEK under the master key of this id; None if that is not available."""
        derived = self._derived.get((master_key, project))
        if derived is not None:
            return derived
        secret = self.master_keys.get(master_key)
        if secret is None:
            return None
        if len(self._derived) >= _MAX_DERIVED:
            self._derived.clear()  # bounds the memory of a sweep of all projects
        derived = self._derived[master_key, project] = admin_kek(secret.reveal(), project)
        return derived

    def admin_keks(self, project: str, *, first: str = "") -> Iterator[tuple[str, Secret]]:
        """A project's admin KEK under each available master key, by id; `first` leads."""
        for master_key in dict.fromkeys((first, *self.master_keys)):
            kek = self.admin_kek(master_key, project)
            if kek is not None:
                yield master_key, kek
