"""Every object of the shared known answers, put into a bucket and read over HTTP.

The gateway has the vectors' own master keys, API key and pepper, and their own keyring.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.identifiers import keyring_s3_key, object_s3_key

if TYPE_CHECKING:
    from tests.integration.gateway.scene import Scene

_FILE = Path(__file__).parents[3] / ".." / "shared" / "vectors" / "keyturn_v1.json"
_MISSING = not _FILE.is_file()
_VECTORS: dict[str, Any] = {} if _MISSING else json.loads(_FILE.read_text())
pytestmark = [
    pytest.mark.servers,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(_MISSING, reason="the shared known answers are not next to the project"),
]
_KEYS: dict[str, Any] = _VECTORS.get("keys", {})
_MASTERS = {name: base64.b64decode(key) for name, key in _KEYS.get("master_keys", {}).items()}

DEPLOYMENT: dict[str, Any] = (
    {}
    if _MISSING
    else {
        "master_key": _MASTERS["m1"],
        "more_master_keys": {name: key for name, key in _MASTERS.items() if name != "m1"},
        "api_key": _KEYS["api_key"],
        "pepper": _KEYS["pepper"],
    }
)
GATEWAY_ENV = {"KEYRING_CACHE_S": "0"}


def _keyring(scene: Scene, vector: dict[str, Any]) -> str:
    """Put the keyring that this object is read by; gives its API key."""
    project, key = vector["project"], vector["key"]
    if vector["name"] == "both keys turned":
        scene.bucket.put_keyring(project, _KEYS["api_key"], _KEYS["new_api_key"])
        return str(_KEYS["new_api_key"])
    if project == _KEYS["project"] and not key.startswith("old/"):
        # As the vectors have it, made by an independent implementation.
        record = json.dumps(_VECTORS["keyring"]["record"]).encode()
        scene.bucket.put(keyring_s3_key(project), record, {})
    else:
        scene.bucket.put_keyring(project, _KEYS["api_key"])
    return str(_KEYS["api_key"])


@pytest.mark.parametrize("vector", _VECTORS.get("objects", []), ids=lambda vector: vector["name"])
async def test_object(scene: Scene, vector: dict[str, Any]) -> None:
    """Each one gives its plaintext, whole and in part, or its code."""
    project, key = vector["project"], vector["key"]
    api_key = _keyring(scene, vector)
    body = base64.b64decode(vector["body"])
    scene.bucket.put(object_s3_key(project, key), body, vector["metadata"])
    got = await scene.client.request(project, key, token=api_key)
    is_v0 = vector["metadata"]["enc-algo"] == "AES-256-GCM"
    if is_v0 or vector["expect"] != "valid":
        code = "unknown_algorithm" if is_v0 else vector["expect"].split(" ")[0]
        assert (got.status, got.code) == (502, code)
        return
    assert (got.status, got.end, len(got.body)) == (200, "clean", vector["size"])
    assert hashlib.sha256(got.body).hexdigest() == vector["sha256"]
    head = await scene.client.request(project, key, method="HEAD", token=api_key)
    assert head.headers["content-length"] == str(vector["size"])
    size = vector["size"]
    if size:
        headers = {"Range": f"bytes={size // 2}-"}
        part = await scene.client.request(project, key, headers, token=api_key)
        assert (part.status, part.body) == (206, got.body[size // 2 :])
