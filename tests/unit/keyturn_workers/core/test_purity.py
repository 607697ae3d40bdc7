"""The core loads no client of a broker or a storage, and what plans loads `cryptography` alone."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest

from keyturn_workers import core

_LOADED = """
import importlib, json, sys
importlib.import_module("keyturn_workers.core." + sys.argv[1])
installed = {
    name.partition(".")[0]
    for name, module in sys.modules.items()
    if "site-packages" in (getattr(module, "__file__", None) or "")
}
print(json.dumps(sorted(installed)))
"""
_CRYPTOGRAPHY = {"cryptography", "_cffi_backend"}
_PYDANTIC = {
    "annotated_types",
    "pydantic",
    "pydantic_core",
    "typing_extensions",
    "typing_inspection",
}
_SETTINGS = {"dotenv", "pydantic_settings"}
_MORE = {
    "authorization": _PYDANTIC | _SETTINGS | {"orjson"},
    "customer_key_stores": _PYDANTIC | _SETTINGS,
    "grants": _PYDANTIC | _SETTINGS,
    "keyring_requests": _PYDANTIC,
    "master_key_usage": _PYDANTIC,
    "named_settings": _PYDANTIC | _SETTINGS,
    "sealed_secrets": _PYDANTIC,
    "source_mapping": _PYDANTIC | _SETTINGS,
    "sweep_progress": _PYDANTIC,
    "sweep_proof": _PYDANTIC,
    "sweep_record": _PYDANTIC,
    "sweep_transitions": _PYDANTIC,
    "vault_access": _PYDANTIC,
}
"""What a module may load beside `cryptography`."""


@pytest.mark.parametrize("module", [each.name for each in pkgutil.iter_modules(core.__path__)])
def test_it_loads_nothing_that_does_io(module: str) -> None:
    command = [sys.executable, "-c", _LOADED, module]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) <= _CRYPTOGRAPHY | _MORE.get(module, set())
