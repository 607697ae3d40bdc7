"""Grafana's dashboards as code: what `deploy/grafana/dashboards` holds is generated from here.

`python -m tools.dashboards` writes the files; a test compares. Users import the files and need none
of this.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from tools.dashboards import broker, gateway, rotations, uploads
from tools.dashboards.document import document

FOLDER: Final = Path(__file__).parents[2] / "deploy/grafana/dashboards"
DASHBOARDS: Final = {
    "uploads.json": uploads.DASHBOARD,
    "rotations.json": rotations.DASHBOARD,
    "gateway.json": gateway.DASHBOARD,
    "broker.json": broker.DASHBOARD,
}


def files() -> dict[str, str]:
    """The text of each file, by its name in `FOLDER`."""
    return {
        name: json.dumps(document(dashboard), indent=2, ensure_ascii=False) + "\n"
        for name, dashboard in DASHBOARDS.items()
    }


def write() -> int:
    """Write all files, and return their number."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return len(files())
