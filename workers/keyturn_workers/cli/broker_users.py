"""`keyturn broker-users`: users, permissions and policies as RabbitMQ definitions (SPEC 6.8, 6.9).

RabbitMQ imports definitions as they are, and merges them with what it has. Nothing is sent to the
broker from here: only its administrator may create users.
"""

import base64
import hashlib
import os
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote, urlsplit

import typer

from keyturn.settings import PREFIX
from keyturn.topology import (
    AUDIT_RECORDED,
    AUDIT_STREAM,
    DEAD_LOCK,
    DEAD_POLICIES,
    EVENTS,
    EXCHANGE,
    KEYRING_MARKED,
    MARKS_STREAM,
    NOTIFICATIONS,
    REQUESTS,
    STATUS_REPORTED,
    UPLOAD_REQUESTS,
    WORKER_REPORTED,
    publisher_stream,
)
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.output import print_json
from keyturn_workers.cli.secrets import write_secret
from keyturn_workers.cli.settings import BrokerSettings, PublishersSettings
from keyturn_workers.core.grants import Grant

_NOTHING: Final = "^$"
_DEFAULT_EXCHANGE: Final = "amq.default"
_OWN: Final = f"^{re.escape(EXCHANGE)}(\\..+)?$"
_SALT_BYTES: Final = 4
_ALGORITHM: Final = "rabbit_password_hashing_sha256"


@dataclass(frozen=True, slots=True)
class Permissions:
    """The permissions of one user: patterns of names, and the routing keys that it may publish.

    `binds`: whether it may bind queues of the exchange, by any routing key.
    """

    configure: str
    write: str
    read: str
    routing_keys: Collection[str]
    binds: bool = False


def one_of(*names: str) -> str:
    """Return the pattern of exactly these names."""
    return f"^({'|'.join(map(re.escape, names))})$" if names else _NOTHING


_WORKER_PUBLISHES: Final = (
    *EVENTS,
    STATUS_REPORTED,
    WORKER_REPORTED,
    AUDIT_RECORDED,
    KEYRING_MARKED,
)
_INGEST_PUBLISHES: Final = (*UPLOAD_REQUESTS, WORKER_REPORTED, AUDIT_RECORDED, KEYRING_MARKED)
_OPERATOR_REQUESTS: Final = tuple(
    request for request in REQUESTS if request not in ("status.requested", "dead_letters.requested")
)
_OWN_AND_DEFAULT: Final = f"^({re.escape(EXCHANGE)}(\\..+)?|{re.escape(_DEFAULT_EXCHANGE)})$"
ROLES: Final[Mapping[str, Permissions]] = {
    "worker": Permissions(_OWN, _OWN_AND_DEFAULT, _OWN, _WORKER_PUBLISHES, binds=True),
    "ingest": Permissions(_OWN, _OWN, _OWN, _INGEST_PUBLISHES, binds=True),
    "all": Permissions(
        _OWN, _OWN_AND_DEFAULT, _OWN, (*_WORKER_PUBLISHES, *UPLOAD_REQUESTS), binds=True
    ),
    "operator": Permissions(
        one_of(DEAD_LOCK),
        one_of(EXCHANGE, _DEFAULT_EXCHANGE),
        f"^{re.escape(EXCHANGE)}\\..+$",
        (*_OPERATOR_REQUESTS, AUDIT_RECORDED),
    ),
    "storage": Permissions("^amq\\.gen-.*$", one_of(NOTIFICATIONS), "^amq\\.gen-.*$", ()),
    "auditor": Permissions(_NOTHING, _NOTHING, one_of(AUDIT_STREAM), ()),
}
_DEFAULT_ROLES: Final = ("worker", "ingest", "operator")


def of_publisher(name: str, grant: Grant, *, reads_marks: bool) -> Permissions:
    """Return the permissions of a publisher; a gateway also reads the marks of keyrings."""
    requests = [each for each in REQUESTS if "*" in grant.may or each in grant.may]
    reads = (publisher_stream(name), *((MARKS_STREAM,) if reads_marks else ()))
    return Permissions(_NOTHING, one_of(EXCHANGE), one_of(*reads), requests)


