"""Every PromQL expression in `deploy/`: of rules, panels and autoscalers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
_KEYS: Final = ("expr", "query")
# Cases of `promtool test rules` may ask for anything; provisioning has no queries.
_LEFT_OUT: Final = ("prometheus/tests", "grafana/provisioning")


def expressions() -> dict[str, set[str]]:
    """The expressions of each file, by its path below `deploy/`; files without any are left out."""
    found = {}
    for path in sorted(DEPLOY.rglob("*")):
        name = str(path.relative_to(DEPLOY))
        if path.suffix in (".yml", ".yaml", ".json") and not name.startswith(_LEFT_OUT):
            # JSON is YAML.
            documents = yaml.load_all(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
            if each := {expr for document in documents for expr in _strings(document)}:
                found[name] = each
    return found


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in _KEYS and isinstance(value, str) and not value.startswith("label_values"):
                yield value
            else:
                yield from _strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value)
