"""Files with secrets, and the API keys that commands work with (SPEC 1, 14).

An API key comes from a file, the environment or a prompt, never from an argument, which every
process list would show. A generated one is saved or printed before anything is published: a project
under a lost key would be unreadable. Files are written atomically, readable only by their owner.
"""

import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

import typer
from pydantic import SecretStr

from keyturn.crypto.base64 import from_base64
from keyturn.crypto.keys import CUSTOMER_SECRET_BYTES, Secret, new_api_key, user_kek
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.output import print_line
from keyturn_workers.cli.settings import ApiKeySettings

_OWNER_ONLY: Final = 0o600
_MAX_BYTES: Final = 4096
MANY_MAX_BYTES: Final = 256 * 1024
"""Room for more than a thousand KEKs or customer secrets."""


def read_secret(path: Path, max_bytes: int = _MAX_BYTES) -> str:
    """Return the text of a small file with a secret.

    Raises:
        typer.BadParameter: it cannot be read, is too long, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise typer.BadParameter(f"{path}: longer than {max_bytes} bytes")
        return data.decode()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise typer.BadParameter(f"{path}: {reason}") from None


def read_customer_secrets(path: Path | None) -> tuple[Secret, ...]:
    """Return the customer secrets in a file, one a line; none without a file.

    Raises:
        typer.BadParameter: a line is not the base64 of 32 bytes. It repeats nothing of the line.
    """
    secrets = []
    lines = [] if path is None else read_secret(path, MANY_MAX_BYTES).splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            secret = from_base64(line.strip())
        except ValueError:
            secret = b""
        if len(secret) != CUSTOMER_SECRET_BYTES:
            raise typer.BadParameter(
                f"{path}, line {number}: not the base64 of {CUSTOMER_SECRET_BYTES} bytes"
            )
        secrets.append(Secret(secret))
    if path is not None and not secrets:
        raise typer.BadParameter(f"{path}: it has no customer secret")
    return tuple(secrets)


def write_secret(
    path: Path, content: str | bytes, *, force: bool = False, keep_mode: bool = False
) -> None:
    """Write a file of mode 0600; `force` replaces an existing one atomically, with its owner.

    With `keep_mode`, the new file gets the mode of the replaced one.

    Raises:
        CommandError: the file exists.
        OSError: it cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    # The name appears only after the write: never half a file or a wider mode.
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as exc:
        # Names the requested file.
        raise OSError(exc.errno, exc.strerror, str(path)) from exc
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, _OWNER_ONLY)
            if force:
                _keep(descriptor, path, mode=keep_mode)
            os.fsync(descriptor)
        if force:
            os.replace(temporary, path)  # noqa: PTH105  # a path as mkstemp gives it
        else:
            os.link(temporary, path)  # fails if the name exists, unlike a rename
    except FileExistsError as exc:
        raise CommandError(f"{path} already exists") from exc
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108  # as above


def _keep(descriptor: int, path: Path, *, mode: bool) -> None:
    """Keep a replaced file's owner and, if `mode`, its mode: that user or group reads the file."""
    if not path.exists():
        return
    before, new = path.stat(), os.fstat(descriptor)
    if (before.st_uid, before.st_gid) != (new.st_uid, new.st_gid):
        try:
            os.fchown(descriptor, before.st_uid, before.st_gid)
        except OSError as exc:
            raise OSError(exc.errno, exc.strerror, str(path)) from exc
    if mode:
        os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


def read_or_generate_api_key(
    project: str,
    file: Path | None,
    save_to: Path | None,
    *,
    generate: bool,
    as_json: bool,
    new: bool = False,
) -> SecretStr:
    """Return the API key of the options; a generated one is already saved or printed.

    `save_to` is a new file for a generated key. `as_json` reserves standard output for JSON, and
    `new` is true if the key replaces another.

    Raises:
        typer.BadParameter: the options contradict each other, or the API key is malformed.
        OSError: the new file cannot be written; nothing has been published.
    """
    if not generate:
        if save_to is not None:
            raise typer.BadParameter("--save-to needs --generate")
        return read_api_key(file, project, confirm=True, new=new)
    if file is not None:
        raise typer.BadParameter("--generate and --api-key-file cannot be used together")
    if as_json and save_to is None:
        raise typer.BadParameter("--generate with --json needs --save-to")
    api_key = new_api_key()
    if save_to is not None:
        write_secret(save_to, api_key + "\n")
        note(f"API key written to {save_to}")
    else:
        print_line(f"API key (shown only once): {api_key}")
    return SecretStr(api_key)


def read_api_key(file: Path | None, project: str, *, confirm: bool, new: bool = False) -> SecretStr:
    """Return the project's API key from the file, else the environment, else a hidden prompt.

    With `confirm`, a prompt asks twice. `new` is true for the key that a rotation introduces.

    Raises:
        typer.BadParameter: there is none, or it is malformed (SPEC 1).
    """
    if file is not None:
        api_key: SecretStr | None = SecretStr(read_secret(file).strip())
    else:
        settings = ApiKeySettings.read()
        api_key = settings.new_api_key if new else settings.api_key
    if api_key is None:
        api_key = _prompt(confirm=confirm, new=new)
    try:
        user_kek(api_key.get_secret_value(), project)
    except ValueError as exc:  # its text names the rule, never the key
        raise typer.BadParameter(str(exc)) from None
    return api_key


def _prompt(*, confirm: bool, new: bool) -> SecretStr:
    name, setting = ("new API key", "NEW_API_KEY") if new else ("API key", "API_KEY")
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            f"no {name}: use --api-key-file, set KEYTURN_{setting}, or run in a terminal"
        )
    prompt = name[0].upper() + name[1:]
    typed: str = typer.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True)
    return SecretStr(typed)
