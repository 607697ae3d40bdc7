"""A project's admin KEKs as a value, for decisions without I/O (SPEC 2.2). Pure."""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from keyturn.crypto.keys import Secret
from keyturn.errors import KmsUnavailableError, UnknownMasterKeyError
from keyturn_workers.core.customer_keys import NO_SECRETS, CustomerSecrets


@dataclass(frozen=True, slots=True)
class AdminKeks:
    """One project's admin KEK under each master key of this process.

    `keks` is by master key id, in the order of the settings. `unavailable` are the master keys
    whose provider gave no KEK now: a wrap that opens under none of `keks` may still open under one
    of these. `wrong` are the ids by which the bucket knows another key than this process has;
    another process may have the right one. `secrets` are what wraps need beside a KEK, at the
    generations with a customer key.
    """

    project: str
    keks: Mapping[str, Secret] = field(default_factory=dict)
    unavailable: frozenset[str] = frozenset()
    wrong: frozenset[str] = frozenset()
    secrets: CustomerSecrets = NO_SECRETS

    def with_secrets(self, secrets: CustomerSecrets) -> "AdminKeks":
        """A copy with these customer secrets."""
        return replace(self, secrets=secrets)

    def without(self, *, unavailable: AbstractSet[str], wrong: AbstractSet[str]) -> "AdminKeks":
        """A copy without the KEKs of master keys that proved unavailable or wrong."""
        keks = {name: kek for name, kek in self.keks.items() if name not in unavailable | wrong}
        return replace(
            self,
            keks=keks,
            unavailable=self.unavailable | unavailable,
            wrong=self.wrong | wrong,
        )

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

    def check_complete(self, likely: int | None = None) -> None:
        """Check that every key was available, before a failure to open is called final.

        `likely` is the generation whose customer secret is asked for first.

        Raises:
            KmsUnavailableError: a master key of this process gave no KEK now.
            UnknownMasterKeyError: this process has another key by one of the ids.
            SecretNeededError: a customer secret was not asked for yet.
            CustomerKeyRefusedError, CustomerKeyUnavailableError: a customer secret was not given.
        """
        self.secrets.check_complete(likely)
        if self.unavailable:
            names = ", ".join(sorted(self.unavailable))
            raise KmsUnavailableError(f"it may open under an unavailable master key: {names}")
        if self.wrong:
            names = ", ".join(sorted(self.wrong))
            raise UnknownMasterKeyError(
                f"{names} (this process's key under this id does not match the bucket)"
            )
