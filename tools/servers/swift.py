"""OpenStack Swift with its S3 middleware on loopback, from Debian's packages: for `make doctor`.

One proxy, account, container and object server, one device, one replica, no cache. It shows how
another S3 server behaves (SPEC 10); Keyturn's tests do not use it.
"""

from __future__ import annotations

import getpass

from tools.servers.process import (
    ServerProcess,
    accepts_tcp,
    free_port,
    remove_scratch,
    run_program,
    scratch_folder,
)
from tools.servers.s3 import S3Server

PACKAGES = {f"swift-{name}-server": f"swift-{name}" for name in ("account", "container", "object")}
PACKAGES |= {"swift-proxy-server": "swift-proxy"}
_READY_TIMEOUT_S = 60.0
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

_SWIFT = """\
[swift-hash]
swift_hash_path_prefix = keyturn
swift_hash_path_suffix = keyturn
[storage-policy:0]
name = only
default = yes
"""

_COMMON = """\
[DEFAULT]
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
disable_fallocate = true
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
log_address = {folder}/log
"""

_STORE = """\
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""

_FILTERS = {
    "catch_errors": "",
    "proxy-logging": "use = egg:swift#proxy_logging",
    "cache": "use = egg:swift#memcache\nmemcache_servers = 127.0.0.1:1",
    "listing_formats": "",
    "bulk": "",
    "s3api": "use = egg:swift#s3api\nlocation = us-east-1",
    "tempauth": "use = egg:swift#tempauth\nuser_keyturn_{user} = {secret} .admin",
    "copy": "",
    "slo": "",
    "versioned_writes": "use = egg:swift#versioned_writes\nallow_object_versioning = true",
    "symlink": "",
}
_PROXY = f"""\
[pipeline:main]
pipeline = {" ".join(_FILTERS)} proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
"""


class Swift:
    """One throwaway Swift; its data is removed with it."""

    def __init__(self) -> None:
        self._folder = scratch_folder("swift")
        self._processes: list[ServerProcess] = []
        private = S3Server.private(free_port(), "swift")
        self._user = private.access_key_id.lower()
        self.server = S3Server(
            endpoint_url=private.endpoint_url,
            access_key_id=f"keyturn:{self._user}",
            secret_access_key=private.secret_access_key,
            region=private.region,
            kind=private.kind,
        )
        self._port = int(private.endpoint_url.rsplit(":", 1)[1])

    def start(self) -> S3Server:
        """Start the four servers, and wait until the proxy accepts connections.

        Raises:
            ServerError: one of them exited or was not ready in time.
        """
        (self._folder / "devices" / "one").mkdir(parents=True)
        (self._folder / "swift.conf").write_text(_SWIFT)
        for name in ("account", "container", "object"):
            port = free_port()
            self._make_ring(name, port)
            self._serve(name, port, _STORE.format(name=name))
        filters = "".join(
            f"[filter:{name}]\n{settings or f'use = egg:swift#{name}'}\n"
            for name, settings in _FILTERS.items()
        )
        secret = self.server.secret_access_key
        self._serve("proxy", self._port, _PROXY + filters.format(user=self._user, secret=secret))
        return self.server

    def close(self) -> None:
        """Kill them, the proxy first, and remove the scratch folder."""
        while self._processes:
            self._processes.pop().kill()
        remove_scratch(self._folder)

    def _make_ring(self, name: str, port: int) -> None:
        builder = str(self._folder / f"{name}.builder")
        device = f"r1z1-127.0.0.1:{port}/one"
        for command in (("create", "1", "1", "0"), ("add", device, "1"), ("rebalance",)):
            program = "swift-ring-builder"
            run_program(program, [program, builder, *command], _ENVIRONMENT)

    def _serve(self, name: str, port: int, rest: str) -> None:
        config = self._folder / f"{name}.conf"
        config.touch(mode=0o600)
        config.write_text(
            _COMMON.format(folder=self._folder, port=port, user=getpass.getuser()) + rest
        )
        process = ServerProcess(
            [f"swift-{name}-server", str(config), "-v"],
            env={**_ENVIRONMENT, "HOME": str(self._folder)},
            scratch=self._folder,
            log=self._folder / f"{name}.out",
            grace_s=0,
        )
        self._processes.append(process)
        process.wait_until(
            lambda: accepts_tcp(port), what=f"swift-{name}-server", timeout_s=_READY_TIMEOUT_S
        )
