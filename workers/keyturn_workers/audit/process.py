"""Who a process is in the audit trail: one run of it, on one host (SPEC 15.3)."""

import os
import pwd
import socket
from dataclasses import dataclass
from typing import Final, Self
from uuid import uuid4

_MAX_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class AuditProcess:
    """One run of a process.

    Attributes:
        id: A new UUID for each run: each has its own chain.
        role: What it is, such as `worker control` or `download`.
        host: The machine's name.
        actor: Who does what no request asks for: `user@host`.
    """

    id: str
    role: str
    host: str
    actor: str

    @classmethod
    def start(cls, role: str) -> Self:
        """This process, begun now."""
        host = one_line(socket.gethostname())
        return cls(str(uuid4()), role, host, one_line(f"{_user()}@{host}"))


def one_line(text: str) -> str:
    """A name as a record can hold it: at most 200 characters, none of them a control character."""
    kept = "".join(character if character.isprintable() else "?" for character in text)
    return kept[:_MAX_CHARACTERS] or "?"


def _user() -> str:
    # Not the environment, which anybody can set: the account that the kernel knows.
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)  # a container's user without a name
