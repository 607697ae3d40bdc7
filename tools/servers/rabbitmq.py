"""A private RabbitMQ node on loopback, from Debian's package, with its data in a scratch folder.

The broker of tests, demo and bench (SPEC 6): real quorum queues and streams. It calls the
package's inner script, because the one in PATH switches to the system's user and settings. It
never touches the system's broker: it has its own node name, ports, cookie and epmd.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from keyturn.topology import DEAD_POLICIES
from tools.servers.process import (
    ServerProcess,
    accepts_tcp,
    free_port,
    remove_scratch,
    run_program,
    scratch_folder,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tools.servers.certificates import Certificate

SCRIPT = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_USER = "keyturn"
_CTL = SCRIPT.with_name("rabbitmqctl")
_GRACE_S = 20.0
_READY_TIMEOUT_S = 90.0
# Each vhost costs the node about 20 ms at each start, so a few are created at a time.
_VHOST_BATCH = 24

_METRICS_CONFIG = """\
prometheus.tcp.ip = 127.0.0.1
prometheus.tcp.port = {port}
"""

# What leaves a retry queue while the node boots may find its target not there yet, and leaves again
# only after this time, by default 180 s.
_LEAVE_AGAIN_MS = 3000

# Queues and streams that nothing uses do housekeeping every 5 s, and hundreds of them stay behind.
# Of what can be read, only the numbers of the metrics come from it.
_RENEW_S = 60
METRICS_RENEW_S = 1
"""How often a node with metrics renews the numbers of its queues."""
_ADVANCED = """\
[{{rabbit, [
  {{dead_letter_worker_publisher_confirm_timeout, {leave_again_ms}}},
  {{quorum_tick_interval, {ms}}},
  {{stream_tick_interval, {ms}}},
  {{collect_statistics_interval, {ms}}}
]}}].
"""

_MEMORY_LIMIT = "4GB"

_CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{port}
default_user = {user}
default_pass = {password}
disk_free_limit.absolute = 50MB
vm_memory_high_watermark.absolute = {memory}
log.console = true
log.console.level = warning
log.file = false
"""
# Beside the plain listener. Clients without a certificate of the same authority are refused.
_TLS_CONFIG = """\
listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.cacertfile = {tls.ca}
ssl_options.certfile = {tls.certificate}
ssl_options.keyfile = {tls.key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
"""


def definitions(user: str, vhosts: list[str]) -> dict[str, object]:
    """Definitions of vhosts with all permissions for a user, and bounds of the dead letters."""
    return {
        "vhosts": [{"name": vhost} for vhost in vhosts],
        "permissions": [
            {"user": user, "vhost": vhost, "configure": ".*", "write": ".*", "read": ".*"}
            for vhost in vhosts
        ],
        "policies": [
            {
                "vhost": vhost,
                "name": policy.name,
                "pattern": policy.pattern,
                "apply-to": "quorum_queues",
                "definition": dict(policy.definition),
                "priority": 0,
            }
            for vhost in vhosts
            for policy in DEAD_POLICIES
        ],
    }


