"""`keyturn init` and `keygen`: development secrets and settings, single keys (SPEC 2, 11, 14).

Five files of mode 0600: `keyturn.env` for workers and the operator, `gateway.env` for the gateway,
`console.env` for the console, `publisher.env` for a publishing service, `storage.env` for compose's
development storage, which only needs the access keys. And the console's password file,
`console/passwords`, still empty: in a folder of its own, so that a container that mounts the folder
sees the file change. A shell (`set -a; . ./keyturn.env`), compose's `env_file`,
`docker run --env-file` and `keyturn --env-file` read them alike. It must never overwrite a secret
without `--force`: everything sealed under it would be lost.

Both halves of a key pair are printed: the seed for its owner, the public key for those who seal to
it or verify its signatures.
"""

import json
import os
import secrets
import shlex
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from keyturn.crypto.base64 import from_base64, to_base64
from keyturn.crypto.intake import IntakeKey
from keyturn.crypto.keys import new_api_key
from keyturn.crypto.signatures import SigningKey, VerifyKey
from keyturn.settings import SEED_BYTES
from keyturn.topology import CONTROL_REQUESTS
from keyturn_workers.cli.arguments import AsJsonText, validate_short_name
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.key_files import Keys, add_to_file, env_lines
from keyturn_workers.cli.keys import held_key_settings, parse_uri
from keyturn_workers.cli.output import command_group, print_json, print_line
from keyturn_workers.cli.secrets import write_secret
from keyturn_workers.cli.settings import StorageKeySettings
from keyturn_workers.core.grants import parse_grants
from keyturn_workers.process.settings import redacted

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
_OF_COMMANDS: Final = ("recover.requested", "erase.requested")
CONSOLE_MAY: Final = [request for request in CONTROL_REQUESTS if request not in _OF_COMMANDS]
GATEWAY_READS_NOT: Final = ("KEYTURN_ACTIVE_MASTER_KEY",)
_MASTER_KEYS: Final = "The master keys by id; they open everything"
_Part = tuple[str, dict[str, str]]
_PURPOSES: Final = {
    WORKER_FILE: "workers and the operator's commands: it opens everything",
    GATEWAY_FILE: "the HTTP gateway",
    CONSOLE_FILE: "the console",
    PUBLISHER_FILE: "your service: it publishes requests",
    STORAGE_FILE: "the development storage of compose.yaml",
    PASSWORD_FILE.name: "who may sign in to the console",
}
_NEXT: Final = (
    (WORKER_FILE, "doctor"),
    (WORKER_FILE, "worker", "all"),
    (GATEWAY_FILE, "gateway"),
    (CONSOLE_FILE, "console"),
    (PUBLISHER_FILE, "enroll", "acme", "--generate", "--save-to", "acme.key"),
    (PUBLISHER_FILE, "upload", "acme", "README.md"),
)

app = command_group("keygen", "Generate a key.")

Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Write to this new file (mode 0600) instead of printing."),
]


AddTo = Annotated[
    Path | None,
    typer.Option(
        help="Add the workers' part to this file: an environment file that has the setting, such "
        "as keyturn.env, or a JSON file that the setting names.",
    ),
]
KeyId = Annotated[str, typer.Option("--id", help="The key id.", callback=validate_short_name)]


def new_seed() -> bytes:
    """Return 32 random bytes."""
    return os.urandom(SEED_BYTES)


def master_key_settings(name: str) -> dict[str, str]:
    """Return a new master key as settings of workers and operator."""
    keys = json.dumps({name: to_base64(new_seed())})
    return {"KEYTURN_MASTER_KEYS": keys, "KEYTURN_ACTIVE_MASTER_KEY": name}


