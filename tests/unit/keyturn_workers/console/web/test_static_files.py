"""The shell of the pages (SPEC 16.2, 16.3), through the whole application or by itself."""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files

import pytest

from keyturn_workers.console.web.static_files import StaticFiles
from tools.harness.console_data import empty_model
from tools.harness.console_preview import client, preview_app

_VENDOR = files("keyturn_workers.console.web") / "static/vendor"
_ROW = re.compile(r"^\| `(\S+\.js)` .* `([0-9a-f]{64})` \|$", re.MULTILINE)


def test_scripts_of_others_are_what_their_readme_names() -> None:
    named = dict(_ROW.findall((_VENDOR / "README.md").read_text()))
    held = {
        entry.name: hashlib.sha256(entry.read_bytes()).hexdigest()
        for entry in _VENDOR.iterdir()
        if entry.name != "README.md"
    }
    assert held == named
    assert len(held) == 2


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("console.css", "text/css; charset=utf-8"),
        ("console.js", "text/javascript; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
        ("vendor/htmx-4.0.1.min.js", "text/javascript; charset=utf-8"),
    ],
)
def test_a_file_is_cached_for_ever_under_its_versioned_address(name: str, media_type: str) -> None:
    answer = client(preview_app(empty_model(), signed_out=True)).get(StaticFiles().url(name))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == media_type
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"


def test_another_version_is_not_cached_for_ever() -> None:
    answer = client(preview_app(empty_model())).get("/static/console.css?v=0")
    assert answer.headers["cache-control"] == "no-cache"
    again = client(preview_app(empty_model())).get(
        "/static/console.css", headers={"if-none-match": answer.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["none.css", "vendor/README.md", "../templates/base.html", "%2e%2e/app.py", ""]
)
def test_nothing_else_is_served(path: str) -> None:
    assert client(preview_app(empty_model())).get(f"/static/{path}").status_code == 404
