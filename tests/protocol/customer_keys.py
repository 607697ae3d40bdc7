"""The stores of customer keys, in which a key can refuse, be away, or give another secret.

Each call is a request on the network: a store that hangs is one whose requests are held.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from keyturn.crypto import Secret, composite_kek, customer_secret_id
from keyturn.errors import KmsUnavailableError
from keyturn.topology import PLAN_QUEUE
from keyturn_workers.core.customer_key_stores import VaultStore
from keyturn_workers.core.erasure import KeyState
from keyturn_workers.keys.master_keys.port import KmsRefusedError
from tests.protocol.erasure_laws import GONE
from tests.protocol.wire import CURRENT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyturn_workers.core.customer_key_stores import CustomerKeyStore
    from keyturn_workers.keys.customer_keys.port import Place, Store
    from tests.protocol.broker import Delivery
    from tests.protocol.erasure_laws import ErasureLaws
    from tests.protocol.process import Process
    from tests.protocol.waiters import SentRequest
    from tests.protocol.wire import Network

# The keys that the settings give to each project: store and key.
GIVEN: Final = {"acme": ("acme-kms/k1", "acme-kms/k2"), "beta": ("beta-kms/b1",)}
# Of generations that a mark alone has.
UNKNOWN_KEK_ID: Final = "0" * 16
CACHE_S: Final = 40
# One that pretends denies every call, with the words of a store whose key is disabled.
Mood = Literal[
    "gives", "refuses", "away", "lies", "pretends", "disabled", "pending_deletion", "missing"
]
MOODS: Final[tuple[Mood, ...]] = get_args(Mood)


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
        # By project: the generations whose secret the keyring last had.
        self._kept: dict[str, set[int]] = defaultdict(set)
        # By process and secret: when calls that gave it were sent, and when it was refused.
        self._given_s: dict[tuple[Process, str], list[float]] = defaultdict(list)
        self._refused_s: dict[tuple[Process, str], list[float]] = defaultdict(list)

    # Keyrings.

    def counts(self, name: str, version: int, rest: dict[str, Any], *, keeps_secrets: bool) -> None:
        """A state of a keyring counts: it has every customer key that it had.

        With `keeps_secrets`, the last clean end says that late writes are accepted.
        """
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
            if "erased" not in rest:
                self._check_kept(name, entry, wrapped, keeps_secrets=keeps_secrets)
            if wrapped is not None and self.wrapped.get(wrapped) != (name, found["secret_id"]):
                self._violated(f"no store gives back the secret of {name} at {generation}")
        self._kept[name] = {
            entry["generation"] for entry in entries if "wrapped" in entry.get("customer_key", {})
        }
        has_any = any("customer_key" in entry for entry in entries)
        if version != (2 if has_any else 1):
            self._violated(f"the keyring of {name} is of version {version}")
        if "customer_key" in rest and rest["plaintext"] == "allowed":
            self._violated(f"{name} has a customer key, and plaintext is allowed")

    def _check_kept(
        self, name: str, entry: dict[str, Any], wrapped: str | None, *, keeps_secrets: bool
    ) -> None:
        """A clean end clears KEK and secret, or the KEK alone."""
        generation, kek = entry["generation"], entry["kek"]
        if keeps_secrets and wrapped is None and generation in self._kept[name]:
            self._violated(f"the keyring of {name} lost a secret that a late write may need")
        is_kept = wrapped is not None and (kek is not None or keeps_secrets)
        is_cleared = wrapped is None and kek is None
        # Of a keyring that was lost, only the secret is known.
        if not (is_kept or is_cleared) and entry["kek_id"] != UNKNOWN_KEK_ID:
            self._violated(f"the keyring of {name} keeps or lost a secret of {generation}")

    def rotated(self, name: str, rest: dict[str, Any], request: SentRequest | None) -> None:
        """A keyring has a new generation: it has what its request names, or keeps the rest."""
        if request is None:
            return
        number, now = rest["generation"], rest.get("customer_key")
        earlier = {at: each for at, each in self.ids[name].items() if at < number}
        wanted = request.document.get("customer_key")
        if wanted is None:
            if (now and now["secret_id"]) != (earlier[max(earlier)] if earlier else None):
                self._violated(f"the customer key of {name} changed, and no request asked for it")
        elif now is None or {"store": now["store"], "key": now["key"]} != wanted:
            self._violated(f"{name} was rotated to another customer key than asked for")
        elif now["secret_id"] in earlier.values():
            self._violated(f"{name} was rotated, and its customer secret is an old one")
        known = [each["kek_id"] for each in rest["history"] if each["kek_id"] != UNKNOWN_KEK_ID]
        if "sealed_kek" not in request.document and [rest["kek_id"]] != known[-1:]:
            self._violated(f"the user KEK of {name} changed, and no request asked for it")

    def recovered(self, name: str, rest: dict[str, Any]) -> None:
        """A keyring was accepted as it was found, whatever is lost: it needs the newest secret."""
        ids, now = self.ids[name], rest.get("customer_key")
        if ids and (now is None or now["secret_id"] != ids[max(ids)]):
            self._violated(f"the keyring of {name} was recovered without its customer key")

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

    def __init__(self, network: Network, laws: CustomerKeyLaws, erasures: ErasureLaws) -> None:
        self.network = network
        self.laws = laws
        self.erasures = erasures
        # By store and key.
        self.moods: dict[str, Mood] = {}
        # By what was returned: the key, the place, and the secret.
        self.inside: dict[str, tuple[str, Place, Secret]] = {}

    def mend(self) -> None:
        """Every key gives what it encrypted."""
        self.moods.clear()

    def seen_by(self, process: Process) -> dict[str, Store]:
        """The stores in the settings of a process, by name."""
        return {
            name: _Store(self, process, name, project)
            for project, keys in GIVEN.items()
            for name in {key.partition("/")[0] for key in keys}
        }


class _Store:
    """One store, as a process calls it: a `Store`."""

    def __init__(self, stores: Stores, process: Process, name: str, project: str) -> None:
        self._stores = stores
        self._process = process
        self._name = name
        keys = [named(key)["key"] for key in GIVEN[project]]
        self.settings: CustomerKeyStore = VaultStore(
            kind="vault",
            address=self.address(""),
            mount="transit",
            token_file="token",  # the path of one
            projects=[project],
            keys=keys,
        )

    def address(self, key: str) -> str:
        del key
        return f"https://{self._name}"

    async def encrypt(self, key: str, place: Place, secret: Secret) -> str:
        name, stores = f"{self._name}/{key}", self._stores

        async def encrypted() -> str:
            self._check(name)
            digest = hashlib.sha256(f"{name} {place}".encode() + secret.reveal()).digest()
            made = base64.b64encode(digest).decode()
            stores.inside[made] = (name, place, secret)
            stores.laws.encrypted(place.project, made, secret)
            return made

        wrapped: str = await self._ask("encrypt", name, encrypted)
        return wrapped

    async def decrypt(self, key: str, place: Place, wrapped: str) -> Secret:
        name, stores, process = f"{self._name}/{key}", self._stores, self._process
        sent_s = stores.network.clock.seconds
        answer = "undecided"

        async def decrypted() -> Secret:
            nonlocal answer
            if (mood := stores.moods.get(name)) in GONE:
                answer = str(mood)
            self._check(name)
            *bound_to, secret = stores.inside[wrapped]
            if bound_to != [name, place]:
                raise KmsRefusedError(f"{name} did not encrypt this for {place}")
            is_lie = stores.moods.get(name) == "lies"
            answer = answer if is_lie else "given"
            return Secret(hashlib.sha256(secret.reveal()).digest()) if is_lie else secret

        try:
            given: Secret = await self._ask("decrypt", name, decrypted)
        except KmsRefusedError:
            stores.laws.refused(process, place.secret_id, stores.network.clock.seconds)
            raise
        finally:
            delivery = CURRENT.get()
            if delivery is not None and delivery.queued.queue == PLAN_QUEUE:
                stores.erasures.said(process, place.secret_id, sent_s, answer)
        if given == stores.inside[wrapped][2]:
            stores.laws.gave(process, place.secret_id, sent_s)
        else:
            stores.laws.refused(process, place.secret_id, stores.network.clock.seconds)
        return given

    async def check_answers(self, key: str) -> None:
        name = f"{self._name}/{key}"

        async def checked() -> None:
            if self._stores.moods.get(name) not in GONE:
                self._check(name)

        await self._ask("check_answers", name, checked)

    async def aclose(self) -> None:
        pass

    async def _ask(self, op: str, name: str, effect: Callable[[], Awaitable[Any]]) -> Any:
        if self._process.wire.dead:
            raise asyncio.CancelledError  # a process that was killed sends nothing any more
        return await self._stores.network.ask(self._process, op, name, effect)

    def _check(self, name: str) -> None:
        match self._stores.moods.get(name):
            case "disabled" | "pending_deletion" | "missing" as gone:
                raise KmsRefusedError(f"{name} is {gone}", key_state=KeyState(gone))
            case "pretends":
                raise KmsRefusedError(f"{name} is disabled", key_state=KeyState.DISABLED)
            case "refuses":
                raise KmsRefusedError(f"access to {name} is denied")
            case "away":
                raise KmsUnavailableError(f"{name} does not respond")
