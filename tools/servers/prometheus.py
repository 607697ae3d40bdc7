"""A private Prometheus on loopback, from Debian's package, and its checker `promtool`.

It runs the rules and the dashboards' queries of `deploy/` on what real processes export. It has its
own port, configuration and data, and never touches the system's Prometheus.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import httpx2

from tools.servers import packages
from tools.servers.process import PrivateServer, ServerError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PACKAGE: Final = "prometheus"
_CALL_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class Series:
    """One series of a query's result: its labels, and its values by time (seconds)."""

    labels: dict[str, str]
    values: dict[float, float]


class Prometheus(PrivateServer):
    """One throwaway server. A context manager: it runs during the block.

    Args:
        configuration: As in `prometheus.yml`, with absolute paths.

    Raises:
        packages.MissingPackagesError: the package is missing and cannot be installed.
    """

    def __init__(self, configuration: Mapping[str, object]) -> None:
        self._program = packages.path_of("prometheus", _PACKAGE)
        super().__init__("prometheus")
        # JSON is YAML.
        (self._folder / "prometheus.yml").write_text(json.dumps(configuration))

    def start(self) -> None:
        """Start it, and wait until it answers queries.

        Raises:
            ServerError: it exited, or was not ready in time.
        """
        self._launch(
            "Prometheus",
            [
                str(self._program),
                f"--config.file={self._folder}/prometheus.yml",
                f"--storage.tsdb.path={self._folder}/data",
                f"--web.listen-address=127.0.0.1:{self._port}",
                "--log.level=warn",
            ],
            {"PATH": os.defpath, "HOME": str(self._folder)},
            self._is_ready,
        )

    def query(self, expr: str) -> list[Series]:
        """The present result of an expression that gives a vector.

        Raises:
            ServerError: the expression is wrong.
        """
        result = self.get("query", query=expr)["result"]
        return [_series(each["metric"], [each["value"]]) for each in result]

    def query_range(self, expr: str, start_s: float, end_s: float, step_s: float) -> list[Series]:
        """The results of an expression at all steps between two times.

        Raises:
            ServerError: the expression is wrong.
        """
        span = {"start": str(start_s), "end": str(end_s), "step": str(step_s)}
        result = self.get("query_range", query=expr, **span)["result"]
        return [_series(each["metric"], each["values"]) for each in result]

    def rules(self) -> list[dict[str, Any]]:
        """All rules that it evaluates, each with its `health`, and `state` if it is an alert."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def label_values(self, label: str, selector: str = "") -> set[str]:
        """The values of a label, of all series or of those that a selector matches."""
        matched = {"match[]": selector} if selector else {}
        return set(self.get(f"label/{label}/values", **matched))

    def get(self, path: str, **parameters: str) -> Any:
        """The data of a response of the HTTP API.

        Raises:
            ServerError: the response is an error.
        """
        status, body = self._request(f"/api/v1/{path}?{urlencode(parameters)}")
        try:
            answer = json.loads(body)
        except ValueError:
            answer = {}
        if answer.get("status") != "success":
            raise ServerError(f"Prometheus answered {status} to {path} {parameters}: {body!r}")
        return answer["data"]

    def _request(self, target: str) -> tuple[int, bytes]:
        url = f"http://127.0.0.1:{self._port}{target}"
        answer = httpx2.get(url, timeout=_CALL_TIMEOUT_S, trust_env=False)
        return answer.status_code, answer.content

    def _is_ready(self) -> bool:
        try:
            return self._request("/-/ready")[0] == 200
        except httpx2.TransportError:
            return False


def promtool(*arguments: str, folder: Path) -> tuple[int, str]:
    """Run `promtool` in a folder: its exit status, and all that it printed.

    Raises:
        packages.MissingPackagesError: the package is missing and cannot be installed.
    """
    done = subprocess.run(
        [str(packages.path_of("promtool", _PACKAGE)), *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout


def _series(labels: dict[str, str], values: list[tuple[float, str]]) -> Series:
    return Series(labels, {at: float(value) for at, value in values})