def policies(vhost: str) -> list[dict[str, Any]]:
    """Return the policies that bound the dead letters (SPEC 6.9)."""
    return [
        {
            "vhost": vhost,
            "name": policy.name,
            "pattern": policy.pattern,
            "apply-to": "quorum_queues",
            "priority": 0,
            "definition": dict(policy.definition),
        }
        for policy in DEAD_POLICIES
    ]


def definitions(
    vhost: str, users: Mapping[str, Permissions], passwords: Mapping[str, str]
) -> dict[str, Any]:
    """Return what RabbitMQ imports: users with these passwords, permissions and policies."""
    return {
        "vhosts": [{"name": vhost}],
        "users": [_user(name, password) for name, password in passwords.items()],
        "permissions": [
            {
                "user": name,
                "vhost": vhost,
                "configure": user.configure,
                "write": user.write,
                "read": user.read,
            }
            for name, user in users.items()
        ],
        # Without any, a user may publish under every routing key.
        "topic_permissions": [
            {
                "user": name,
                "vhost": vhost,
                "exchange": EXCHANGE,
                "write": one_of(*user.routing_keys),
                "read": ".*" if user.binds else _NOTHING,
            }
            for name, user in users.items()
        ],
        "policies": policies(vhost),
    }


def _user(name: str, password: str) -> dict[str, Any]:
    salt = os.urandom(_SALT_BYTES)
    hashed = base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
    return {"name": name, "password_hash": hashed, "hashing_algorithm": _ALGORITHM, "tags": []}


def broker_users(
    vhost: Annotated[str, typer.Option(help="The broker's vhost.")] = "keyturn",
    role: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE",
            help=f"A role: {', '.join(ROLES)}; may be repeated. `all` is for `keyturn worker all`.",
        ),
    ] = None,
    publisher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A publisher in KEYTURN_PUBLISHERS; may be repeated.",
        ),
    ] = None,
    gateway: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A publisher that is a gateway, which also reads marks. Default: gateway.",
        ),
    ] = None,
    save_to: Annotated[
        Path | None,
        typer.Option(
            help="Also create the users, with new passwords, and write their KEYTURN_AMQP_URL to "
            "this new file (mode 0600). Without it, the users must exist."
        ),
    ] = None,
) -> None:
    """Print the broker's users and permissions.

    They are RabbitMQ definitions, with the policies for dead letters. By default they are
    for the roles worker, ingest and operator, and for all publishers; otherwise for those that you
    name.

    Import them with `rabbitmqctl import_definitions FILE`, or on the page of the management plugin.
    What they do not name stays as it is.
    """
    grants = PublishersSettings.read().publishers
    is_limited = role is not None or publisher is not None
    roles = role or ([] if is_limited else list(_DEFAULT_ROLES))
    names = publisher or ([] if is_limited else list(grants))
    _check(roles, ROLES, "no such role")
    _check(names, grants, "not in KEYTURN_PUBLISHERS")
    gateways = ["gateway"] if gateway is None else gateway
    _check(gateway or (), grants, "not in KEYTURN_PUBLISHERS")
    if both := set(roles) & set(names):
        raise typer.BadParameter(f"a role and a publisher have this name: {min(both)}")
    users = {name: ROLES[name] for name in roles}
    users |= {
        name: of_publisher(name, grants[name], reads_marks=name in gateways) for name in names
    }
    passwords = {} if save_to is None else {name: secrets.token_urlsafe(24) for name in users}
    if save_to is not None:
        write_secret(save_to, "".join(_lines(vhost, passwords)))
        note(f"the addresses with the passwords were written to {save_to}")
    print_json(definitions(vhost, users, passwords))


def _check(given: Iterable[str], known: Collection[str], problem: str) -> None:
    if unknown := [name for name in given if name not in known]:
        raise typer.BadParameter(f"{problem}: {unknown[0]}; there are: {', '.join(sorted(known))}")


def _lines(vhost: str, passwords: Mapping[str, str]) -> Iterable[str]:
    """Yield the address of each user, at the broker of the settings, if they name one."""
    url = BrokerSettings.read().amqp_url
    parts = urlsplit("amqp://127.0.0.1:5672" if url is None else url.get_secret_value())
    where = parts.netloc.rpartition("@")[2]
    for name, password in passwords.items():
        address = f"{parts.scheme}://{name}:{password}@{where}/{quote(vhost, safe='')}"
        yield f"# {name}\n{PREFIX}AMQP_URL={address}\n"
