"""What must hold of erasures (SPEC 8.8). Shares no code with the workers.

A project is erased only if its stores said, just before, that every key is gone. A refused erasure
stays refused, an erased project stays erased, and nothing waits for stores for longer than allowed,
nor before they have said once that every key is gone.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

    from keyturn.errors import CodedError
    from tests.protocol.process import Process
    from tests.protocol.wire import Call

GONE: Final = ("disabled", "pending_deletion", "missing")
FRESH_FOR_S: Final = 60
HOLDS_FOR_S: Final = 900


@dataclass(frozen=True)
class _Said:
    """What a store said of a key to a step: `answer` is of the key itself."""

    process: Process
    sent_s: float
    answer: str


class ErasureLaws:
    """The erasures of one bucket.

    Args:
        violated: Takes what is wrong.
        touched: Projects whose keyring a bucket writer has touched.

    Attributes:
        erased: By project, what its keyring says of its erasure.
        slack_s: How far the dates of the storage may be off, in both directions.
    """

    def __init__(self, violated: Callable[[str], None], touched: AbstractSet[str]) -> None:
        self._violated = violated
        self._touched = touched
        self.erased: dict[str, dict[str, Any]] = {}
        self.slack_s = 4.0
        # By the id of a secret.
        self._said: dict[str, list[_Said]] = defaultdict(list)
        # By project: when each of its erasures began, by request and storage's date.
        self._began_s: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
        # By project: publisher and id of each refused request, and when it was requested.
        self._refused: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)
        # By project: the last state of its keyring that counts.
        self._before: dict[str, dict[str, Any]] = {}

    def said(self, process: Process, secret_id: str, sent_s: float, answer: str) -> None:
        """A step received what a store says of a key."""
        self._said[secret_id].append(_Said(process, sent_s, answer))

    # Keyrings.

    def put(self, name: str, rest: dict[str, Any], call: Call) -> None:
        """A worker put a keyring."""
        if "erasing" in rest:
            begun = self._began_s[name]
            if begun.setdefault(_key(rest["erasing"]), call.began) is call.began:
                self._check_begun(name, rest, call)
        erased = rest.get("erased")
        if erased is None or self.erased.get(name, {}).get("answers") == erased["answers"]:
            return
        # A further erasure has no beginning in the keyring.
        began_s = 0.0 if name in self.erased else self._began_s[name].get(_key(erased))
        if began_s is None:
            self._violated(f"{name} was erased, and its keyring never said that it would be")
            return
        if name not in self.erased and call.sent_s - began_s > HOLDS_FOR_S + self.slack_s:
            self._violated(f"{name} was erased when it did not wait any more")
        for secret_id, answer in erased["answers"].items():
            self._check_answer(name, secret_id, answer["state"], began_s, call)

    def _check_begun(self, name: str, rest: dict[str, Any], call: Call) -> None:
        for secret_id in _secret_ids(rest):
            if not any(
                row.process is call.sender and row.answer in GONE for row in self._said[secret_id]
            ):
                self._violated(f"{name} waits for its erasure before stores said that it may")

    def _check_answer(
        self, name: str, secret_id: str, answer: str, began_s: float, call: Call
    ) -> None:
        since = [row for row in self._said[secret_id] if began_s <= row.sent_s <= call.sent_s]
        gone = [row for row in since if row.answer == answer and answer in GONE]
        if not gone:
            self._violated(f"{name} was erased, and no store said that its key is {answer}")
        elif call.sent_s - gone[-1].sent_s > FRESH_FOR_S + self.slack_s:
            self._violated(f"{name} was erased by what a store had said long before")
        elif any(
            row.answer == "given" and row.process is call.sender and row.sent_s > gone[-1].sent_s
            for row in since
        ):
            self._violated(f"{name} was erased by a worker to which its key was given again")

    def counts(self, name: str, rest: dict[str, Any], mark: dict[str, Any]) -> None:
        """A state of a keyring counts."""
        erased, was_erased = rest.get("erased"), name in self.erased
        if mark.get("erased", False) != (erased is not None):
            self._violated(f"a mark of {name} is at odds with its keyring about the erasure")
        if was_erased and erased is None:
            self._violated(f"{name} was erased, and is not any more")
        if erased is not None:
            if any(entry["kek"] is not None for entry in (*rest["history"], rest)):
                self._violated(f"{name} is erased, and its keyring has a user KEK")
            if not was_erased:
                self._check_erased(name, erased, self._before[name])
            self.erased[name] = erased
        self._before[name] = rest

    def _check_erased(self, name: str, erased: dict[str, Any], before: dict[str, Any]) -> None:
        entries = [*before["history"], before]
        if any(entry["kek"] is not None and "customer_key" not in entry for entry in entries):
            self._violated(f"{name} was erased, and wraps may need no customer key")
        if before.get("unproven"):
            self._violated(f"{name} was erased, and nothing proves what its objects need")
        if _secret_ids(before) != erased["answers"].keys():
            self._violated(f"{name} was erased without an answer about each of its secrets")
        if name in self._touched:
            return
        refused = self._refused[name]
        identity = (erased["publisher"], erased["request_id"])
        if identity in refused or any(at >= erased["requested_at"] for at in refused.values()):
            self._violated(f"{name} was erased by a request that was refused, or an older one")

    # Requests.

    def ended(self, name: str, origin: dict[str, Any]) -> None:
        """A record of sweeps has the end of an origin."""
        end = origin["end"]
        if origin["kind"] == "part" and name in self.erased and end["code"] == "project_erased":
            self._violated(f"a part of a sweep failed, because {name} is erased")
        if origin["kind"] != "erase" or end["code"] != "generation_mismatch":
            return
        if name not in self.erased:
            self._refused[name][origin["publisher"], origin["id"]] = origin["requested_at"]

    def put_off(self, error: CodedError, project: str, now_s: float) -> None:
        """A message failed for the time being."""
        if type(error).__name__ != "KeyringErasingError":
            return
        began_s = max(self._began_s[project].values(), default=now_s)
        if now_s - began_s > HOLDS_FOR_S + self.slack_s:
            self._violated(f"{project} waits for its erasure for too long")


def _key(erasure: dict[str, Any]) -> tuple[str, ...]:
    return erasure["publisher"], erasure["request_id"], erasure["began_at"]


def _secret_ids(rest: dict[str, Any]) -> set[str]:
    """The ids of the secrets that are not cleared."""
    keys = [entry.get("customer_key", {}) for entry in (*rest["history"], rest)]
    return {key["secret_id"] for key in keys if key.get("wrapped") is not None}
