"""The stores of customer keys, in which a key can refuse, be away, or give another secret.

Each call is a request on the network: a store that hangs is one whose requests are held.
"""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from keyturn.crypto import Secret, composite_kek, customer_secret_id, new_customer_secret
from keyturn.errors import (
    CustomerKeyRefusedError,
    CustomerKeyUnavailableError,
    NotPermittedError,
)
from keyturn_workers.core.customer_keys import CustomerKey, SecretNeededError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyturn_workers.core.customer_keys import CustomerSecrets, KeyName
    from keyturn_workers.core.keyring import Keyring
    from tests.protocol.broker import Delivery
    from tests.protocol.process import Process
    from tests.protocol.waiters import SentRequest
    from tests.protocol.wire import Network

# The keys that the settings give to each project: store and key.
GIVEN: Final = {"acme": ("acme-kms/k1", "acme-kms/k2"), "beta": ("beta-kms/b1",)}
# Of generations that a mark alone has.
UNKNOWN_KEK_ID: Final = "0" * 16
CACHE_S: Final = 40
_T = TypeVar("_T")
Mood = Literal["gives", "refuses", "away", "lies"]


def named(key: str) -> dict[str, str]:
    """A key, as requests name it."""
    store, _, name = key.partition("/")
    return {"store": store, "key": name}


