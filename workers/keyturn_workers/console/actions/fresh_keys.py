"""API keys that were shown to a person and are not published yet (SPEC 8.1, 14).

A fresh key is made for one session and one project, and shown in the response that made it. It is
never shown again: a person who loses it makes another one, since a key that was not published opens
nothing. It is held in memory, for `KEY_LIFE_S` at most.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from pydantic import SecretStr

from keyturn.crypto import new_api_key
from keyturn.publisher.requests import new_id

KEY_LIFE_S: Final = 600
MAX_HELD: Final = 100


@dataclass(frozen=True, slots=True)
class FreshKey:
    """A key that was made for a rotation that is not confirmed yet.

    Attributes:
        rotation_id: The id under which the rotation would be published.
        expected_generation: The generation that the person saw, which it replaces.
    """

    rotation_id: str
    session_id: str
    project: str
    expected_generation: int
    api_key: SecretStr


class FreshKeys:
    """The keys that are held, newest last. Used from one event loop.

    Args:
        life_s: Seconds after which a key is dropped.
        max_held: How many are held; beyond that the oldest is dropped.
    """

    def __init__(self, *, life_s: float = KEY_LIFE_S, max_held: int = MAX_HELD) -> None:
        self._life_s = life_s
        self._max_held = max_held
        self._held: dict[str, FreshKey] = {}

    def make(self, session_id: str, project: str, expected_generation: int) -> FreshKey:
        """A fresh key. An earlier one of the same session and project is dropped.

        So a page that was loaded twice cannot publish another key than the one that it showed
        last, which is the one that the person can have saved.
        """
        for other in tuple(self._held.values()):
            if (other.session_id, other.project) == (session_id, project):
                self.drop(other.rotation_id)
        while len(self._held) >= self._max_held:
            self.drop(next(iter(self._held)))
        fresh = FreshKey(
            new_id(), session_id, project, expected_generation, SecretStr(new_api_key())
        )
        self._held[fresh.rotation_id] = fresh
        asyncio.get_running_loop().call_later(self._life_s, self.drop, fresh.rotation_id)
        return fresh

    def find(self, rotation_id: str, session_id: str) -> FreshKey | None:
        """A key that is still held for this session."""
        fresh = self._held.get(rotation_id)
        return fresh if fresh is not None and fresh.session_id == session_id else None

    def take(self, rotation_id: str, session_id: str) -> FreshKey | None:
        """The same, and it is held no longer: a key is published once."""
        fresh = self.find(rotation_id, session_id)
        if fresh is not None:
            self.drop(rotation_id)
        return fresh

    def drop(self, rotation_id: str) -> None:
        """Hold a key no longer."""
        self._held.pop(rotation_id, None)
