"""Every PromQL expression in `deploy/`: of rules, panels and autoscalers.

`metric_names` is no parser: it removes strings, labels, windows and modifiers, and the names are
left.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
# `query` is KEDA's; in a dashboard it belongs to a variable.
_KEYS: Final = {".yml": ("expr", "query"), ".yaml": ("expr", "query"), ".json": ("expr",)}
# Cases of `promtool test rules` may ask for anything; provisioning has no queries.
_LEFT_OUT: Final = ("prometheus/tests", "grafana/provisioning")
_REMOVED: Final = (
    (re.compile(r'"(?:[^"\\]|\\.)*"'), '""'),
    (re.compile(r"\{[^{}]*\}"), ""),
    (re.compile(r"\[[^\[\]]*\]"), ""),
    (re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)"), " "),
)
_NAME: Final = re.compile(r"(?<![\w:.$])[A-Za-z_:][\w:]*(?!\s*\()(?![\w:])")
_WORDS: Final = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan"})
_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


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


def metric_names(expr: str) -> set[str]:
    """The names of the metrics and recorded series that an expression reads."""
    for pattern, replacement in _REMOVED:
        expr = pattern.sub(replacement, expr)
    return {name for name in _NAME.findall(expr) if name.lower() not in _WORDS}


def variables(text: str) -> set[str]:
    """The names of Grafana's variables in an expression or a setting."""
    return {one or other for one, other in _VARIABLE.findall(text)}


def resolve(expr: str, values: Mapping[str, str]) -> str:
    """The expression with its variables replaced.

    Raises:
        KeyError: it has a variable that `values` does not.
    """
    return _VARIABLE.sub(lambda found: values[found[1] or found[2]], expr)
