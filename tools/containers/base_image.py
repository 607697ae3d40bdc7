"""The images that Dockerfile and compose.yaml name: found, pulled, or made from Debian's packages.

Where no registry answers, `mmdebstrap` makes the base image with this machine's apt, and the broker
is Debian's RabbitMQ on top of it, which reads the same variables as the official image. They are
tagged with the names that are missing, only in a private engine or for the time of the run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING, Final

from tools.containers import machine
from tools.containers.engine import CannotRunError, Engine, last_line
from tools.servers import apt, packages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_RELEASES: Final = {"13": "trixie"}
_PULL_TIMEOUT_S: Final = 120.0
_BUILD_TIMEOUT_S: Final = 600.0
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
    environment = machine.image_environment(
        os.environ, with_cas=machine.ca_bundle(os.environ) is not None
    )
    changes = [f"ENV {key}={json.dumps(value)}" for key, value in environment.items()]
    engine.run(
        *("import", *(part for change in changes for part in ("--change", change))),
        *("--change", 'CMD ["bash"]', str(tar), reference),
        timeout_s=_BUILD_TIMEOUT_S,
    )
    tar.unlink()


def _debootstrap(release: str, tar: Path, folder: Path) -> None:
    sources = apt.apt_sources(release)
    if not sources:
        raise CannotRunError(f"apt knows no archive of Debian {release} here")
    options = folder / "apt.conf"
    options.write_text(apt.apt_options())
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
        ("pip.conf", machine.pip_config(machine.pip_files(os.environ), os.environ)),
        ("uv.toml", machine.uv_config()),
    ):
        (folder / name).write_text(text)
    yield f"--customize-hook=upload {folder}/pip.conf /etc/pip.conf"
    yield '--customize-hook=mkdir -p "$1/etc/uv" "$1/etc/ssl/certs"'
    yield f"--customize-hook=upload {folder}/uv.toml /etc/uv/uv.toml"
    if (bundle := machine.ca_bundle(os.environ)) is not None:
        yield f"--customize-hook=upload {bundle} {machine.CA_BUNDLE}"
    cas = sorted(machine.LOCAL_CAS.glob("*.crt")) if machine.LOCAL_CAS.is_dir() else []
    if cas:
        yield f'--customize-hook=mkdir -p "$1{machine.LOCAL_CAS}"'
    for certificate in cas:
        yield f"--customize-hook=upload {certificate} {machine.LOCAL_CAS}/{certificate.name}"
