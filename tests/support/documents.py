"""Blocks of code in the documents, which tests run as they are written."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_PROGRAMS: Final = Path(sys.executable).parent


def code_blocks(text: str, language: str, *, example: str = "") -> list[str]:
    """The blocks in one language: all, or those behind the comment that names an example."""
    marked = rf"^<!-- example: {example} -->\n" if example else "^"
    found: list[str] = re.findall(
        rf"{marked}```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    )
    return found


async def run_shell(script: str, folder: Path, env: Mapping[str, str]) -> tuple[int, str]:
    """The exit status of a script that ends at its first failure, and all that it printed.

    The programs of this Python's environment, such as `keyturn`, come first in its path.
    """
    process = await asyncio.create_subprocess_exec(
        *("bash", "-eu", "-o", "pipefail", "-c", script),
        cwd=folder,
        env={"PATH": f"{_PROGRAMS}:{os.environ['PATH']}", "HOME": str(folder), **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()