class CustomerKeyLaws:
    """What must hold of customer keys (SPEC 2.6). Shares no code with the workers.

    Args:
        violated: Takes what is wrong.
    """

    def __init__(self, violated: Callable[[str], None]) -> None:
        self._violated = violated
        # By id: every secret that a store ever encrypted.
        self.secrets: dict[str, Secret] = {}
        # By what a store returned: the project and the id of the secret in it.
        self.wrapped: dict[str, tuple[str, str]] = {}
        # By project and generation: the id of the secret that its wraps need.
        self.ids: dict[str, dict[int, str]] = defaultdict(dict)
        # By process and secret: when calls that gave it were sent, and when it was refused.
        self._given_s: dict[tuple[Process, str], list[float]] = defaultdict(list)
        self._refused_s: dict[tuple[Process, str], list[float]] = defaultdict(list)

    # Keyrings.

    def counts(self, name: str, version: int, rest: dict[str, Any]) -> None:
        """A state of a keyring counts: it has every customer key that it had."""
        entries = [*rest["history"], rest]
        ids = self.ids[name]
        for entry in entries:
            generation, found = entry["generation"], entry.get("customer_key")
            if found is None:
                if generation in ids:
                    self._violated(f"the keyring of {name} lost a customer key of {generation}")
                continue
            if f"{found['store']}/{found['key']}" not in GIVEN[name]:
                self._violated(f"the keyring of {name} has a key that is not for it")
            if ids.setdefault(generation, found["secret_id"]) != found["secret_id"]:
                self._violated(f"the keyring of {name} has another secret at {generation}")
            wrapped = found.get("wrapped")
            # A clean end clears both; of a keyring that was lost, only the secret is known.
            if (wrapped is None) != (entry["kek"] is None) and entry["kek_id"] != UNKNOWN_KEK_ID:
                self._violated(f"the keyring of {name} keeps or lost a secret of {generation}")
            if wrapped is not None and self.wrapped.get(wrapped) != (name, found["secret_id"]):
                self._violated(f"no store gives back the secret of {name} at {generation}")
        has_any = any("customer_key" in entry for entry in entries)
        if version != (2 if has_any else 1):
            self._violated(f"the keyring of {name} is of version {version}")
        if "customer_key" in rest and rest["plaintext"] == "allowed":
            self._violated(f"{name} has a customer key, and plaintext is allowed")

    def rotated(self, name: str, rest: dict[str, Any], request: SentRequest | None) -> None:
        """A keyring has a new generation: it has what its request names, or keeps the rest."""
        if request is None:
            return
        number, now = rest["generation"], rest.get("customer_key")
        before = rest["history"][-1] if rest["history"] else {}
        kept = before.get("customer_key")
        wanted = request.document.get("customer_key")
        if wanted is None:
            if (now and now["secret_id"]) != (kept and kept["secret_id"]):
                self._violated(f"the customer key of {name} changed, and no request asked for it")
        elif now is None or {"store": now["store"], "key": now["key"]} != wanted:
            self._violated(f"{name} was rotated to another customer key than asked for")
        elif now["secret_id"] in {each for at, each in self.ids[name].items() if at < number}:
            self._violated(f"{name} was rotated, and its customer secret is an old one")
        if "sealed_kek" not in request.document and rest["kek_id"] != before.get("kek_id"):
            self._violated(f"the user KEK of {name} changed, and no request asked for it")

    def marked(self, name: str, mark: dict[str, Any], rest: dict[str, Any]) -> None:
        """A mark repeats every customer key that its keyring has (SPEC 5.5)."""
        entries = [*rest["history"], rest]
        wanted: dict[str, set[int]] = defaultdict(set)
        for entry in entries:
            if (wrapped := entry.get("customer_key", {}).get("wrapped")) is not None:
                wanted[wrapped].add(entry["generation"])
        found = {
            each["wrapped"]: set(each["generations"]) for each in mark.get("customer_keys", ())
        }
        if found != wanted:
            self._violated(f"a mark of {name} has other customer keys than its keyring")

    # Secrets.

    def encrypted(self, name: str, wrapped: str, secret: Secret) -> None:
        """A store encrypted a secret for a project."""
        secret_id = customer_secret_id(secret)
        self.secrets[secret_id] = secret
        self.wrapped[wrapped] = (name, secret_id)

    def gave(self, process: Process, secret_id: str, sent_s: float) -> None:
        """A process received a secret, by a call that it sent then."""
        self._given_s[process, secret_id].append(sent_s)

    def refused(self, process: Process, secret_id: str, now_s: float) -> None:
        """A process received a refusal, or another secret."""
        self._refused_s[process, secret_id].append(now_s)

    def wrapped_at(self, s3_key: str, generation: int, delivery: Delivery) -> None:
        """A worker wrote an object: what it then used of a secret was fresh when it began."""
        name = s3_key.partition("/")[0]
        secret_id = self.ids[name].get(generation)
        if secret_id is None:
            return
        at, began_s = (delivery.process, secret_id), delivery.began_s
        if not any(
            sent_s >= began_s - CACHE_S
            and not any(sent_s < refused_s < began_s for refused_s in self._refused_s[at])
            for sent_s in self._given_s[at]
        ):
            self._violated(f"{s3_key} was wrapped by a customer secret that was kept too long")

    # Wraps.

    def kek_at(self, name: str, generation: int, role: Any, kek: Secret) -> Secret:
        """What opens wraps at a generation."""
        secret_id = self.ids[name].get(generation)
        if secret_id is None:
            return kek
        return composite_kek(kek, self.secrets[secret_id], role, name, secret_id)


