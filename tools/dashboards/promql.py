"""What tests need to know of PromQL: the metrics that an expression reads, and its variables.

No parser: it takes off strings, labels, windows and modifiers, and what is left are names.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTOR: Final = re.compile(r"\{[^{}]*\}")
_WINDOW: Final = re.compile(r"\[[^\[\]]*\]")
_GROUPING: Final = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)")
_NAME: Final = re.compile(r"(?<![\w:.$])[A-Za-z_:][\w:]*(?!\s*\()(?![\w:])")
_WORDS: Final = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan"})
_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def metric_names(expr: str) -> set[str]:
    """The names of the metrics and recorded series that an expression reads."""
    for pattern, replacement in ((_STRING, '""'), (_SELECTOR, ""), (_WINDOW, ""), (_GROUPING, " ")):
        expr = pattern.sub(replacement, expr)
    return {name for name in _NAME.findall(expr) if name.lower() not in _WORDS}


def variables(text: str) -> set[str]:
    """The names of the variables of Grafana in an expression or a setting."""
    return {one or other for one, other in _VARIABLE.findall(text)}


def resolve(expr: str, values: Mapping[str, str]) -> str:
    """The expression with its variables replaced.

    Raises:
        KeyError: it has a variable that `values` does not.
    """
    return _VARIABLE.sub(lambda found: values[found[1] or found[2]], expr)
