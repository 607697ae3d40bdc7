"""`keyturn init`: create development secrets and settings (SPEC 11, 14).

Five files of mode 0600: `keyturn.env` for workers and the operator, `gateway.env` for the
gateway, `console.env` for the console, `publisher.env` for a service that publishes, `storage.env`
for compose's development storage, which only needs the access keys. And the console's password
file, `console/passwords`, still empty: in a folder of its own, so that a container that mounts the
folder sees the file change. A shell (`set -a; . ./keyturn.env`), compose's `env_file`,
`docker run --env-file` and `keyturn --env-file` read them alike. It must never overwrite a secret
without `--force`: everything sealed under it would be lost.
"""

import json
import secrets
from pathlib import Path
from typing import Annotated, Final

import typer

from keyturn.topology import CONTROL_REQUESTS
from keyturn_workers.cli.errors import CommandError
from keyturn_workers.cli.held_keys import parse_uri
from keyturn_workers.cli.init_master_key import held_key_settings
from keyturn_workers.cli.keygen import (
    env_lines,
    event_key_settings,
    intake_key_settings,
    master_key_settings,
    publisher_key_settings,
    session_key_settings,
)
from keyturn_workers.cli.output import print_line
from keyturn_workers.cli.secret_files import write_secret
from keyturn_workers.cli.settings import StorageKeySettings

WORKER_FILE: Final = "keyturn.env"
PUBLISHER_FILE: Final = "publisher.env"
GATEWAY_FILE: Final = "gateway.env"
CONSOLE_FILE: Final = "console.env"
PASSWORD_FILE: Final = Path("console", "passwords")
STORAGE_FILE: Final = "storage.env"
_PUBLISHER: Final = "dev"
_GATEWAY: Final = "gateway"
_CONSOLE: Final = "console"
_KEY_ID: Final = "main"
GATEWAY_MAY: Final = ["upload.requested", "rotation.requested", "delete.requested"]
CONSOLE_MAY: Final = [request for request in CONTROL_REQUESTS if request != "enroll.requested"]
GATEWAY_READS_NOT: Final = ("KEYTURN_ACTIVE_MASTER_KEY",)
PUBLISHERS: Final = "KEYTURN_PUBLISHERS"
_Part = tuple[str, dict[str, str]]


def init(
    directory: Annotated[
        Path,
        typer.Option(
            "--dir",
            help="Folder for keyturn.env, gateway.env, console.env, publisher.env, storage.env and "
            "console/passwords.",
        ),
    ] = Path(),
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace existing files. Data encrypted with their keys is lost."
        ),
    ] = False,
    amqp_url: Annotated[
        str, typer.Option(envvar="KEYTURN_AMQP_URL", help="The broker's URL.")
    ] = "amqp://guest:guest@127.0.0.1:5672/",
    s3_endpoint_url: Annotated[
        str, typer.Option(envvar="KEYTURN_S3_ENDPOINT_URL", help="The storage's URL.")
    ] = "http://127.0.0.1:9000",
    s3_bucket: Annotated[
        str, typer.Option(envvar="KEYTURN_S3_BUCKET", help="The bucket name.")
    ] = "keyturn",
    master_key: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="Use a master key held in an HSM or a KMS: pkcs11:…, awskms:… or vault:…. It is "
            "generated there if it does not exist, except in AWS KMS. Default: a new one, in the "
            "files.",
        ),
    ] = None,
) -> None:
    """Create development secrets and settings.

    The publisher `dev` may do everything; `gateway` may upload, rotate and delete; `console` may
    request what its pages offer. `keyturn console add-user` adds its users. For production,
    generate each key with `keyturn keygen` and give each process only its own.

    The region and access keys of the storage come from KEYTURN_S3_REGION, _S3_ACCESS_KEY_ID
    and _S3_SECRET_ACCESS_KEY. Without access keys, new ones are generated for a new storage.
    With --master-key, the settings of its provider come from the environment too
    (KEYTURN_PKCS11_…, KEYTURN_AWS_KMS_…, KEYTURN_VAULT_…).
    """
    held = None if master_key is None else parse_uri(master_key)
    storage = StorageKeySettings.read()
    s3 = {
        "KEYTURN_S3_ENDPOINT_URL": s3_endpoint_url,
        "KEYTURN_S3_REGION": storage.s3_region,
        "KEYTURN_S3_BUCKET": s3_bucket,
        **_access_keys(storage),
    }
    names = (WORKER_FILE, GATEWAY_FILE, CONSOLE_FILE, PUBLISHER_FILE, STORAGE_FILE)
    paths = [directory / name for name in names]
    if not force and (existing := [path for path in paths if path.exists()]):
        raise CommandError(f"{existing[0]} already exists; --force replaces it and its secrets")
    master_keys = master_key_settings(_KEY_ID) if held is None else held_key_settings(_KEY_ID, held)
    passwords = (directory / PASSWORD_FILE).resolve()
    worker, gateway, console, publisher = _settings(amqp_url, s3, master_keys, passwords)
    texts = (
        _text("Workers and operator", worker),
        _text("The HTTP gateway", gateway),
        _text("The operator's console", console),
        _text("A service that publishes", publisher),
        _text("The development storage", [("Endpoint, bucket and access keys", s3)]),
    )
    directory.mkdir(parents=True, exist_ok=True)
    for path, text in zip(paths, texts, strict=True):
        write_secret(path, text, force=force)
        print_line(f"wrote {path}")
    if not passwords.exists():  # it holds no key of a deployment: --force keeps its users
        passwords.parent.mkdir(exist_ok=True)
        write_secret(passwords, "")
        print_line(f"wrote {directory / PASSWORD_FILE}")