def intake_key_settings(name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return an intake key pair: the workers' settings, the publishers' settings."""
    seed = new_seed()
    public = to_base64(IntakeKey.from_seed(seed).public_bytes)
    return (
        {"KEYTURN_INTAKE_KEYS": json.dumps({name: to_base64(seed)})},
        {"KEYTURN_INTAKE_PUBLIC_KEY": f"{name}:{public}"},
    )


def event_key_settings() -> tuple[dict[str, str], dict[str, str]]:
    """Return an event key pair: the workers' settings, the publishers' settings."""
    seed = new_seed()
    public = to_base64(SigningKey.from_seed(seed).public_bytes)
    return {"KEYTURN_EVENT_KEY": to_base64(seed)}, {"KEYTURN_EVENT_PUBLIC_KEY": public}


def publisher_key_settings(name: str, may: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a publisher's key pair: its entry in KEYTURN_PUBLISHERS, and its own settings."""
    seed = new_seed()
    public = to_base64(SigningKey.from_seed(seed).public_bytes)
    own = {"KEYTURN_PUBLISHER_NAME": name, "KEYTURN_PUBLISHER_KEY": to_base64(seed)}
    return {name: {"keys": [public], "may": may, "projects": ["*"]}}, own


def session_key_settings() -> dict[str, str]:
    """Return the key that signs the console's cookies: the console's setting."""
    return {"KEYTURN_CONSOLE_SESSION_KEY": to_base64(new_seed())}


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
def api_key(output: Output = None, as_json: AsJsonText = False) -> None:
    """Generate a project's API key."""
    key = new_api_key()
    if output is not None:
        write_secret(output, json.dumps({"api_key": key}) + "\n" if as_json else key + "\n")
        note(f"written to {output}")
    elif as_json:
        print_json({"api_key": key})
    else:
        print_line(key)


def _add(path: Path, setting: str, key_id: str, settings: dict[str, str]) -> None:
    """Add a new key to a file with this setting.

    Raises:
        CommandError: the file has a key with this id: it would be lost.
    """

    def add(keys: Keys) -> None:
        if key_id in keys:
            raise CommandError(f"{path} has a key {key_id} already; choose another --id")
        keys |= json.loads(settings[f"KEYTURN_{setting}"])

    note(f"added {key_id} to {add_to_file(path, setting, add)}")


@app.command("master-key")
def master_key(
    key_id: KeyId = _KEY_ID,
    output: Output = None,
    add_to: AddTo = None,
    as_json: AsJsonText = False,
) -> None:
    """Generate a master key.

    With --add-to the file keeps its other keys and its active one: a sweep with --master-key
    moves everything to the new key.
    """
    settings = master_key_settings(key_id)
    if add_to is None:
        _output({"workers and operator": settings}, output, as_json=as_json)
        return
    if output is not None or as_json:
        raise typer.BadParameter("--add-to cannot be used with --output or --json")
    _add(add_to, "MASTER_KEYS", key_id, settings)


@app.command("intake-key")
def intake_key(
    key_id: KeyId = _KEY_ID,
    output: Output = None,
    add_to: AddTo = None,
    as_json: AsJsonText = False,
) -> None:
    """Generate the key pair that publishers seal secrets to."""
    workers, publishers = intake_key_settings(key_id)
    parts = {"workers only (private)": workers, "publishers": publishers}
    if add_to is not None:
        _add(add_to, "INTAKE_KEYS", key_id, parts.pop("workers only (private)"))
    _output(parts, output, as_json=as_json)


@app.command("publisher-key")
def publisher_key(
    name: Annotated[
        str, typer.Option(help="The publisher's name.", callback=validate_short_name)
    ] = "publisher",
    may: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RIGHT",
            help="A request that it may sign, such as rotation.requested, a right, or '*'; may be "
            "repeated. Default: upload.requested.",
        ),
    ] = None,
    output: Output = None,
    add_to: AddTo = None,
    as_json: AsJsonText = False,
) -> None:
    """Generate a publisher's key pair.

    With --add-to, a publisher of this name in the file gets a second key, and keeps its rights.
    """
    grant, own = publisher_key_settings(name, may or ["upload.requested"])
    try:
        parse_grants(json.dumps(grant))
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from None
    parts = {"this publisher only (private)": own}
    if add_to is None:
        parts["workers (merge with the other publishers)"] = {
            "KEYTURN_PUBLISHERS": json.dumps(grant)
        }
    else:
        _add_publisher(add_to, name, grant, has_rights=may is not None)
    _output(parts, output, as_json=as_json)


def _add_publisher(path: Path, name: str, grant: dict[str, Any], *, has_rights: bool) -> None:
    def add(publishers: Keys) -> None:
        if name not in publishers:
            publishers |= grant
            return
        if has_rights:
            raise CommandError(
                f"{path} has a publisher {name} already: its rights stay; omit --may"
            )
        try:
            publishers[name]["keys"] += grant[name]["keys"]
        except (KeyError, TypeError):
            raise CommandError(f"{path}: the publisher {name} has no list of keys") from None

    note(f"added a key of {name} to {add_to_file(path, 'PUBLISHERS', add)}")


@app.command("event-key")
def event_key(output: Output = None, as_json: AsJsonText = False) -> None:
    """Generate the key pair that events are signed with."""
    workers, publishers = event_key_settings()
    # Its name in events and logs.
    key_id = VerifyKey.from_bytes(from_base64(publishers["KEYTURN_EVENT_PUBLIC_KEY"])).id
    parts = {
        f"workers only (private), key id {key_id}": workers,
        f"publishers and other readers of events, key id {key_id}": publishers,
    }
    _output(parts, output, as_json=as_json)


