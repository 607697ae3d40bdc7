"""Finds where a module uses what another distribution has not made public.

A heuristic on the syntax tree, without inference of types. A name with an underscore is our own
if it is defined in the same module. If it is defined elsewhere in our tree, it is our own on `self`
and `cls` (classes inherit from one another), on what is imported from our packages, and on
parameters annotated with that. Objects of others are what a module imports from another
distribution, and parameters annotated with that.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_OURS: Final = frozenset({"keyturn", "keyturn_workers", "tools", "tests", "examples"})
# Documented in spite of their underscore: `collections.namedtuple`.
_DOCUMENTED: Final = frozenset({"_replace", "_asdict", "_fields", "_make", "_field_defaults"})
# Mappings that are made to be written to, and objects that their documentation lets others change:
# a filter changes the record that it gets, and a trace function chooses the events of a frame.
_WRITABLE: Final = frozenset({"os.environ", "sys.modules", "logging.LogRecord", "types.FrameType"})
_OWN_RECEIVERS: Final = frozenset({"self", "cls", "this"})
# For type checkers alone; it does not exist at run time.
_TYPING: Final = frozenset({"_typeshed"})
_SETTERS: Final = frozenset({"setattr", "delattr"})


def is_private(name: str) -> bool:
    """Whether a name begins with an underscore, and is no dunder."""
    return name.startswith("_") and name != "_" and not (name[:2] == name[-2:] == "__")


def defined_names(tree: ast.AST) -> set[str]:
    """The private names that a module defines, attributes of its own objects included."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.add(node.name)
            case ast.arg():
                found.add(node.arg)
            case ast.Name(ctx=ast.Store()):
                found.add(node.id)
            case ast.Attribute(value=ast.Name(id=receiver), ctx=ast.Store()):
                if receiver in _OWN_RECEIVERS:
                    found.add(node.attr)
            case ast.Assign(targets=[ast.Name(id="__slots__")], value=ast.Tuple(elts=names)):
                found |= {str(n.value) for n in names if isinstance(n, ast.Constant)}
    return {name for name in found if is_private(name)}


def names_of_tree(files: Iterable[Path]) -> set[str]:
    """All private names that our modules define."""
    return set().union(*(defined_names(ast.parse(path.read_text())) for path in files))


def violations(source: str, ours: set[str]) -> list[str]:
    """Each use of something private of others, as `line: what`. `ours` are our tree's names."""
    tree = ast.parse(source)
    imports = dict(_imports(tree))
    visitor = _Visitor(defined_names(tree), ours, imports)
    visitor.visit(tree)
    return visitor.found


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """The names in a module that are imported, and what they refer to."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    bound = alias.asname or alias.name.partition(".")[0]
                    yield bound, alias.name if alias.asname else bound
            case ast.ImportFrom(module=str(module), names=names, level=0):
                for alias in names:
                    yield alias.asname or alias.name, f"{module}.{alias.name}"


def _is_foreign(module: str) -> bool:
    return module.partition(".")[0] not in _OURS | _TYPING


def _path(node: ast.expr) -> list[str]:
    """`a.b["c"].d` as `a`, `b`, `d`; empty where it does not begin with a name."""
    match node:
        case ast.Name(id=name):
            return [name]
        case ast.Attribute(value=value, attr=attr):
            before = _path(value)
            return [*before, attr] if before else []
        case ast.Subscript(value=value):
            return _path(value)
    return []


class _Visitor(ast.NodeVisitor):
    def __init__(self, defined: set[str], ours: set[str], imports: dict[str, str]) -> None:
        self._defined = defined
        self._ours = ours | defined
        # Names of imported modules and classes and of their objects, and what they refer to.
        self._known = imports
        self.found: list[str] = []

    def _note(self, node: ast.AST, what: str) -> None:
        self.found.append(f"{getattr(node, 'lineno', 0)}: {what}")

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if _is_foreign(alias.name) and any(map(is_private, alias.name.split("."))):
                self._note(node, f"imports {alias.name}")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level or node.module is None or not _is_foreign(node.module):
            return
        for alias in node.names:
            if any(map(is_private, [*node.module.split("."), alias.name])):
                self._note(node, f"imports {node.module}.{alias.name}")

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        arguments = node.args
        before = dict(self._known)
        for arg in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            self._known.pop(arg.arg, None)
            annotation = arg.annotation
            if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
                annotation = ast.parse(annotation.value, mode="eval").body
            path = _path(annotation) if annotation is not None else []
            if path and path[0] in before:
                self._known[arg.arg] = ".".join([before[path[0]], *path[1:]])
        self.generic_visit(node)
        self._known = before

    visit_FunctionDef = _visit_function  # noqa: N815  # as `ast` names it
    visit_AsyncFunctionDef = _visit_function  # noqa: N815

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        if is_private(node.attr) and node.attr not in _DOCUMENTED:
            match node.value:
                case ast.Name(id=name) if name in _OWN_RECEIVERS:
                    allowed = self._ours
                case ast.Call(func=ast.Name(id="super")):
                    allowed = self._ours
                case value:
                    allowed = self._ours if self._is_ours(value) else self._defined
            if node.attr not in allowed:
                self._note(node, f"uses {ast.unparse(node)}")
        if isinstance(node.ctx, ast.Store | ast.Del):
            self._check_written(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Store | ast.Del) and isinstance(node.value, ast.Attribute):
            self._check_written(node)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        match node:
            case ast.Call(
                func=ast.Name(id="setattr" | "delattr" | "getattr" as function),
                args=[target, ast.Constant(value=str(name)), *_],
            ):
                if is_private(name) and name not in self._defined:
                    self._note(node, f"uses {name} by {function}")
                elif function in _SETTERS:
                    self._check_owner(node, target)
            case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[target, *_]):
                self._check_owner(node, target)

    def _is_ours(self, value: ast.expr) -> bool:
        path = _path(value)
        return bool(path) and path[0] in self._known and not _is_foreign(self._known[path[0]])

    def _check_written(self, node: ast.Attribute | ast.Subscript) -> None:
        self._check_owner(node, node.value)

    def _check_owner(self, node: ast.AST, owner: ast.expr) -> None:
        path = _path(owner)
        if path and _is_foreign(self._known.get(path[0], "keyturn")):
            named = ".".join([self._known[path[0]], *path[1:]])
            if named not in _WRITABLE:
                self._note(node, f"writes to {named}")
