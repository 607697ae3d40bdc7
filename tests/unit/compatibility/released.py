"""What releases from 1.0.0rc1 on left in a bucket and on the broker (`tools/release/bucket.py`)."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

RELEASES: Final = sorted(path.stem for path in Path(__file__).parent.glob("made_by_1_*.json"))


@dataclass(frozen=True)
class Released:
    """The file of one release, by its name without `.json`."""

    name: str

    @cached_property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            (Path(__file__).parent / f"{self.name}.json").read_text()
        )
        return found

    @property
    def texts(self) -> dict[str, str]:
        """The objects' plaintexts by object key."""
        return dict(self.document["texts"])

    @property
    def messages(self) -> dict[str, dict[str, Any]]:
        """The first message of each type, and the last mark, each with `headers` and `body`."""
        return dict(self.document["messages"])

    def api_key(self, name: str = "api_key") -> str:
        return str(self.document["secrets"][name])

    def seeds(self) -> dict[str, bytes]:
        """The arguments of a `Deployment` that has the same keys."""
        names = self.document["secrets"].items()
        return {name: base64.b64decode(text) for name, text in names if "api_key" not in name}

    def bodies(self) -> dict[str, bytes]:
        """All objects of the bucket, by S3 key."""
        objects = self.document["objects"].items()
        return {s3_key: base64.b64decode(made["body"]) for s3_key, made in objects}