class Stores:
    """All keys of all stores, which no worker sees into."""

    def __init__(self, network: Network, laws: CustomerKeyLaws) -> None:
        self._network = network
        self._laws = laws
        self.moods: dict[str, Mood] = {}
        self._inside: dict[str, tuple[str, str, Secret]] = {}

    def mend(self) -> None:
        """Every key gives what it encrypted."""
        self.moods.clear()

    async def encrypt(self, process: Process, key: str, project: str, secret: Secret) -> str:
        """What a process is answered that has a secret encrypted."""

        async def encrypted() -> str:
            self._check(key)
            digest = hashlib.sha256(f"{key} {project} ".encode() + secret.reveal()).digest()
            made = base64.b64encode(digest).decode()
            self._inside[made] = (key, project, secret)
            self._laws.encrypted(project, made, secret)
            return made

        wrapped: str = await self._ask(process, "encrypt", key, encrypted)
        return wrapped

    async def decrypt(self, process: Process, key: str, project: str, wrapped: str) -> Secret:
        """What a process is answered that asks for a secret."""
        inside = self._inside[wrapped]
        secret, secret_id = inside[2], customer_secret_id(inside[2])

        async def decrypted() -> Secret:
            self._check(key)
            if inside[:2] != (key, project):
                raise CustomerKeyRefusedError(f"{key} did not encrypt this for {project}")
            is_lie = self.moods.get(key) == "lies"
            return Secret(hashlib.sha256(secret.reveal()).digest()) if is_lie else secret

        sent_s = self._network.clock.seconds
        try:
            given: Secret = await self._ask(process, "decrypt", key, decrypted)
        except CustomerKeyRefusedError:
            self._laws.refused(process, secret_id, self._network.clock.seconds)
            raise
        if given == secret:
            self._laws.gave(process, secret_id, sent_s)
        else:
            self._laws.refused(process, secret_id, self._network.clock.seconds)
        return given

    async def _ask(
        self, process: Process, op: str, key: str, effect: Callable[[], Awaitable[Any]]
    ) -> Any:
        return await self._network.ask(process, op, key, effect)

    def _check(self, key: str) -> None:
        match self.moods.get(key):
            case "refuses":
                raise CustomerKeyRefusedError(f"{key} is disabled")
            case "away":
                raise CustomerKeyUnavailableError(f"{key} does not respond")


class ProcessKeys:
    """The customer keys of one process: it remembers a secret for `CACHE_S` at most."""

    def __init__(self, process: Process, stores: Stores) -> None:
        self._process = process
        self._stores = stores
        self._kept: dict[str, tuple[Secret, float]] = {}

    async def unlock(self, keyring: Keyring) -> CustomerSecrets:
        """See `CustomerKeys.unlock`."""
        customer_key, secrets = keyring.current.customer_key, keyring.secrets
        if customer_key is None:
            return secrets
        held = await self._give(keyring.project, customer_key)
        return replace(secrets, held={customer_key.secret_id: held})

    async def open_with(
        self, keyring: Keyring, opening: Callable[[CustomerSecrets], Awaitable[_T]]
    ) -> _T:
        """See `CustomerKeys.open_with`."""
        secrets = await self.unlock(keyring)
        while True:
            try:
                return await opening(secrets)
            except SecretNeededError as needed:
                customer_key = needed.customer_key
            try:
                secret = await self._give(keyring.project, customer_key)
            except (CustomerKeyRefusedError, CustomerKeyUnavailableError) as exc:
                failed = {**secrets.failed, customer_key.secret_id: exc}
                secrets = replace(secrets, failed=failed)
            else:
                held = {**secrets.held, customer_key.secret_id: secret}
                secrets = replace(secrets, held=held)

    async def create(self, project: str, name: KeyName) -> CustomerKey:
        """See `CustomerKeys.create`."""
        if str(name) not in GIVEN[project]:
            raise NotPermittedError(f"{project} may not have {name}")
        secret = new_customer_secret()
        wrapped = await self._stores.encrypt(self._process, str(name), project, secret)
        made = CustomerKey.of(name, secret, wrapped)
        await self._give(project, made)
        return made

    async def _give(self, project: str, customer_key: CustomerKey) -> Secret:
        secret_id, name = customer_key.secret_id, str(customer_key.name)
        sent_s = self._process.world.clock.seconds
        kept, kept_s = self._kept.get(secret_id, (None, 0.0))
        if kept is not None and sent_s < kept_s + CACHE_S:
            return kept
        wrapped = customer_key.wrapped or ""
        secret = await self._stores.decrypt(self._process, name, project, wrapped)
        if not customer_key.is_secret(secret):
            raise CustomerKeyRefusedError(f"{name} gave another secret")
        self._kept[secret_id] = (secret, sent_s)
        return secret
