"""Names of public packages are imported when they are first used."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

PACKAGES = (
    "keyturn",
    "keyturn.crypto",
    "keyturn.evidence",
    "keyturn.gateway",
    "keyturn.messages",
    "keyturn.open",
    "keyturn.publisher",
)


@pytest.mark.parametrize("package", PACKAGES)
def test_each_name_is_found_and_listed(package: str) -> None:
    module = import_module(package)
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("package", PACKAGES)
def test_another_name_is_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Nothing'"):
        import_module(package).Nothing  # noqa: B018 - what raises


def test_a_module_does_not_load_its_whole_package() -> None:
    code = (
        "import sys, keyturn.messages.fields\n"
        "assert 'keyturn.messages.events' not in sys.modules\n"
        "from keyturn.messages import UploadRejected\n"
        "assert UploadRejected.__module__ == 'keyturn.messages.events'\n"
        "assert 'keyturn.messages.codec' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
