"""Generates what other languages and people read: schemas, the AsyncAPI document, signatures.

`python -m tools.generate` writes the files below `contracts/`; a test compares them with what is
committed. Schemas and AsyncAPI come from the models (`keyturn.messages`) and the topology
(`keyturn.topology`), so that they cannot contradict them (SPEC 6). The examples themselves are
written by hand. It never runs in a service.
"""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from tools.generate.asyncapi import asyncapi
from tools.generate.examples import signed
from tools.generate.schemas import schemas

ROOT = Path(__file__).resolve().parents[2] / "contracts"


def files() -> dict[PurePosixPath, str]:
    """Every generated file by its path below `contracts/`."""
    made: dict[PurePosixPath, str] = {
        PurePosixPath("schemas") / f"{name}.json": pretty(schema)
        for name, schema in schemas().items()
    }
    made[PurePosixPath("asyncapi.json")] = pretty(asyncapi())
    made[PurePosixPath("examples/signed.json")] = pretty(signed())
    return made


def write(root: Path = ROOT) -> list[PurePosixPath]:
    """Write them all; return the paths."""
    made = files()
    for path, text in made.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return sorted(made)


def pretty(document: Any) -> str:
    """JSON for people and for diffs."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
