"""Names of a package that are imported at their first use (PEP 562).

Importing one module of a package then loads only that module and its dependencies.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_names(package: str, *modules: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package, for the names in its `__all__`.

    Args:
        package: The package's name.
        modules: The modules that have the names, in search order: each is imported unless an
            earlier one has the name.
    """
    namespace = vars(sys.modules[package])

    def find(name: str) -> Any:
        if name in namespace["__all__"]:
            for module in map(import_module, modules):
                if name in vars(module):
                    namespace[name] = getattr(module, name)
                    return namespace[name]
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        return sorted({*namespace, *namespace["__all__"]})

    return find, names
