"""examples/open_by_spec.py opens what is stored, and imports nothing of Keyturn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import BODY_CONTEXT, new_api_key, new_dek, seal, to_base64, user_kek, wrap_dek
from keyturn.metadata import COBBLESTONE

if TYPE_CHECKING:
    from collections.abc import Callable

_SCRIPT = Path(__file__).parents[2] / "examples" / "open_by_spec.py"
_ALONE = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("keyturn", "keyturn_workers"):
            raise ModuleNotFoundError(f"barred: {name}", name=name)

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
_PROJECT, _KEY, _PEPPER = "acme", "reports/größe.pdf", "hot"
_CHUNK = 16384


def _open(
    folder: Path, body: bytes, dek: bytes, api_key: str
) -> subprocess.CompletedProcess[bytes]:
    wrap = wrap_dek(
        user_kek(api_key, _PROJECT, _PEPPER),
        "user",
        algorithm=COBBLESTONE,
        project=_PROJECT,
        object_key=_KEY,
        generation=3,
        dek=dek,
    )
    names = {"enc-algo": COBBLESTONE, "enc-kek-user": "3:0", "enc-dek-user": to_base64(wrap)}
    (folder / "link.json").write_text(json.dumps({"url": "", "metadata": names}))
    (folder / "body").write_bytes(body)
    arguments = [_PROJECT, _KEY, str(folder / "link.json"), str(folder / "body")]
    return subprocess.run(
        [sys.executable, "-c", _ALONE, str(_SCRIPT), *arguments],
        env={"PATH": os.environ["PATH"], "KEYTURN_API_KEY": _API_KEY, "KEYTURN_PEPPER": _PEPPER},
        capture_output=True,
        check=False,
    )


_API_KEY = new_api_key()


@pytest.mark.parametrize("size", [0, 5, _CHUNK - 1, _CHUNK, _CHUNK + 1, 3 * 2**20 + 7])
def test_it_opens_what_is_stored(tmp_path: Path, size: int) -> None:
    plaintext, dek = os.urandom(size), new_dek()
    done = _open(tmp_path, seal(dek, BODY_CONTEXT, plaintext), dek, _API_KEY)
    assert (done.returncode, done.stdout, done.stderr) == (0, plaintext, b"")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda body: body[:-1], id="one byte less"),
        pytest.param(lambda body: body[: -(16 + 1)], id="without its last chunk"),
        pytest.param(lambda body: body + b"\0", id="one byte more"),
        pytest.param(lambda body: body[:100] + b"\0" + body[101:], id="changed"),
        pytest.param(lambda body: bytes(len(body)), id="another body"),
    ],
)
def test_it_fails_on_a_body_that_is_not_whole(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    dek = new_dek()
    body = seal(dek, BODY_CONTEXT, b"x" * (2 * _CHUNK + 1))
    assert _open(tmp_path, damage(body), dek, _API_KEY).returncode == 1


def test_it_fails_with_another_key(tmp_path: Path) -> None:
    dek = new_dek()
    done = _open(tmp_path, seal(dek, BODY_CONTEXT, b"x"), dek, new_api_key())
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"this key does not open the object\n"


def test_it_is_short() -> None:
    lines = _SCRIPT.read_text().partition("def opened")[2].splitlines()
    assert len([line for line in lines if line.strip()]) <= 30
