"""The pages of dead letters over a made-up index, without a broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.harness import console_data
from tools.harness.console_dead import made_up
from tools.harness.console_preview import CSRF, client, preview_app

if TYPE_CHECKING:
    from httpx2 import Response
    from starlette.testclient import TestClient

    from keyturn_workers.console.auth import Role
    from keyturn_workers.console.dead import DeadLetters
    from keyturn_workers.console.dead.letters import IndexedLetter
    from keyturn_workers.console.dead.service import DetailsResult


class Pages:
    """A person who looks at dead letters."""

    def __init__(self, role: Role = "operate") -> None:
        self.model = console_data.empty_model()
        self.dead: DeadLetters = made_up(self.model, self.model.now())
        self._role: Role = role

    @property
    def browser(self) -> TestClient:
        return self.browser_of("ada")

    def browser_of(self, name: str) -> TestClient:
        """The browser of another person."""
        return client(preview_app(self.model, role=self._role, name=name, dead=self.dead))

    def get(self, path: str) -> Response:
        return self.browser.get(path)

    def post(self, path: str, **fields: str | list[str]) -> Response:
        return self.browser.post(path, data={"csrf": CSRF, **fields})

    def letter(self, code: str) -> IndexedLetter:
        """The first letter with this code."""
        return next(letter for letter in self.dead.index.letters if letter.code == code)

    def know(self, letter: IndexedLetter, result: DetailsResult) -> None:
        """What reading this letter whole says."""

        async def details(queue: str, digest: int, wait_s: float) -> DetailsResult:
            assert (queue, digest) == (letter.queue, letter.digest)
            assert wait_s
            return result

        self.dead.details = details  # type: ignore[method-assign]


def address(letter: IndexedLetter) -> str:
    """The page of a letter."""
    return f"/dead/{letter.queue}/{letter.digest_text}"
