"""`keyturn init`: a fresh set of development secrets and settings (SPEC 11, 14).

Four files of mode 0600: `keyturn.env` for workers and the operator, `gateway.env` for the
gateway, `publisher.env` for a service that publishes, `storage.env` for compose's development
storage, which needs the bucket's keys and none of the others. A shell
(`set -a; . ./keyturn.env`), compose's `env_file` and `keyturn --env-file` read them alike.
It must never overwrite a secret unless told to: what was sealed under it would be lost.
"""

import json
import secrets
from pathlib import Path
from typing import Annotated, Final

import typer

from keyturn_workers.cli.errors import CommandError
from keyturn_workers.cli.keygen import (
    env_lines,
    event_key_settings,
    intake_key_settings,
    master_key_settings,
    publisher_key_settings,
)
from keyturn_workers.cli.output import print_line
from keyturn_workers.cli.secret_files import write_secret
from keyturn_workers.cli.settings import StorageKeySettings

WORKER_FILE: Final = "keyturn.env"
PUBLISHER_FILE: Final = "publisher.env"
GATEWAY_FILE: Final = "gateway.env"
STORAGE_FILE: Final = "storage.env"
_PUBLISHER: Final = "dev"
_GATEWAY: Final = "gateway"
_KEY_ID: Final = "main"
GATEWAY_MAY: Final = ["upload.requested", "rotation.requested"]
GATEWAY_READS: Final = ("KEYTURN_MASTER_KEYS",)
PUBLISHERS: Final = "KEYTURN_PUBLISHERS"
_Part = tuple[str, dict[str, str]]


def init(
    directory: Annotated[
        Path,
        typer.Option(
            "--dir", help="Where to write keyturn.env, gateway.env, publisher.env and storage.env."
        ),
    ] = Path(),
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace existing files: what they opened is then lost."),
    ] = False,
    amqp_url: Annotated[
        str, typer.Option(envvar="KEYTURN_AMQP_URL", help="The broker's address.")
    ] = "amqp://guest:guest@127.0.0.1:5672/",
    s3_endpoint_url: Annotated[
        str, typer.Option(envvar="KEYTURN_S3_ENDPOINT_URL", help="The storage's address.")
    ] = "http://127.0.0.1:9000",
    s3_bucket: Annotated[
        str, typer.Option(envvar="KEYTURN_S3_BUCKET", help="The bucket's name.")
    ] = "keyturn",
) -> None:
    """Write fresh development secrets and settings.

    The publisher `dev` may do everything, `gateway` may upload and rotate. For production,
    make each key with `keyturn keygen` and give each process only its own.

    The storage's region and access keys come from KEYTURN_S3_REGION, _S3_ACCESS_KEY_ID and
    _S3_SECRET_ACCESS_KEY; where no keys are set, new ones are made for a storage to come.
    """
    given = StorageKeySettings.read()
    addresses = {
        "KEYTURN_S3_ENDPOINT_URL": s3_endpoint_url,
        "KEYTURN_S3_REGION": given.s3_region,
        "KEYTURN_S3_BUCKET": s3_bucket,
        **_access_keys(given),
    }
    worker, gateway, publisher = _settings(amqp_url, addresses)
    files = {
        directory / WORKER_FILE: _text("Workers and operator", worker),
        directory / GATEWAY_FILE: _text("The HTTP gateway", gateway),
        directory / PUBLISHER_FILE: _text("A service that publishes", publisher),
        directory / STORAGE_FILE: _text(
            "The development storage", [("Where it serves, its bucket and its keys", addresses)]
        ),
    }
    if not force and (standing := [path for path in files if path.exists()]):
        raise CommandError(f"{standing[0]} stands already; --force replaces it, and its secrets")
    directory.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        write_secret(path, text, force=force)
        print_line(f"written: {path}")


def _access_keys(given: StorageKeySettings) -> dict[str, str]:
    name, secret = given.s3_access_key_id, given.s3_secret_access_key
    pair = ("keyturn", secrets.token_hex(20))
    if name is not None and secret is not None:
        pair = (name, secret.get_secret_value())
    return dict(
        zip(("KEYTURN_S3_ACCESS_KEY_ID", "KEYTURN_S3_SECRET_ACCESS_KEY"), pair, strict=True)
    )


def _settings(amqp_url: str, s3: dict[str, str]) -> tuple[list[_Part], list[_Part], list[_Part]]:
    """The parts of the files, each with its comment."""
    workers_intake, publishers_intake = intake_key_settings(_KEY_ID)
    workers_event, publishers_event = event_key_settings()
    master_keys = master_key_settings(_KEY_ID)
    grants, own = publisher_key_settings(_PUBLISHER, ["*"], ["*"])
    gateways_grant, gateways_own = publisher_key_settings(_GATEWAY, GATEWAY_MAY, ["*"])
    shared: list[_Part] = [
        ("The same in every process of one installation", {"KEYTURN_DEPLOYMENT": "dev"}),
        ("The broker", {"KEYTURN_AMQP_URL": amqp_url}),
        ("The bucket; leave the keys out where the standard AWS chain has them", s3),
    ]
    worker: list[_Part] = [
        *shared,
        ("The operator's keys, by id; they open everything", master_keys),
        ("What publishers' secrets are opened with", workers_intake),
        ("What events are signed with", workers_event),
        ("Who may publish what, for which projects", _joined(grants, gateways_grant)),
    ]
    gateway: list[_Part] = [
        *shared,
        (
            "The operator's keys, by id; they open everything",
            {name: value for name, value in master_keys.items() if name in GATEWAY_READS},
        ),
        ("Who this is, and what its requests are signed with", gateways_own),
        ("What secrets to the workers are sealed to", publishers_intake),
        ("What events are checked with", publishers_event),
    ]
    publisher: list[_Part] = [
        *shared,
        ("Who this is, and what its requests are signed with", own),
        ("What secrets to the workers are sealed to", publishers_intake),
        ("What events are checked with", publishers_event),
    ]
    return worker, gateway, publisher


def _joined(*grants: dict[str, str]) -> dict[str, str]:
    """The grants of several publishers in one setting."""
    joined: dict[str, object] = {}
    for grant in grants:
        joined |= json.loads(grant[PUBLISHERS])
    return {PUBLISHERS: json.dumps(joined)}


def _text(title: str, parts: list[_Part]) -> str:
    lines = [f"# {title}: development secrets, made by `keyturn init`. Never commit this file."]
    for comment, settings in parts:
        try:
            lines += ["", f"# {comment}.", *env_lines(settings)]
        except ValueError as exc:
            raise typer.BadParameter(str(exc)) from exc
    return "\n".join(lines) + "\n"
