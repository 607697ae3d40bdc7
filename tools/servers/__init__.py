"""Private servers for tests, demo and bench: a broker, S3 servers, keepers of keys, Prometheus.

They listen on loopback only, keep all data in a scratch folder, and end with the process that
started them, even if that is killed. Nothing here touches a server that it did not start.

| modules | what they hold |
| --- | --- |
| `stack`, `__main__`, `development` | a broker and a storage, for tests and by hand |
| `rabbitmq` | the broker |
| `ceph`, `moto`, `seaweedfs`, `emulators`, `rclone`, `swift` | S3 servers; see also `s3` |
| `moto`, `openbao`, `softhsm` | keepers of keys |
| `oidc_provider`, `prometheus`, `chromium` | what consoles need around them |
| `moto_server`, `moto_kms_server` | moto's own processes |
| `process`, `reaper`, `certificates` | processes that end with their owner; certificates |
| `packages`, `other_release` | Debian packages |
"""

from tools.servers.ceph import CephRgw
from tools.servers.moto import MotoKms, MotoServer
from tools.servers.openbao import OpenBao
from tools.servers.prometheus import Prometheus
from tools.servers.rabbitmq import RabbitMQ
from tools.servers.s3 import S3Server, new_bucket
from tools.servers.seaweedfs import SeaweedFS
from tools.servers.softhsm import SoftHsm
from tools.servers.stack import Servers, StorageKind

__all__ = [
    "CephRgw",
    "MotoKms",
    "MotoServer",
    "OpenBao",
    "Prometheus",
    "RabbitMQ",
    "S3Server",
    "SeaweedFS",
    "Servers",
    "SoftHsm",
    "StorageKind",
    "new_bucket",
]
