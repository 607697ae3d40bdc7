"""A deployment with a console (SPEC 16): its publisher, its broker user, its people.

The console gets what the specification gives it and nothing more: a publisher's key, the public
event key, and a broker user that reads streams and moves dead letters.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from argon2 import PasswordHasher

from keyturn.crypto import SigningKey, to_base64
from keyturn.topology import CONTROL_REQUESTS
from tools.harness.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.servers import RabbitMQ

PUBLISHER: Final = "console"
REQUESTS: Final = tuple(
    each for each in CONTROL_REQUESTS if each not in ("recover.requested", "erase.requested")
)
"""What the console may ask for: all that control workers serve, but what only commands ask for."""

_DEPLOY: Final = Path(__file__).parents[2] / "docs" / "howto" / "deploy.md"
_COMMAND: Final = r"^rabbitmqctl {} -p keyturn console {}$"
_PATTERN: Final = r"'([^']+)'"


@dataclass(frozen=True)
class Account:
    """A person in the file of passwords."""

    name: str
    role: Literal["view", "operate"]
    password: str = field(default_factory=lambda: secrets.token_urlsafe(16), repr=False)


def write_passwords(path: Path, accounts: Sequence[Account]) -> None:
    """Write the file of passwords, as `keyturn console add-user` does."""
    lines = [f"{each.name}:{each.role}:{PasswordHasher().hash(each.password)}" for each in accounts]
    path.write_text("\n".join([*lines, ""]))


@dataclass(frozen=True)
class ConsoleDeployment(Deployment):
    """A deployment whose workers know the publisher `console`."""

    console_seed: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    session_key: bytes = field(default_factory=lambda: os.urandom(32), repr=False)

    @property
    def console_key(self) -> SigningKey:
        return SigningKey.from_seed(self.console_seed)

    def publishers(self) -> dict[str, dict[str, list[str]]]:
        """The value of the setting `PUBLISHERS`."""
        console = {
            "keys": [to_base64(self.console_key.public_bytes)],
            "may": list(REQUESTS),
            "projects": ["*"],
        }
        return super().publishers() | {PUBLISHER: console}

    def console_env(self, passwords: Path, *, amqp_url: str = "", **more: str) -> dict[str, str]:
        """The complete environment of a console on a free port.

        Args:
            passwords: The file of passwords.
            amqp_url: Another address of the broker, such as that of the console's own user.
            more: Further settings, without the prefix.
        """
        env = {
            "KEYTURN_DEPLOYMENT": self.name,
            "KEYTURN_AMQP_URL": amqp_url or self.amqp_url,
            "KEYTURN_PUBLISHER_NAME": PUBLISHER,
            "KEYTURN_PUBLISHER_KEY": to_base64(self.console_seed),
            "KEYTURN_INTAKE_PUBLIC_KEY": f"main:{to_base64(self.intake.public_bytes)}",
            "KEYTURN_EVENT_PUBLIC_KEY": to_base64(self.event_key.public_bytes),
            "KEYTURN_CONSOLE_PORT": "0",
            "KEYTURN_CONSOLE_SESSION_KEY": to_base64(self.session_key),
            "KEYTURN_CONSOLE_PASSWORD_FILE": str(passwords),
            "KEYTURN_LOG_FORMAT": "json",
        }
        return env | {f"KEYTURN_{name}": value for name, value in more.items()}


def console_user(rabbitmq: RabbitMQ | None, vhost_url: str) -> str:
    """The URL of a new broker user that may what `docs/howto/deploy.md` gives a console.

    Of a broker that the environment gives, the given URL. Each call makes a user of its own: with
    one name for all, a second deployment's console would change the password of the first.
    """
    if rabbitmq is None:
        return vhost_url
    permissions = _documented("set_permissions", ("configure", "write", "read"))
    topics = _documented("set_topic_permissions", ("write", "read"))
    user = f"{PUBLISHER}-{secrets.token_hex(4)}"
    return rabbitmq.add_user(user, vhost_url, permissions, topics)


def _documented(command: str, names: tuple[str, ...]) -> dict[str, str]:
    """The patterns of one of the document's commands, by what they permit."""
    exchange = "keyturn " if "topic" in command else ""
    patterns = exchange + " ".join([_PATTERN] * len(names))
    found = re.search(_COMMAND.format(command, patterns), _DEPLOY.read_text(), re.MULTILINE)
    assert found is not None, command
    return dict(zip(names, found.groups(), strict=True))
