"""`make sbom`: check what uv exported as CycloneDX: its schema, and that it is the shipped set."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator
from referencing import Registry, Resource

from tools.supply.lock import PUBLISHERS, shipped, version

# CycloneDX's own schemas, as its Python library ships them. The library's validator would also
# check each URL by a grammar, which takes minutes.
_SCHEMAS = files("cyclonedx.schema._res")
_MAIN = "bom-1.5.SNAPSHOT.schema.json"
_OTHERS = ("spdx.SNAPSHOT.schema.json", "jsf-0.82.SNAPSHOT.schema.json")
_BASE = "http://cyclonedx.org/schema/"


def _schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((_SCHEMAS / name).read_text())
    return found


def faults(text: str) -> list[str]:
    """What is wrong with this document; nothing where all is well."""
    document = json.loads(text)
    registry: Registry[Any] = Registry().with_resources(
        (_BASE + name, Resource.from_contents(_schema(name))) for name in _OTHERS
    )
    validator = Draft7Validator(_schema(_MAIN), registry=registry)
    if broken := [error.message for error in validator.iter_errors(document)]:
        return [f"not CycloneDX 1.5: {message}" for message in broken]
    listed = {(one["name"], one["version"]) for one in document["components"]}
    locked = {(name, package.version) for name, package in shipped().items()}
    locked.add((PUBLISHERS, version(PUBLISHERS)))
    return [
        *(f"missing: {name} {version}" for name, version in sorted(locked - listed)),
        *(f"not shipped: {name} {version}" for name, version in sorted(listed - locked)),
    ]


def main() -> int:
    """Check one file."""
    parser = argparse.ArgumentParser(prog="python -m tools.supply.sbom", description=__doc__)
    parser.add_argument("file", type=Path)
    file: Path = parser.parse_args().file
    found = faults(file.read_text())
    for fault in found:
        print(f"sbom: {fault}", file=sys.stderr)
    if not found:
        print(f"{file}: CycloneDX 1.5, {len(shipped()) + 1} packages")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
