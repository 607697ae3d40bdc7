"""Renders a kustomization with kubectl, from Debian's package; no cluster is needed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import yaml

from tools.manifests.documents import Document, Manifests
from tools.servers import packages

KUBERNETES: Final = Path(__file__).parents[2] / "deploy" / "kubernetes"
PACKAGE: Final = "kubectl"


class RenderError(Exception):
    """kubectl refused the kustomization; the text is what it printed."""


def kubectl(*arguments: str, stdin: str = "") -> str:
    """Run kubectl with no cluster; return its output.

    Raises:
        RenderError: it failed.
        MissingPackagesError: it cannot be installed here.
    """
    done = subprocess.run(
        [packages.path_of("kubectl", PACKAGE), *arguments],
        # No settings of the user's: nothing of a cluster is read.
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "KUBECONFIG": "/dev/null"},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RenderError(done.stderr.strip())
    return done.stdout


def render(folder: Path) -> Manifests:
    """The manifests of a folder with a `kustomization.yaml`.

    Raises:
        RenderError: kubectl refused it.
        MissingPackagesError: kubectl cannot be installed here.
    """
    text = kubectl("kustomize", str(folder))
    documents: list[Document] = [one for one in yaml.safe_load_all(text) if one is not None]
    return Manifests(documents)