def _access_keys(settings: StorageKeySettings) -> dict[str, str]:
    name, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    pair = ("keyturn", secrets.token_hex(20))
    if name is not None and secret is not None:
        pair = (name, secret.get_secret_value())
    return dict(
        zip(("KEYTURN_S3_ACCESS_KEY_ID", "KEYTURN_S3_SECRET_ACCESS_KEY"), pair, strict=True)
    )


def _settings(
    amqp_url: str, s3: dict[str, str], master_keys: dict[str, str], passwords: Path
) -> tuple[list[_Part], list[_Part], list[_Part], list[_Part]]:
    """The parts of the files, each with its comment."""
    workers_intake, publishers_intake = intake_key_settings(_KEY_ID)
    workers_event, publishers_event = event_key_settings()
    grants, own = publisher_key_settings(_PUBLISHER, ["*"], ["*"])
    gateway_grants, gateway_own = publisher_key_settings(_GATEWAY, GATEWAY_MAY, ["*"])
    console_grants, console_own = publisher_key_settings(_CONSOLE, CONSOLE_MAY, ["*"])
    everywhere: list[_Part] = [
        ("The same in every process of a deployment", {"KEYTURN_DEPLOYMENT": "dev"}),
        ("The broker", {"KEYTURN_AMQP_URL": amqp_url}),
    ]
    shared: list[_Part] = [
        *everywhere,
        ("The bucket; omit the access keys if the standard AWS chain provides them", s3),
    ]
    worker: list[_Part] = [
        *shared,
        ("The master keys by id; they open everything", master_keys),
        ("Opens the secrets that publishers seal", workers_intake),
        ("Signs events", workers_event),
        (
            "The publishers: their keys, and what they may request for which projects",
            _merge(grants, gateway_grants, console_grants),
        ),
    ]
    gateway: list[_Part] = [
        *shared,
        (
            "The master keys by id; they open everything",
            {name: value for name, value in master_keys.items() if name not in GATEWAY_READS_NOT},
        ),
        ("This publisher's name, and the key that signs its requests", gateway_own),
        ("Seals secrets to the workers", publishers_intake),
        ("Verifies events", publishers_event),
    ]
    publisher: list[_Part] = [
        *shared,
        ("This publisher's name, and the key that signs its requests", own),
        ("Seals secrets to the workers", publishers_intake),
        ("Verifies events", publishers_event),
    ]
    console: list[_Part] = [
        *everywhere,
        ("This publisher's name, and the key that signs its requests", console_own),
        ("Seals secrets to the workers", publishers_intake),
        ("Verifies events", publishers_event),
        ("Signs the cookies of those who are signed in", session_key_settings()),
        (
            "Who may sign in: see `keyturn console add-user`",
            {"KEYTURN_CONSOLE_PASSWORD_FILE": str(passwords)},
        ),
    ]
    return worker, gateway, console, publisher


def _merge(*grants: dict[str, str]) -> dict[str, str]:
    """The grants of several publishers in one setting."""
    merged: dict[str, object] = {}
    for grant in grants:
        merged |= json.loads(grant[PUBLISHERS])
    return {PUBLISHERS: json.dumps(merged)}


def _text(title: str, parts: list[_Part]) -> str:
    lines = [f"# {title}: development secrets, created by `keyturn init`. Never commit this file."]
    for comment, settings in parts:
        try:
            lines += ["", f"# {comment}.", *env_lines(settings)]
        except ValueError as exc:
            raise typer.BadParameter(str(exc)) from exc
    return "\n".join(lines) + "\n"
