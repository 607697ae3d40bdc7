"""`keyturn keygen`: one fresh key, with the settings that its halves go into (SPEC 2, 11).

A key pair is printed as both halves: the seed for the one process that holds it, the
public half for those who seal to it or check its signatures.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Final

import typer

from keyturn.crypto import IntakeKey, SigningKey, new_api_key, to_base64
from keyturn.identifiers import is_short_name
from keyturn.settings import SEED_BYTES
from keyturn_workers.cli.arguments import AsJson
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.output import print_json, print_line
from keyturn_workers.cli.secret_files import write_secret

app = typer.Typer(name="keygen", help="Print a fresh key.")

_DEFAULT_ID: Final = "main"

Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Write it to this new file (mode 0600) instead."),
]


def _checked_name(value: str) -> str:
    if not is_short_name(value):
        raise typer.BadParameter("1 to 32 characters of a-z, 0-9 and -")
    return value


KeyId = Annotated[str, typer.Option("--id", help="The key's id.", callback=_checked_name)]


def fresh_seed() -> bytes:
    """32 random bytes."""
    return os.urandom(SEED_BYTES)


def master_key_settings(name: str) -> dict[str, str]:
    """A master key under an id, as the settings of whoever opens everything."""
    keys = json.dumps({name: to_base64(fresh_seed())})
    return {"KEYTURN_MASTER_KEYS": keys, "KEYTURN_ACTIVE_MASTER_KEY": name}


def intake_key_settings(name: str) -> tuple[dict[str, str], dict[str, str]]:
    """An intake key pair: the workers' settings, the publishers' settings."""
    seed = fresh_seed()
    public = to_base64(IntakeKey.from_seed(seed).public_bytes)
    return (
        {"KEYTURN_INTAKE_KEYS": json.dumps({name: to_base64(seed)})},
        {"KEYTURN_INTAKE_PUBLIC_KEY": f"{name}:{public}"},
    )


def event_key_settings() -> tuple[dict[str, str], dict[str, str]]:
    """An event key pair: the workers' settings, the publishers' settings."""
    seed = fresh_seed()
    public = to_base64(SigningKey.from_seed(seed).public_bytes)
    return {"KEYTURN_EVENT_KEY": to_base64(seed)}, {"KEYTURN_EVENT_PUBLIC_KEY": public}


def publisher_key_settings(
    name: str, may: list[str], projects: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """A publisher's key pair: the workers' settings (what it may do), its own settings."""
    seed = fresh_seed()
    public = to_base64(SigningKey.from_seed(seed).public_bytes)
    grant = {name: {"keys": [public], "may": may, "projects": projects}}
    own = {"KEYTURN_PUBLISHER_NAME": name, "KEYTURN_PUBLISHER_KEY": to_base64(seed)}
    return {"KEYTURN_PUBLISHERS": json.dumps(grant)}, own


def env_lines(settings: dict[str, str]) -> list[str]:
    """Settings as lines that a shell and compose's `env_file` both read the same way.

    Raises:
        ValueError: a value that single quotes cannot hold.
    """
    if any("'" in value or "\n" in value for value in settings.values()):
        raise ValueError("a value must not hold a single quote or a line's end")
    return [f"{name}='{value}'" for name, value in settings.items()]


def _give(parts: dict[str, dict[str, str]], output: Path | None, *, as_json: bool) -> None:
    """Print or write settings, each part under a comment that says whose they are."""
    if as_json:
        together = {name: value for part in parts.values() for name, value in part.items()}
        text = json.dumps(together, indent=2)
    else:
        lines = [(f"# {whose}", *env_lines(part)) for whose, part in parts.items()]
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
    """A project's API key."""
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
    """A master key of the operator's."""
    _give({"workers and operator": master_key_settings(key_id)}, output, as_json=as_json)


@app.command("intake-key")
def intake_key(key_id: KeyId = _DEFAULT_ID, output: Output = None, as_json: AsJson = False) -> None:
    """The key pair to which publishers seal secrets."""
    workers, publishers = intake_key_settings(key_id)
    _give({"workers: the seed": workers, "publishers": publishers}, output, as_json=as_json)


@app.command("publisher-key")
def publisher_key(
    name: Annotated[
        str, typer.Option(help="The publisher's name.", callback=_checked_name)
    ] = "publisher",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """A publisher's key pair; what it may do is yours to widen."""
    workers, own = publisher_key_settings(name, ["upload.requested"], ["*"])
    parts = {"this publisher alone: the seed": own, "workers: join it to the others": workers}
    _give(parts, output, as_json=as_json)


@app.command("event-key")
def event_key(output: Output = None, as_json: AsJson = False) -> None:
    """The key pair by which readers know the deployment's events."""
    workers, publishers = event_key_settings()
    _give({"workers: the seed": workers, "publishers": publishers}, output, as_json=as_json)
