"""Searches many files for many secrets in any encoding (SPEC 13).

It uses GNU grep, which finds thousands of fixed strings in one pass over hundreds of megabytes. It
searches for 12 bytes of each secret, enough to exclude chance: raw, as Python's repr, in hex, in
both alphabets of base64, and inside a longer base64 text.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tools.harness.canaries import encodings

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOOKED_FOR_BYTES = 12
# grep reads one pattern per line, and a NUL ends a pattern in some modes.
_NOT_IN_A_PATTERN = re.compile(rb"[\n\0]")
_AT_LEAST_BYTES = 8
_FOUND, _NOTHING = 0, 1


def patterns(secret: bytes) -> set[bytes]:
    """Patterns, at least one of which occurs in a file that contains the secret."""
    start = secret[:_LOOKED_FOR_BYTES]
    # Inside a longer base64 text a group of three may begin at its second or third byte.
    inside = (secret[shift : shift + _LOOKED_FOR_BYTES] for shift in (1, 2))
    texts = encodings(start)
    found = {text.encode(code) for text in texts for code in ("latin-1", "utf-8")} - {start}
    for part in inside:
        found |= {base64.b64encode(part), base64.urlsafe_b64encode(part)}
    raw = _plain_part(secret)
    found = {text for text in found if not _NOT_IN_A_PATTERN.search(text)}
    # grep cannot find a pattern with a newline, neither raw nor as UTF-8.
    return found | ({raw, raw.decode("latin-1").encode()} if raw else set())


def _plain_part(secret: bytes) -> bytes | None:
    """The longest part that can be a pattern; shorter if the secret has newlines."""
    longest = max(_NOT_IN_A_PATTERN.split(secret), key=len)
    return longest[:_LOOKED_FOR_BYTES] if len(longest) >= _AT_LEAST_BYTES else None


def scan_folder(folder: Path, secrets: Mapping[str, bytes]) -> list[str]:
    """The secrets that occur in the files of a folder: `NAME in FILE`, without duplicates.

    Raises:
        RuntimeError: grep failed.
    """
    names: dict[bytes, str] = {}
    for name, secret in secrets.items():
        for pattern in patterns(secret):
            names.setdefault(pattern, name)
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"\n".join(names))
        file.flush()
        done = subprocess.run(
            ["grep", "--fixed-strings", "--recursive", "--text", "--only-matching", "--null",
             "--with-filename", "--file", file.name, "."],
            cwd=folder,
            env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )  # fmt: skip
    if done.returncode not in {_FOUND, _NOTHING}:
        raise RuntimeError(f"grep failed: {done.stderr[:200]!r}")
    lines = {tuple(line.split(b"\0", 1)) for line in done.stdout.split(b"\n") if line}
    return sorted(
        {f"{names.get(what, '?')} in {Path(os.fsdecode(where))}" for where, what in lines}
    )


def size_bytes(folder: Path) -> int:
    """The total size of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
