"""A project's admin KEKs as a value, for decisions without I/O (SPEC 2.2). Pure."""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from keyturn.crypto.keys import Secret
from keyturn.errors import KmsUnavailableError, UnknownMasterKeyError


@dataclass(frozen=True, slots=True)
class AdminKeks:
    """One project's admin KEK under each master key of this process.

    `keks` is by master key id, in the order of the settings. `unavailable` are the master keys
    whose provider gave no KEK now: a wrap that opens under none of `keks` may still open under one
    of these. `wrong` are the ids by which the bucket knows another key than this process has;
    another process may have the right one.
    """

    project: str
    keks: Mapping[str, Secret] = field(default_factory=dict)
    unavailable: frozenset[str] = frozenset()
    wrong: frozenset[str] = frozenset()

    def without(self, *, unavailable: AbstractSet[str], wrong: AbstractSet[str]) -> "AdminKeks":
        """A copy without the KEKs of master keys that proved unavailable or wrong."""
        keks = {name: kek for name, kek in self.keks.items() if name not in unavailable | wrong}
        return AdminKeks(self.project, keks, self.unavailable | unavailable, self.wrong | wrong)

    def in_order(self, *, first: str = "") -> Iterator[tuple[str, Secret]]:
        """Each KEK with its master key's id; `first` leads."""
        for master_key in dict.fromkeys((first, *self.keks)):
            kek = self.keks.get(master_key)
            if kek is not None:
                yield master_key, kek

    def require(self, master_key: str) -> Secret:
        """The KEK under one master key.

        Raises:
            UnknownMasterKeyError: this process lacks that master key.
            KmsUnavailableError: its provider is unreachable.
        """
        kek = self.keks.get(master_key)
        if kek is not None:
            return kek
        if master_key in self.unavailable:
            raise KmsUnavailableError(f"the provider of {master_key} is unavailable")
        raise UnknownMasterKeyError(master_key)

    def check_complete(self) -> None:
        """Check that every KEK was available, before a failure to open is called final.

        Raises:
            KmsUnavailableError: a master key of this process gave no KEK now.
            UnknownMasterKeyError: this process has another key by one of the ids.
        """
        if self.unavailable:
            names = ", ".join(sorted(self.unavailable))
            raise KmsUnavailableError(f"it may open under an unavailable master key: {names}")
        if self.wrong:
            names = ", ".join(sorted(self.wrong))
            raise UnknownMasterKeyError(
                f"{names} (this process's key under this id does not match the bucket)"
            )
