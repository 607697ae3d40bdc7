"""`tests/unit/` mirrors the packages file by file: `a/b.py` is tested in `a/test_b.py`.

Exceptions are listed here, each with its reason. A module of declarations alone (constants,
protocols, classes of data) needs no test, and a test across modules may have its own name.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

import pytest

_ROOT = Path(__file__).parents[2]
_UNIT = _ROOT / "tests/unit"
_PACKAGES = {"keyturn": _ROOT / "contracts", "keyturn_workers": _ROOT / "workers"}

# Nothing happens in these: they declare what others use.
DECLARATIONS: Final = {
    "keyturn_workers/__main__.py": "calls main() of the command line",
    "keyturn_workers/console/model/rows.py": "what pages show, as classes of data",
    "keyturn_workers/dead_letters/errors.py": "classes of errors",
    "keyturn_workers/console/web/context.py": "classes of data, and what the pages need of sign-in",
    "keyturn_workers/errors.py": "the classes of the workers' errors",
    "keyturn_workers/tracing/instrumentation.py": "the parts of a process without traces",
    "keyturn_workers/storage/port.py": "the protocol of a storage and its classes of data",
    "keyturn_workers/storage/probe/checks.py": "the table of the rows",
    "keyturn_workers/storage/probe/protocol.py": "the protocol of the probe's storage",
    "keyturn_workers/master_keys/port.py": "the protocol of a master key and its classes of data",
    "keyturn_workers/sweep/context.py": "a class of data",
}

# Tests that are not about one module.
ACROSS_MODULES: Final[dict[str, str]] = {
    "keyturn/crypto/test_keyturn_v1.py": "vectors of all formats, made by another implementation",
    "keyturn/crypto/test_own_vectors.py": "our vectors of all formats, made again",
    "keyturn/crypto/test_wycheproof.py": "known answers of Wycheproof for all primitives",
    "keyturn/gateway/test_example.py": "runs the example of docs/howto/read.md",
    "keyturn/open/test_vectors.py": "objects made by another implementation",
    "keyturn_workers/gateway/test_links.py": "what a link opens, through the whole application",
    "keyturn_workers/amqp/test_package.py": "what the package offers, imported late",
    "keyturn_workers/amqp/test_property_tolerance_upstream.py": "what the libraries still need",
    "keyturn_workers/cli/test_reference.py": "docs/reference/cli.md is the help of all commands",
    "keyturn_workers/keyring/test_reader_marks.py": "what the marks decide of a reader's reads",
    "keyturn_workers/status/test_no_secret.py": "every view, for what no report may hold",
    "keyturn_workers/storage/probe/test_documentation.py": "docs/operations/storage-servers.md",
}

_Definition = ast.FunctionDef | ast.AsyncFunctionDef
_ACTION = (
    ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.With, ast.AsyncWith,
    ast.Raise, ast.Await, ast.comprehension, ast.Match,
)  # fmt: skip


def _modules() -> set[str]:
    return {
        str(path.relative_to(root))
        for package, root in _PACKAGES.items()
        for path in (root / package).rglob("*.py")
        if path.name != "__init__.py"
    }


def _tests() -> set[str]:
    return {
        str(path.relative_to(_UNIT))
        for package in _PACKAGES
        for path in (_UNIT / package).rglob("test_*.py")
    }


def _test_of(module: str) -> str:
    path = Path(module)
    return str(path.with_name(f"test_{path.name}"))


def _acts(source: str) -> bool:
    """Whether a function of the module decides or does something."""
    return any(
        isinstance(node, _ACTION)
        for definition in ast.walk(ast.parse(source))
        if isinstance(definition, _Definition)
        for node in ast.walk(definition)
    )


@pytest.mark.slow
def test_each_module_has_its_test() -> None:
    untested = {module for module in _modules() if _test_of(module) not in _tests()}
    assert untested - DECLARATIONS.keys() == set()


def test_each_test_has_its_module_or_a_reason_for_its_name() -> None:
    unnamed = _tests() - {_test_of(module) for module in _modules()}
    assert unnamed - ACROSS_MODULES.keys() == set()


def test_no_exception_is_listed_without_need() -> None:
    """What has its test, or has gone, is not excused any more."""
    excused = DECLARATIONS.keys()
    assert excused - _modules() == set()
    assert {module for module in excused if _test_of(module) in _tests()} == set()
    assert ACROSS_MODULES.keys() - _tests() == set()
    assert ACROSS_MODULES.keys() & {_test_of(module) for module in _modules()} == set()


@pytest.mark.parametrize("module", sorted(DECLARATIONS))
def test_a_module_of_declarations_does_nothing(module: str) -> None:
    root = _PACKAGES[Path(module).parts[0]]
    assert not _acts((root / module).read_text())


@pytest.mark.parametrize(
    ("source", "acts"),
    [
        ("from typing import Final\nLIMIT: Final = 3", False),
        (
            "class P(Protocol):\n    def read(self) -> bytes:\n        '''Read.'''\n        ...",
            False,
        ),
        ("class D:\n    @property\n    def name(self):\n        return self.a.name", False),
        ("def f(x):\n    return x if x else 1", True),
        ("class C:\n    async def f(self):\n        await self.g()", True),
        ("def f(x):\n    raise ValueError(x)", True),
    ],
)
def test_what_counts_as_an_action(source: str, acts: bool) -> None:
    assert _acts(source) is acts


def test_no_two_test_modules_have_one_name() -> None:
    """Pytest names a module from the topmost package on: of two with one name, one would not run.

    So a folder of tests that has packages in it is a package itself.
    """
    tests = _ROOT / "tests"
    for package in tests.rglob("__init__.py"):
        for folder in package.parent.relative_to(tests).parents:
            assert (tests / folder / "__init__.py").is_file(), folder
