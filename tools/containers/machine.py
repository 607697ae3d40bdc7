"""How this machine reaches PyPI, for a base image that is made here.

Taken from the files and variables that pip and uv read; `tools.servers.apt` does the same for
Debian's packages. An image that is pulled needs none of this: it reaches the network as its author
expects.
"""

from __future__ import annotations

import configparser
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CA_BUNDLE: Final = Path("/etc/ssl/certs/ca-certificates.crt")
LOCAL_CAS: Final = Path("/usr/local/share/ca-certificates")
_PIP_FILES: Final = ("/etc/xdg/pip/pip.conf", "/etc/pip.conf", "~/.pip/pip.conf")
_PIP_USER_FILES: Final = ("~/.config/pip/pip.conf",)
# With the underscores of its variables: pip reads them in files, too, in place of hyphens.
_PIP_OPTIONS: Final = ("index_url", "extra_index_url", "trusted_host", "proxy", "timeout")
_UV_FILES: Final = ("/etc/uv/uv.toml", "~/.config/uv/uv.toml")
_UV_NAMES: Final = (
    *("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_INSECURE_HOST"),
    *("UV_NATIVE_TLS", "UV_SYSTEM_CERTS", "UV_HTTP_TIMEOUT"),
)
PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


def pip_config(files: Iterable[Path], environ: Mapping[str, str]) -> str:
    """How pip reaches its index, as one `pip.conf`; later files and the environment win."""
    options: dict[str, str] = {}
    for file in files:
        parser = configparser.RawConfigParser(strict=False)
        parser.read(file, encoding="utf-8")
        for section in ("global", "install"):
            if parser.has_section(section):
                items = {n.replace("-", "_"): v for n, v in parser.items(section)}
                options |= {n: v for n, v in items.items() if n in _PIP_OPTIONS}
    for name in _PIP_OPTIONS:
        if value := environ.get(f"PIP_{name.upper()}"):
            options[name] = value
    lines = [f"{name} = {value}" for name, value in sorted(options.items())]
    return "\n".join(["[global]", *lines, ""])


def pip_files(environ: Mapping[str, str]) -> list[Path]:
    """Where pip reads its configuration, what wins last."""
    named = environ.get("PIP_CONFIG_FILE")
    names = [*_PIP_FILES, *_PIP_USER_FILES, *([named] if named else [])]
    return [path for name in names if (path := Path(name).expanduser()).is_file()]


def uv_config() -> str:
    """The content of uv's configuration, the user's before the machine's; or nothing."""
    paths = [Path(name).expanduser() for name in _UV_FILES]
    texts = [path.read_text(encoding="utf-8") for path in paths if path.is_file()]
    return texts[-1] if texts else ""


def ca_bundle(environ: Mapping[str, str]) -> Path | None:
    """The certificates that this machine trusts, if it has any."""
    for path in (Path(environ.get("SSL_CERT_FILE", "")), CA_BUNDLE):
        if path.is_file():
            return path
    return None


def image_environment(environ: Mapping[str, str], *, with_cas: bool) -> dict[str, str]:
    """The variables that a base image made here needs while it is built upon."""
    found = {name: environ[name] for name in _UV_NAMES if environ.get(name)}
    if with_cas:
        found |= {"SSL_CERT_FILE": str(CA_BUNDLE), "PIP_CERT": str(CA_BUNDLE)}
    return found


def process_environment() -> Mapping[str, str]:
    """This process's own."""
    return os.environ
