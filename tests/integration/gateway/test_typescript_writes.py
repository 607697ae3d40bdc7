"""Writes of the TypeScript client arrive once, also where a runtime repeats requests itself."""

from __future__ import annotations

import asyncio
import json

import pytest

from tools import typescript

_MAIN = typescript.PACKAGE / "tests/cases/writes_main.ts"


@pytest.mark.parametrize(
    ("name", "arguments"), [("node", []), ("deno", ["run", "--allow-all"]), ("bun", [])]
)
async def test_a_write_on_a_kept_connection_that_breaks(name: str, arguments: list[str]) -> None:
    program = typescript.NODE
    if name != "node":
        try:
            typescript.install(typescript.RUNTIMES)
        except typescript.NpmError as exc:
            pytest.skip(f"npm cannot install {name}: {exc}")
        program = typescript.RUNTIMES / "node_modules/.bin" / name
    process = await asyncio.create_subprocess_exec(
        program, *arguments, _MAIN, env=typescript.env(), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert json.loads(output) == {
        "arrived": ["PUT", "PUT", "DELETE", "POST"],
        "errors": ["ResponseLostError"] * 4,
    }
