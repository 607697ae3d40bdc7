"""Adding keys to a file of settings: `keyturn keygen … --add-to FILE` (SPEC 11, 14).

A setting that is a JSON object of keys is one long line of an environment file, or a file of its
own that the setting names. Neither is edited by hand: pasting a new line over it would drop the
keys that it has, and with a master key everything under it.
"""

import json
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any, Final

from dotenv import dotenv_values

from keyturn.settings import PREFIX, json_text
from keyturn_workers.cli.errors import CommandError
from keyturn_workers.cli.secrets import write_secret

# Characters that no shell changes in an assignment.
_UNQUOTED: Final = re.compile(r"[A-Za-z0-9_@%+=:,./?*\[\]-]*")

Keys = dict[str, Any]


def env_lines(settings: dict[str, str]) -> list[str]:
    """Return settings as lines that a shell, compose and `docker run --env-file` read alike.

    Only values that a shell would change are quoted. Of these, `docker run` and podman keep the
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


def add_to_file(path: Path, setting: str, change: Callable[[Keys], None]) -> Path:
    """Change the keys of a setting in a file; return the file that was written.

    Args:
        path: An environment file that has the setting, or a JSON file, which may be new.
        setting: Its name without the prefix, such as `MASTER_KEYS`.
        change: Changes the keys in place.

    Raises:
        CommandError: the file is neither, or `change` refuses. Nothing was written.
        OSError: it cannot be read or written.
    """
    is_new = not path.exists()
    if is_new and path.suffix != ".json":
        raise CommandError(f"{path} does not exist; only a .json file is created")
    text = "{}" if is_new else path.read_text(encoding="utf-8")
    if text.lstrip().startswith("{"):
        keys = _parse(text, path)
        change(keys)
        write_secret(path, json.dumps(keys, indent=2) + "\n", force=not is_new, keep_mode=True)
        return path
    name = PREFIX + setting
    value = dotenv_values(stream=StringIO(text), interpolate=False).get(name)
    lines = text.splitlines()
    found = [at for at, line in enumerate(lines) if line.startswith(f"{name}=")]
    if value is None or len(found) != 1:
        raise CommandError(f"{path} does not have one line with {name}")
    if not json_text(value).lstrip().startswith("{"):
        return add_to_file(Path(value.strip()), setting, change)
    keys = _parse(json_text(value), path)
    change(keys)
    (lines[found[0]],) = env_lines({name: json.dumps(keys)})
    write_secret(path, "\n".join(lines) + "\n", force=True, keep_mode=True)
    return path


def _parse(text: str, path: Path) -> Keys:
    try:
        keys = json.loads(text)
    except json.JSONDecodeError:
        keys = None
    if not isinstance(keys, dict):
        raise CommandError(f"{path}: not a JSON object")
    return keys
