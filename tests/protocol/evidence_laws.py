"""What must hold of evidence (SPEC 15.1): shares no code with the workers but the format.

The chain of a project is what its keyring named, one after the other. It never forks: each
follows the one that the keyring named before. A file appears once the keyring named it, and is
never replaced. Each clean end that is published names evidence in the chain, and by then every
file up to it exists.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from keyturn.errors import EvidenceError
from keyturn.evidence import ErasurePredicate, digest, parse, verify_chain
from keyturn.identifiers import EVIDENCE_PREFIX, evidence_s3_key
from tests.protocol.waiters import EVENT_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tools.harness.memory_bucket import Stored


class EvidenceLaws:
    """The chains of one bucket.

    Args:
        violated: Records a violation.
        objects: All objects in the bucket, as they are now.
    """

    def __init__(
        self, violated: Callable[[str], None], objects: Callable[[], Mapping[str, Stored]]
    ) -> None:
        self._violated = violated
        self._objects = objects
        # By project: the digests that its keyring named.
        self.chains: dict[str, list[str]] = defaultdict(list)
        # By digest: the envelope that a record kept, and the record.
        self._kept: dict[str, tuple[bytes, str]] = {}
        # By digest: the state that it rests on.
        self._states: dict[str, dict[str, Any]] = {}
        # The ends that were in a record, by id and time, and whether they were published.
        self._seen_ends: set[tuple[str, str, bool]] = set()
        # By S3 key: what workers put, which is in a chain.
        self._files: dict[str, bytes] = {}
        # Evidence whose record a bucket writer removed before its file existed.
        self._lost: set[str] = set()

    def kept(self, s3_key: str, name: str, rest: dict[str, Any]) -> None:
        """A worker wrote the record of a project's sweeps."""
        if rest.get("clean_end") is not None:
            envelope = rest["clean_end"]["envelope"].encode()
            self._kept[digest(envelope)] = (envelope, s3_key)
            self._states[digest(envelope)] = rest["clean_end"]["state"]
        for origin in rest["origins"] if name != "*" else ():
            end = origin["end"]
            at = None if end is None else (origin["id"], end["at"], end["published"])
            if at is None or at in self._seen_ends:
                continue
            self._seen_ends.add(at)
            if not end["clean"]:
                if end["evidence"] is not None:
                    self._violated(f"an end of {name} that proved nothing names evidence")
                continue
            if end["evidence"] is None and self._is_erasure(self._newest(name)):
                if origin["kind"] != "part" or any(end["counts"].values()):
                    self._violated(f"an end of erased {name} proved something without evidence")
                continue
            self._check_named(name, end["evidence"], f"a record of {name}")
            self._check_origin(name, origin)
            if end["published"]:
                self._check_files(name, end["evidence"], f"a clean end of {name} was published")

    def state_of(self, named: str) -> dict[str, Any] | None:
        """The state that evidence rests on, by the record that kept it."""
        return self._states.get(named)

    def _check_origin(self, name: str, origin: dict[str, Any]) -> None:
        """The evidence of an end names the request that it answers."""
        named = origin["end"]["evidence"]
        if named not in self._kept:
            return
        if (origin["kind"] == "erase") != self._is_erasure(named):
            self._violated(f"the end of a request of {name} names evidence of another kind")
            return
        if origin["kind"] == "erase":
            return  # if the stores say the same again, it names the evidence of another request
        origins = parse(self._kept[named][0]).proof.origins
        if (origin["id"], origin["publisher"]) not in {(e.id, e.publisher) for e in origins}:
            self._violated(f"evidence of {name} does not name a request whose end names it")

    def rotated(self, name: str, rest: dict[str, Any], master_key: str) -> None:
        """A worker wrote the keyring of a project."""
        self._named(name, rest, master_key)
        if "erased" in rest and not self._is_erasure(self._newest(name)):
            self._violated(f"the keyring of {name} is erased, and names no evidence of that")

    def accepts_late_writes(self, name: str) -> bool:
        """Whether the newest proof of a project says that a write may arrive after it."""
        proofs = [self._kept[each][0] for each in self.chains[name] if not self._is_erasure(each)]
        return bool(proofs) and not parse(proofs[-1]).proof.late_writes_refused

    def _newest(self, name: str) -> str | None:
        return self.chains[name][-1] if self.chains[name] else None

    def _is_erasure(self, named: str | None) -> bool:
        if named not in self._kept:
            return False
        return isinstance(parse(self._kept[named][0]).predicate, ErasurePredicate)

    def _named(self, name: str, rest: dict[str, Any], master_key: str) -> None:
        """The keyring names its newest evidence, or none yet."""
        chain, named = self.chains[name], rest.get("evidence")
        newest = self._newest(name)
        if named == newest:
            return
        if named not in self._kept:
            self._violated(f"the keyring of {name} names evidence that no record keeps")
            return
        predicate = parse(self._kept[named][0]).predicate
        if predicate.previous != newest:
            self._violated(f"the chain of {name} forks")
        if isinstance(predicate, ErasurePredicate):
            self._check_erasure(name, rest, predicate)
            chain.append(named)
            return
        said = (predicate.generation, predicate.kek_id, predicate.master_key)
        key = rest.get("customer_key")
        of_keyring = key and {each: key[each] for each in ("store", "key", "secret_id", "wrapped")}
        named_key = predicate.customer_key and predicate.customer_key.model_dump()
        if (*said, named_key) != (rest["generation"], rest["kek_id"], master_key, of_keyring):
            self._violated(f"the keyring of {name} names evidence of another state")
        chain.append(named)

    def _check_erasure(self, name: str, rest: dict[str, Any], predicate: ErasurePredicate) -> None:
        """Evidence of an erasure names every secret, what was said of it, and the proof."""
        erased, about = rest.get("erased"), f"the evidence of the erasure of {name}"
        if erased is None:
            self._violated(f"the keyring of {name} names evidence of an erasure, and is not erased")
            return
        keys: dict[str, dict[str, Any]] = {}
        for entry in (*rest["history"], rest):
            key = entry.get("customer_key", {})
            if key.get("wrapped") is None:
                continue
            said = erased["answers"].get(key["secret_id"], {})
            row = keys.setdefault(
                key["secret_id"],
                {
                    **{each: key[each] for each in ("store", "key", "secret_id", "wrapped")},
                    "generations": [],
                    "answer": said.get("state"),
                    "answered_at": said.get("at"),
                },
            )
            row["generations"].append(entry["generation"])
        if [key.model_dump() for key in predicate.keys] != [keys[each] for each in sorted(keys)]:
            self._violated(f"{about} does not name every secret, and what its store said")
        proofs = [each for each in self.chains[name] if not self._is_erasure(each)]
        if predicate.proven_by != (proofs[-1] if proofs else None):
            self._violated(f"{about} does not name the proof")
        if predicate.generation != rest["generation"]:
            self._violated(f"{about} has another generation")

    def put(self, s3_key: str, body: bytes) -> None:
        """A worker put a file of evidence."""
        name = s3_key.removeprefix(EVIDENCE_PREFIX).partition("/")[0]
        if digest(body) not in self.chains[name]:
            self._violated(f"evidence of {name} was put before its keyring named it")
            return
        if s3_key != _place(body):
            self._violated(f"evidence of {name} was put in the wrong place")
        if self._files.setdefault(s3_key, body) != body and not self._lost:
            self._violated(f"evidence of {name} in the chain was replaced")

    def ended(self, event: Any) -> None:
        """The end of a rotation, a sweep or an erasure was published."""
        if event.type == "project.erased":
            self._check_named(event.project, event.evidence, event.type)
            self._check_files(event.project, event.evidence, f"{event.type} was published")
        elif event.clean and event.project != "*":
            about = f"a clean {event.type} of {event.project}"
            self._check_named(event.project, event.evidence, about)
            self._check_files(event.project, event.evidence, f"{about} was published")
        elif event.evidence is not None:
            self._violated(f"an end of {event.project} that proved nothing names evidence")

    def removed(self, s3_key: str) -> None:
        """A bucket writer removed a record."""
        objects = self._objects()
        for name, (envelope, record) in self._kept.items():
            if record == s3_key and _place(envelope) not in objects:
                self._lost.add(name)

    def _check_named(self, name: str, named: str | None, about: str) -> None:
        if named not in self.chains[name]:
            self._violated(f"{about} names no evidence in the chain")

    def _check_files(self, name: str, named: str | None, when: str) -> None:
        chain = self.chains[name]
        for each in chain[: chain.index(named) + 1] if named in chain else ():
            envelope, _ = self._kept[each]
            stored = self._objects().get(_place(envelope))
            if (stored is None or stored.body != envelope) and each not in self._lost:
                self._violated(f"{when} while a file of its chain is missing")

    def settled(self, name: str) -> None:
        """Everything has ended: the chain verifies, as anybody can do."""
        if self._lost or not self.chains[name]:
            return
        places = [_place(self._kept[each][0]) for each in self.chains[name]]
        objects = self._objects()
        files = [objects[place].body for place in places if place in objects]
        try:
            verify_chain(
                files,
                [EVENT_KEY.verify_key()],
                deployment="test",
                project=name,
                newest=self.chains[name][-1],
            )
        except EvidenceError as exc:
            self._violated(f"the evidence of {name} does not verify: {exc}")


def _place(envelope: bytes) -> str:
    statement = parse(envelope).statement
    predicate = statement.predicate
    return evidence_s3_key(statement.project, predicate.generation, predicate.id)
