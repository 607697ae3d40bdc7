"""How many objects a project has, counted some listings at a time (SPEC 16.1).

The time left of a sweep needs the number. A project may have millions of objects, and no single
report may take as long as listing them all. So each report goes on where the last one stopped, and
the number is known once the end is reached.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from keyturn_workers.storage import Storage

_MAX_PROJECTS: Final = 100
_LISTINGS_AT_ONCE: Final = 20
_RECOUNT_S: Final = 600.0


@dataclass(slots=True)
class _Count:
    number: int = 0
    after: str = ""
    begun_s: float = 0.0
    known: int | None = None


class ObjectCounter:
    """Counts of the projects that were asked about last.

    Args:
        storage: The bucket.
        clock_s: Seconds that only grow; for tests.
    """

    def __init__(self, storage: Storage, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._storage = storage
        self._clock_s = clock_s
        self._counts: OrderedDict[str, _Count] = OrderedDict()

    async def count(self, project: str) -> int | None:
        """How many objects the project had some minutes ago; None while that is not known.

        Raises:
            StorageUnavailableError, StorageAnswerError: the listing failed.
        """
        count = self._counts.pop(project, None) or _Count(begun_s=self._clock_s())
        self._counts[project] = count
        while len(self._counts) > _MAX_PROJECTS:
            self._counts.popitem(last=False)
        if count.known is None or self._clock_s() - count.begun_s >= _RECOUNT_S:
            await self._continue(project, count)
        return count.known

    async def _continue(self, project: str, count: _Count) -> None:
        for _ in range(_LISTINGS_AT_ONCE):
            page = await self._storage.list_entries(f"{project}/", after=count.after)
            count.number += len(page.objects)
            if page.next_after is None:
                count.known, count.number, count.after = count.number, 0, ""
                count.begun_s = self._clock_s()
                return
            count.after = page.next_after
