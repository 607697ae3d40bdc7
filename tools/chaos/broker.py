"""The private broker of a run: lost, found again, and its disk kept each time."""

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
    """The private broker of a run; its disk is kept at each stop, to be searched later."""

    rabbitmq: RabbitMQ
    folder: Path
    done: Counter[str] = field(default_factory=Counter)
    stops: int = 0

    def wait_until_it_survives(self) -> None:
        """Wait until all names are on disk without which a killed node does not come back."""
        for queue in topology.queues():
            if queue.name != topology.EVENTS_STREAM:
                self.rabbitmq.wait_until_registered(queue.name)
        self.rabbitmq.wait_until_streams_registered()

    def stop(self) -> None:
        """Stop it gracefully, and start it again."""
        self.rabbitmq.process.end()
        self._keep_disk()
        self.rabbitmq.start()
        self.done["broker stopped"] += 1

    def kill(self) -> None:
        """SIGKILL, and start it again."""
        self.rabbitmq.kill()
        self._keep_disk()
        self.rabbitmq.start()
        self.done["broker killed"] += 1

    def end(self) -> None:
        """Stop it for good; its disk is kept once more."""
        self.rabbitmq.process.end()
        self._keep_disk()

    def _keep_disk(self) -> None:
        self.stops += 1
        shutil.copytree(self.rabbitmq.data_folder, self.folder / "disk" / f"stop-{self.stops}")
