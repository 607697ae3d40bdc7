"""The private broker of a run: stops, kills, and a copy of its disk after each."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyturn import topology

if TYPE_CHECKING:
    from pathlib import Path

    from tools.servers import RabbitMQ


@dataclass
class Broker:
    """The private broker of a run; its disk is copied at each stop, to be searched later."""

    rabbitmq: RabbitMQ
    folder: Path
    done: Counter[str] = field(default_factory=Counter)
    stops: int = 0

    def wait_until_it_survives(self) -> None:
        """Wait until the metadata is on disk without which a killed node does not recover."""
        for queue in topology.queues():
            if not queue.is_stream:
                self.rabbitmq.wait_until_registered(queue.name)
        self.rabbitmq.wait_until_streams_registered()

    def stop(self) -> None:
        """Stop the broker gracefully, and start it again."""
        self.rabbitmq.process.end()
        self._keep_disk()
        self.rabbitmq.start()
        self.done["broker stopped"] += 1

    def kill(self) -> None:
        """Kill the broker with SIGKILL, and start it again."""
        self.rabbitmq.kill()
        self._keep_disk()
        self.rabbitmq.start()
        self.done["broker killed"] += 1

    def end(self) -> None:
        """Stop the broker for good; its disk is copied once more."""
        self.rabbitmq.process.end()
        self._keep_disk()

    def _keep_disk(self) -> None:
        self.stops += 1
        shutil.copytree(self.rabbitmq.data_folder, self.folder / "disk" / f"stop-{self.stops}")
