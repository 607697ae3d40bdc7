"""Looking for many secrets in many files at once, however they are spelt (SPEC 13).

GNU grep does it: thousands of fixed strings in one pass over hundreds of megabytes. Each
secret is looked for by 12 of its bytes, which nothing else has by chance: raw, as Python shows
bytes, in hex, in both alphabets of base64, and inside of a longer text of base64.
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
# grep takes patterns by lines, and a NUL ends some of its ways to read them.
_NOT_IN_A_PATTERN = re.compile(rb"[\n\0]")
_AT_LEAST_BYTES = 8
_FOUND, _NOTHING = 0, 1


def patterns(secret: bytes) -> set[bytes]:
    """What a file that shows this secret holds, one of them at least."""
    start = secret[:_LOOKED_FOR_BYTES]
    # Inside of a longer text its groups of three may begin at its second or third byte.
    inside = (secret[shift : shift + _LOOKED_FOR_BYTES] for shift in (1, 2))
    texts = encodings(start)
    found = {text.encode(code) for text in texts for code in ("latin-1", "utf-8")} - {start}
    for part in inside:
        found |= {base64.b64encode(part), base64.urlsafe_b64encode(part)}
    raw = _plain_part(secret)
    found = {text for text in found if not _NOT_IN_A_PATTERN.search(text)}
    # A newline among the first bytes hides them from grep, as they are and as UTF-8 alike.
    return found | ({raw, raw.decode("latin-1").encode()} if raw else set())


def _plain_part(secret: bytes) -> bytes | None:
    """The longest stretch that can be a pattern; of fewer bytes where newlines leave no more."""
    longest = max(_NOT_IN_A_PATTERN.split(secret), key=len)
    return longest[:_LOOKED_FOR_BYTES] if len(longest) >= _AT_LEAST_BYTES else None


def found_in(folder: Path, secrets: Mapping[str, bytes]) -> list[str]:
    """Which of the secrets show in the files of a folder: `NAME in FILE`, each once.

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
    """How much there is to look through."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