def password_hash(password: str) -> str:
    """A password as definitions hold it: salted SHA-256, RabbitMQ's default."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


class RabbitMQ:
    """One throwaway node.

    Args:
        tls: With it, the node also listens for TLS, and requires client certificates.
        metrics: Whether its plugin for Prometheus serves on `metrics_port`.
    """

    def __init__(self, tls: Certificate | None = None, *, metrics: bool = False) -> None:
        self._tls = tls
        self._tls_port = free_port()
        self._folder = scratch_folder("rabbitmq")
        self._metrics_port = free_port() if metrics else None
        self._port = free_port()
        self._dist_port = free_port()
        self._epmd_port = free_port()
        self._node = f"keyturn{self._port}@localhost"
        self._password = secrets.token_hex(16)
        self._spare: list[str] = []
        self._vhosts_made = 0
        self._starts = 0
        self._process: ServerProcess | None = None
        self._write_files()

    @property
    def url(self) -> str:
        """AMQP URL of the default vhost, including the password."""
        return self._vhost_url("/")

    @property
    def metrics_port(self) -> int:
        """The port of `/metrics` and `/metrics/detailed`.

        Raises:
            RuntimeError: it has none.
        """
        if self._metrics_port is None:
            raise RuntimeError("the node has no metrics")
        return self._metrics_port

    @property
    def tls_url(self) -> str:
        """The same for TLS."""
        return f"amqps://{_USER}:{self._password}@localhost:{self._tls_port}/%2F"

    @property
    def data_folder(self) -> Path:
        """The node's data folder, to be read while it is not running."""
        return self._folder / "data"

    @property
    def process(self) -> ServerProcess:
        """The running node.

        Raises:
            RuntimeError: it is not running.
        """
        if self._process is None:
            raise RuntimeError("RabbitMQ is not running")
        return self._process

    def start(self) -> str:
        """Start the node with its present data, wait until it serves, and return its URL.

        Raises:
            ServerError: it exited or did not serve in time.
        """
        self._starts += 1
        self._process = ServerProcess(
            [str(SCRIPT)],
            env=self._environment(),
            scratch=self._folder,
            log=self._folder / f"output-{self._starts}.log",
            grace_s=_GRACE_S,
        )
        self._process.wait_until(self._serves, what="RabbitMQ", timeout_s=_READY_TIMEOUT_S)
        return self.url

    def next_vhost_url(self) -> str:
        """URL of an unused vhost.

        Raises:
            ServerError: the node did not create new vhosts.
        """
        if not self._spare:
            first = self._vhosts_made + 1
            self._spare = [f"t{number:03}" for number in range(first, first + _VHOST_BATCH)]
            self._vhosts_made += _VHOST_BATCH
            self.import_definitions(definitions(_USER, self._spare))
        return self._vhost_url(self._spare.pop(0))

    def restart(self) -> None:
        """Stop the node gracefully and start it again with the same data and port."""
        self.process.end()
        self.start()

    def kill(self) -> None:
        """Kill the node with SIGKILL; `start` restarts it with the same data.

        RabbitMQ writes the name of a new quorum queue to disk only every half second, and a queue
        whose node is killed before that hangs forever: see `wait_until_registered`.
        """
        self.process.kill()
        self._process = None

    def wait_until_registered(self, queue: str) -> None:
        """Wait until a new quorum queue of the default vhost would survive `kill`.

        Raises:
            ServerError: its name is not written to disk.
        """
        names = self._folder / "data" / self._node / "quorum" / self._node / "names.dets"
        self.process.wait_until(
            lambda: f"%2F_{queue}".encode() in names.read_bytes(),
            what=f"the registration of {queue}",
        )

    def wait_until_streams_registered(self) -> None:
        """Wait until new streams would survive `kill`: until their coordinator is on disk.

        A node that is killed before that never recovers any of its streams.

        Raises:
            ServerError: its name is not written to disk.
        """
        names = self._folder / "data" / self._node / "coordination" / self._node / "names.dets"
        self.process.wait_until(
            lambda: names.exists() and b"rabbit_stream_coordinator" in names.read_bytes(),
            what="the registration of the coordinator of streams",
        )

    def disk_bytes(self, part: str) -> int:
        """Disk usage of one part of the data, `quorum` or `stream`, in bytes."""
        folder = self._folder / "data" / self._node / part
        # Counted in blocks, because RabbitMQ preallocates files.
        return sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())

    def set_memory_alarm(self, *, on: bool) -> None:
        """Let the node be at its memory alarm, in which it reads nothing more from publishers."""
        limit = "1" if on else _MEMORY_LIMIT
        self.control("set_vm_memory_high_watermark", "absolute", limit)

    def read_certificates_again(self) -> None:
        """Let new connections get what the certificate's files hold now."""
        self.control("--silent", "eval", "ssl:clear_pem_cache().")

    def stop(self) -> None:
        """Stop the node and remove its data; does nothing if it never ran."""
        if self._process is not None:
            # The data is removed too, so a graceful shutdown would save nothing.
            self._process.kill()
            self._process = None
        remove_scratch(self._folder)

    def add_user(
        self, name: str, vhost_url: str, permissions: Mapping[str, str], topics: Mapping[str, str]
    ) -> str:
        """Add a user of one vhost, and return its URL there.

        Args:
            name: The user; one that exists already gets another password.
            vhost_url: A URL of the vhost.
            permissions: Patterns by `configure`, `write` and `read`.
            topics: The same by `write` and `read`, for the exchange `keyturn`.

        Raises:
            ServerError: the node refused the definitions.
        """
        parts = urlsplit(vhost_url)
        vhost, password = unquote(parts.path[1:]), secrets.token_hex(16)
        of = {"user": name, "vhost": vhost}
        self.import_definitions(
            {
                "users": [{"name": name, "password_hash": password_hash(password), "tags": []}],
                "permissions": [{**of, **permissions}],
                "topic_permissions": [{**of, "exchange": "keyturn", **topics}],
            }
        )
        return parts._replace(netloc=f"{name}:{password}@127.0.0.1:{self._port}").geturl()

    def _vhost_url(self, vhost: str) -> str:
        path = "%2F" if vhost == "/" else vhost
        return f"amqp://{_USER}:{self._password}@127.0.0.1:{self._port}/{path}"

    def import_definitions(self, made: Mapping[str, object]) -> None:
        """Import definitions into the running node; each call of `rabbitmqctl` takes 1 to 2 s.

        Raises:
            ServerError: the node refused them.
        """
        self.process  # noqa: B018 - a clear error if the node is not running
        path = self._folder / "more.json"
        path.write_text(json.dumps(made))
        self.control("--silent", "import_definitions", str(path))

    def control(self, *arguments: str) -> str:
        """Run `rabbitmqctl` on the node, and return its output.

        Raises:
            ServerError: it failed.
        """
        command = [str(_CTL), *arguments]
        return run_program(f"rabbitmqctl {arguments[0]}", command, self._environment())

    def _write_files(self) -> None:
        config = _CONFIG.format(
            port=self._port, user=_USER, password=self._password, memory=_MEMORY_LIMIT
        )
        if self._tls is not None:
            config += _TLS_CONFIG.format(port=self._tls_port, tls=self._tls)
        plugins, renew_s = "", _RENEW_S
        if self._metrics_port is not None:
            config += _METRICS_CONFIG.format(port=self._metrics_port)
            plugins, renew_s = "rabbitmq_prometheus", METRICS_RENEW_S
        (self._folder / "rabbitmq.conf").write_text(config)
        (self._folder / "advanced.config").write_text(
            _ADVANCED.format(leave_again_ms=_LEAVE_AGAIN_MS, ms=renew_s * 1000)
        )
        (self._folder / "enabled_plugins").write_text(f"[{plugins}].\n")
        (self._folder / "home").mkdir()

    def _environment(self) -> dict[str, str]:
        folder = self._folder
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(folder / "home"),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            # The script then execs Erlang itself, which shuts down gracefully on SIGTERM.
            "RUNNING_UNDER_SYSTEMD": "1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none"
            ),
            "RABBITMQ_CTL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
        }

    def _serves(self) -> bool:
        """Whether the node has booted completely and answers the AMQP handshake.

        Its port opens a little earlier, and a SIGTERM in between makes it crash. Many warnings may
        follow the line that says so.
        """
        if not self.process.has_logged("completed with") or not accepts_tcp(self._port):
            return False
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=2) as probe:
                probe.sendall(b"AMQP\x00\x00\x09\x01")
                return len(probe.recv(8)) == 8
        except OSError:
            return False
