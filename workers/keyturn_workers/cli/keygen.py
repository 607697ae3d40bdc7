"""`keyturn keygen`: generate a key, as the settings that it belongs into (SPEC 2, 11).

Of a key pair both halves are printed: the seed for its owner, the public key for those who
seal to it or verify its signatures.
"""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Final

import typer

from keyturn.crypto import (
    IntakeKey,
    SigningKey,
    VerifyKey,
    from_base64,
    new_api_key,
    to_base64,
)
from keyturn.identifiers import is_short_name
from keyturn.settings import SEED_BYTES
from keyturn_workers.cli.arguments import AsJson
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.output import print_json, print_line
from keyturn_workers.cli.secret_files import write_secret

app = typer.Typer(name="keygen", help="Generate a key.")

_DEFAULT_ID: Final = "main"
# What no shell changes in an assignment.
_UNQUOTED: Final = re.compile(r"[A-Za-z0-9_@%+=:,./?*\[\]-]*")

Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Write to this new file (mode 0600) instead of printing."),
]


def _check_name(value: str) -> str:
    if not is_short_name(value):
        raise typer.BadParameter("must have 1 to 32 characters from a-z, 0-9 and -")
    return value


KeyId = Annotated[str, typer.Option("--id", help="The key id.", callback=_check_name)]


def new_seed() -> bytes:
    """32 random bytes."""
    return os.urandom(SEED_BYTES)


def master_key_settings(name: str) -> dict[str, str]:
    """A master key with an id: the settings of workers and operator."""
    keys = json.dumps({name: to_base64(new_seed())})
    return {"KEYTURN_MASTER_KEYS": keys, "KEYTURN_ACTIVE_MASTER_KEY": name}


def intake_key_settings(name: str) -> tuple[dict[str, str], dict[str, str]]:
    """An intake key pair: the workers' settings, the publishers' settings."""
    seed = new_seed()
    public = to_base64(IntakeKey.from_seed(seed).public_bytes)
    return (
        {"KEYTURN_INTAKE_KEYS": json.dumps({name: to_base64(seed)})},
        {"KEYTURN_INTAKE_PUBLIC_KEY": f"{name}:{public}"},
    )


def event_key_id(public_key: str) -> str:
    """The id of a public event key in base64: what events and logs name the key by."""
    return VerifyKey.from_bytes(from_base64(public_key)).id


def event_key_settings() -> tuple[dict[str, str], dict[str, str]]:
    """An event key pair: the workers' settings, the publishers' settings."""
    seed = new_seed()
    public = to_base64(SigningKey.from_seed(seed).public_bytes)
    return {"KEYTURN_EVENT_KEY": to_base64(seed)}, {"KEYTURN_EVENT_PUBLIC_KEY": public}


def publisher_key_settings(
    name: str, may: list[str], projects: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """A publisher's key pair: the workers' settings (its permissions), its own settings."""
    seed = new_seed()
    public = to_base64(SigningKey.from_seed(seed).public_bytes)
    grant = {name: {"keys": [public], "may": may, "projects": projects}}
    own = {"KEYTURN_PUBLISHER_NAME": name, "KEYTURN_PUBLISHER_KEY": to_base64(seed)}
    return {"KEYTURN_PUBLISHERS": json.dumps(grant)}, own


def session_key_settings() -> dict[str, str]:
    """The key that signs the console's cookies: the console's setting."""
    return {"KEYTURN_CONSOLE_SESSION_KEY": to_base64(new_seed())}


def env_lines(settings: dict[str, str]) -> list[str]:
    """Settings as lines that a shell, compose's `env_file` and `docker run --env-file` read alike.

    Only what a shell would change is quoted. Of these values `docker run` and podman keep the
    quotes, which Keyturn removes from JSON itself.

    Raises:
        ValueError: a value cannot be quoted.
    """
    if any("'" in value or "\n" in value for value in settings.values()):
        raise ValueError("a value cannot contain a single quote or a line break")
    return [
        f"{name}={value}" if _UNQUOTED.fullmatch(value) else f"{name}='{value}'"
        for name, value in settings.items()
    ]


def _output(parts: dict[str, dict[str, str]], output: Path | None, *, as_json: bool) -> None:
    """Print or write settings, each part under a comment that names its owner."""
    if as_json:
        merged = {name: value for part in parts.values() for name, value in part.items()}
        text = json.dumps(merged, indent=2)
    else:
        lines = [(f"# {owner}", *env_lines(part)) for owner, part in parts.items()]
        text = "\n".join(line for part in lines for line in part)
    if output is not None:
        write_secret(output, text + "\n")
        note(f"written to {output}")
    elif as_json:
        print_json(json.loads(text))
    else:
        for line in text.splitlines():
            print_line(line)


@app.command("api-key")
def api_key(output: Output = None, as_json: AsJson = False) -> None:
    """Generate a project's API key."""
    key = new_api_key()
    if output is not None:
        write_secret(output, json.dumps({"api_key": key}) + "\n" if as_json else key + "\n")
        note(f"written to {output}")
    elif as_json:
        print_json({"api_key": key})
    else:
        print_line(key)


@app.command("master-key")
def master_key(key_id: KeyId = _DEFAULT_ID, output: Output = None, as_json: AsJson = False) -> None:
    """Generate a master key."""
    _output({"workers and operator": master_key_settings(key_id)}, output, as_json=as_json)


@app.command("intake-key")
def intake_key(key_id: KeyId = _DEFAULT_ID, output: Output = None, as_json: AsJson = False) -> None:
    """Generate the key pair that publishers seal secrets to."""
    workers, publishers = intake_key_settings(key_id)
    _output({"workers only (private)": workers, "publishers": publishers}, output, as_json=as_json)


@app.command("publisher-key")
def publisher_key(
    name: Annotated[
        str, typer.Option(help="The publisher's name.", callback=_check_name)
    ] = "publisher",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Generate a publisher's key pair; it may only upload until you allow more."""
    workers, own = publisher_key_settings(name, ["upload.requested"], ["*"])
    parts = {
        "this publisher only (private)": own,
        "workers (merge with the other publishers)": workers,
    }
    _output(parts, output, as_json=as_json)


@app.command("event-key")
def event_key(output: Output = None, as_json: AsJson = False) -> None:
    """Generate the key pair that events are signed with."""
    workers, publishers = event_key_settings()
    key_id = event_key_id(publishers["KEYTURN_EVENT_PUBLIC_KEY"])
    parts = {
        f"workers only (private), key id {key_id}": workers,
        f"publishers and other readers of events, key id {key_id}": publishers,
    }
    _output(parts, output, as_json=as_json)


@app.command("session-key")
def session_key(output: Output = None, as_json: AsJson = False) -> None:
    """Generate the key that signs the cookies of the console."""
    _output({"the console only": session_key_settings()}, output, as_json=as_json)
