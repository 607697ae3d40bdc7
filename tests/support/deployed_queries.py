"""Every PromQL expression in `deploy/`: of rules, panels and autoscalers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
# `query` is KEDA's; in a dashboard it belongs to a variable.
_KEYS: Final = {".yml": ("expr", "query"), ".yaml": ("expr", "query"), ".json": ("expr",)}
# Cases of `promtool test rules` may ask for anything; provisioning has no queries.
_LEFT_OUT: Final = ("prometheus/tests", "grafana/provisioning")


def expressions() -> dict[str, set[str]]:
    """The expressions of each file, by its path below `deploy/`; files without any are left out."""
    found = {}
    for path in sorted(DEPLOY.rglob("*")):
        name = str(path.relative_to(DEPLOY))
        keys = _KEYS.get(path.suffix, ())
        if keys and not name.startswith(_LEFT_OUT):
            # JSON is YAML.
            documents = yaml.load_all(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
            if each := {expr for document in documents for expr in _strings(document, keys)}:
                found[name] = each
    return found


def _strings(node: Any, keys: tuple[str, ...]) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in keys and isinstance(value, str):
                yield value
            else:
                yield from _strings(value, keys)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value, keys)