@app.command("session-key")
def session_key(output: Output = None, as_json: AsJsonText = False) -> None:
    """Generate the key that signs the cookies of the console."""
    _output({"the console only": session_key_settings()}, output, as_json=as_json)


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
    texts = _texts(amqp_url, s3, master_keys, passwords)
    directory.mkdir(parents=True, exist_ok=True)
    for path in paths:
        write_secret(path, texts[path.name], force=force)
    if not passwords.exists():  # it holds no key of a deployment: --force keeps its users
        passwords.parent.mkdir(exist_ok=True)
        write_secret(passwords, "")
    written = {path: _PURPOSES[path.name] for path in paths}
    written[directory / PASSWORD_FILE] = _PURPOSES[PASSWORD_FILE.name]
    width = max(len(str(path)) for path in written)
    for path, purpose in written.items():
        print_line(f"{path!s:<{width}}  {purpose}")
    print_line("")
    print_line(f"Next, with a broker at {redacted(amqp_url)} and a storage at {s3_endpoint_url}:")
    for file, *words in _NEXT:
        print_line(f"  keyturn --env-file {shlex.quote(str(directory / file))} {' '.join(words)}")


def _access_keys(settings: StorageKeySettings) -> dict[str, str]:
    name, secret = settings.s3_access_key_id, settings.s3_secret_access_key
    pair = ("keyturn", secrets.token_hex(20))
    if name is not None and secret is not None:
        pair = (name, secret.get_secret_value())
    return dict(
        zip(("KEYTURN_S3_ACCESS_KEY_ID", "KEYTURN_S3_SECRET_ACCESS_KEY"), pair, strict=True)
    )


def _texts(
    amqp_url: str, s3: dict[str, str], master_keys: dict[str, str], passwords: Path
) -> dict[str, str]:
    """Return the text of each file."""
    workers_intake, publishers_intake = intake_key_settings(_KEY_ID)
    workers_event, publishers_event = event_key_settings()
    grants: dict[str, Any] = {}

    def publisher(name: str, may: list[str]) -> list[_Part]:
        """Return the parts of a publisher, with these grants."""
        grant, own = publisher_key_settings(name, may)
        grants.update(grant)
        return [
            ("This publisher's name, and the key that signs its requests", own),
            ("Seals secrets to the workers", publishers_intake),
            ("Verifies events", publishers_event),
        ]

    everywhere: list[_Part] = [
        ("The same in every process of a deployment", {"KEYTURN_DEPLOYMENT": "dev"}),
        ("The broker", {"KEYTURN_AMQP_URL": amqp_url}),
    ]
    shared: list[_Part] = [
        *everywhere,
        ("The bucket; omit the access keys if the standard AWS chain provides them", s3),
    ]
    gateway_keys = {
        name: value for name, value in master_keys.items() if name not in GATEWAY_READS_NOT
    }
    service = [*shared, *publisher(_PUBLISHER, ["*"])]
    gateway = [*shared, (_MASTER_KEYS, gateway_keys), *publisher(_GATEWAY, GATEWAY_MAY)]
    console = [
        *everywhere,
        *publisher(_CONSOLE, CONSOLE_MAY),
        ("Signs the cookies of signed-in users", session_key_settings()),
        (
            "Who may sign in: see `keyturn console add-user`",
            {"KEYTURN_CONSOLE_PASSWORD_FILE": str(passwords)},
        ),
    ]
    worker = [
        *shared,
        (_MASTER_KEYS, master_keys),
        ("Opens the secrets that publishers seal", workers_intake),
        (
            "Signs events, and verifies them for the operator's commands",
            workers_event | publishers_event,
        ),
        (
            "The publishers: their keys, permitted requests and projects",
            {"KEYTURN_PUBLISHERS": json.dumps(grants)},
        ),
    ]
    return {
        WORKER_FILE: _text("Workers and operator", worker),
        GATEWAY_FILE: _text("The HTTP gateway", gateway),
        CONSOLE_FILE: _text("The operator's console", console),
        PUBLISHER_FILE: _text("A service that publishes", service),
        STORAGE_FILE: _text("The development storage", [("Endpoint, bucket and access keys", s3)]),
    }


def _text(title: str, parts: list[_Part]) -> str:
    lines = [f"# {title}: development secrets, created by `keyturn init`. Never commit this file."]
    for comment, settings in parts:
        try:
            lines += ["", f"# {comment}.", *env_lines(settings)]
        except ValueError as exc:
            raise typer.BadParameter(str(exc)) from exc
    return "\n".join(lines) + "\n"
