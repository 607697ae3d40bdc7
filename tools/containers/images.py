"""Builds the images of Dockerfile, and has those that it and compose.yaml name: pulled, or made.

Where no registry answers, `mmdebstrap` makes the base image with this machine's apt, and the broker
is Debian's RabbitMQ on top of it, which reads the same variables as the official image. They are
tagged with the names that are missing, only in a private engine or for the time of the run. Such a
base reaches PyPI as this machine does, by the files and variables that pip and uv read;
`tools.servers.packages` does the same for Debian's packages.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml

from tools.containers.engine import CannotRunError, last_line
from tools.servers import packages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tools.containers.engine import Engine

_RELEASES: Final = {"13": "trixie"}
_PULL_TIMEOUT_S: Final = 120.0
# As Debian's own slim images.
_LEFT_OUT: Final = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
BROKER: Final = """\
FROM {base}
RUN apt-get update \\
 && apt-get install -y --no-install-recommends rabbitmq-server \\
 && rm -rf /var/lib/apt/lists/* \\
 && mkdir -p /etc/rabbitmq/conf.d \\
 && printf 'loopback_users = none\\nlog.console = true\\nlog.file = false\\n' \\
      >/etc/rabbitmq/conf.d/10-container.conf
USER rabbitmq
ENV PATH=/usr/lib/rabbitmq/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/var/lib/rabbitmq \\
    RUNNING_UNDER_SYSTEMD=1 RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+sbwt none"
CMD ["rabbitmq-server"]
"""
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

ROOT: Final = Path(__file__).parents[2]
IMAGE: Final = "keyturn"
STORAGE: Final = "keyturn-storage"
_BUILD_TIMEOUT_S: Final = 900.0
# What the build reads, and the deployment's file itself.
_SOURCES: Final = (
    *("Dockerfile", ".dockerignore", "compose.yaml", "pyproject.toml", "uv.lock"),
    *(".ci/uv.txt", "contracts", "workers", "tools", "deploy/compose"),
)


def copy_sources(target: Path) -> None:
    """Copy what the images are built from, as a fresh clone has it: no secret and no cache."""
    ignored = shutil.ignore_patterns("__pycache__", "node_modules", "*.env", "*.key", ".*_cache")
    for name in _SOURCES:
        source, copy = ROOT / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=ignored)
        else:
            shutil.copyfile(source, copy)


def broker_reference(compose: str) -> str:
    """The image of the service `broker`."""
    return str(yaml.safe_load(compose)["services"]["broker"]["image"])


class Images:
    """The images of one run.

    Attributes:
        made: Names of images made in place of what could not be pulled.
        built: Names of the images of Dockerfile that did not exist before.
    """

    def __init__(self, engine: Engine, project: Path, scratch: Path) -> None:
        self._engine = engine
        self._project = project
        self._scratch = scratch
        self.made: list[str] = []
        self.built: list[str] = []

    def provide(self) -> None:
        """Have the base image and the broker's, and build both targets.

        Raises:
            CannotRunError: an image is neither to be had nor to be made here.
            DockerError: the build failed.
        """
        base = self._base()
        with ThreadPoolExecutor(max_workers=3) as pool:
            builds = [
                pool.submit(self._build, "keyturn", IMAGE),
                pool.submit(self._build, "storage", STORAGE),
                pool.submit(self._broker, base),
            ]
            for build in builds:
                build.result()

    def remove(self) -> None:
        """Remove what was built and what was made; what was pulled or was there before stays."""
        for name in (*self.built, *self.made):
            self._engine.attempt("image", "rm", "--force", name)

    def _base(self) -> str:
        (base,) = base_references((self._project / "Dockerfile").read_text())
        reason = pull(self._engine, base)
        if reason is not None:
            print(f"{base}: made here, since it cannot be pulled ({reason})", flush=True)
            make_base(self._engine, base, self._scratch)
            self.made.append(base)
        return base

    def _broker(self, base: str) -> None:
        reference = broker_reference((self._project / "compose.yaml").read_text())
        # Where the base could not be pulled, no registry answers.
        reason = "no registry" if base in self.made else pull(self._engine, reference)
        if self._engine.has_image(reference):
            return
        if reason is not None:
            print(f"{reference}: Debian's RabbitMQ stands in ({reason})", flush=True)
            self._docker_build(reference, "-", stdin=BROKER.format(base=base))
            self.made.append(reference)

    def _build(self, target: str, name: str) -> None:
        # The name may be in use here: compose.yaml has it too.
        is_new = not self._engine.has_image(name)
        self._docker_build(name, "--target", target, str(self._project))
        if is_new:
            self.built.append(name)

    def _docker_build(self, name: str, *arguments: str, stdin: str | None = None) -> None:
        # A private engine has no bridge while images are built.
        network = ("--network", "host") if self._engine.is_private else ()
        proxies = [
            part for proxy in PROXIES if os.environ.get(proxy) for part in ("--build-arg", proxy)
        ]
        self._engine.run(
            *("build", "--quiet", *network, *proxies, "--tag", name, *arguments),
            timeout_s=_BUILD_TIMEOUT_S,
            stdin=stdin,
        )


def base_references(dockerfile: str) -> list[str]:
    """The images that a Dockerfile builds upon, other than its own stages."""
    lines = re.findall(r"^FROM +(\S+)(?: +AS +(\S+))?", dockerfile, re.MULTILINE)
    stages = {stage for _, stage in lines}
    return sorted({image for image, _ in lines if image not in stages})


def pull(engine: Engine, reference: str) -> str | None:
    """Have an image; returns why it cannot be pulled, or None if it is there."""
    if engine.has_image(reference):
        return None
    done = engine.attempt("pull", "--quiet", reference, timeout_s=_PULL_TIMEOUT_S)
    return None if done.returncode == 0 else last_line(done.stderr)


def make_base(engine: Engine, reference: str, folder: Path) -> None:
    """Make the base image from Debian's packages.

    Raises:
        CannotRunError: this machine cannot; the reason is one line.
    """
    name, _, tag = reference.partition(":")
    release = _RELEASES.get(tag.partition("-")[0])
    if name != "debian" or release is None:
        raise CannotRunError(f"{reference} cannot be made here")
    if os.geteuid() != 0:
        raise CannotRunError(f"{reference} can be made only by root")
    try:
        packages.ensure({"mmdebstrap": "mmdebstrap"})
    except packages.MissingPackagesError as exc:
        raise CannotRunError(f"{reference} cannot be made: {last_line(str(exc))}") from exc
    tar = folder / "base.tar"
    _debootstrap(release, tar, folder)
    environment = image_environment(os.environ, with_cas=ca_bundle(os.environ) is not None)
    changes = [f"ENV {key}={json.dumps(value)}" for key, value in environment.items()]
    engine.run(
        *("import", *(part for change in changes for part in ("--change", change))),
        *("--change", 'CMD ["bash"]', str(tar), reference),
        timeout_s=_BUILD_TIMEOUT_S,
    )
    tar.unlink()


def _debootstrap(release: str, tar: Path, folder: Path) -> None:
    sources = packages.apt_sources(release)
    if not sources:
        raise CannotRunError(f"apt knows no archive of Debian {release} here")
    options = folder / "apt.conf"
    options.write_text(packages.apt_options())
    command = [
        *("mmdebstrap", "--quiet", "--variant=minbase", "--format=tar", f"--aptopt={options}"),
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT),
        *_hooks(folder),
        *(release, str(tar), *(str(source) for source in sources)),
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_BUILD_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise CannotRunError(f"no base image: mmdebstrap failed: {last_line(done.stderr)}")


def _hooks(folder: Path) -> Iterator[str]:
    """What puts this machine's certificates and indexes of Python packages into the image."""
    for name, text in (
        ("pip.conf", pip_config(pip_files(os.environ), os.environ)),
        ("uv.toml", uv_config()),
    ):
        (folder / name).write_text(text)
    yield f"--customize-hook=upload {folder}/pip.conf /etc/pip.conf"
    yield '--customize-hook=mkdir -p "$1/etc/uv" "$1/etc/ssl/certs"'
    yield f"--customize-hook=upload {folder}/uv.toml /etc/uv/uv.toml"
    if (bundle := ca_bundle(os.environ)) is not None:
        yield f"--customize-hook=upload {bundle} {CA_BUNDLE}"
    cas = sorted(LOCAL_CAS.glob("*.crt")) if LOCAL_CAS.is_dir() else []
    if cas:
        yield f'--customize-hook=mkdir -p "$1{LOCAL_CAS}"'
    for certificate in cas:
        yield f"--customize-hook=upload {certificate} {LOCAL_CAS}/{certificate.name}"


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
