"""An aiosqlite connection for a thread of its own: each call runs where it is made.

aiosqlite hands every call to a second thread, four for each statement, which is right for an event loop that must not
block. The writer has a thread and a loop to itself; there the handing over was most of the cost of a write (43 of them
in one add, about half of its time).
"""

from collections.abc import Callable, Generator
from typing import Any, TypeVar

import aiosqlite

T = TypeVar("T")


class DirectConnection(aiosqlite.Connection):
    """Runs no thread. It overrides what aiosqlite 0.22 does by its thread: connect, call, close."""

    def __await__(self) -> Generator[Any, None, "DirectConnection"]:
        return self._connect().__await__()

    async def _connect(self) -> "DirectConnection":
        self._connection = self._connector()
        return self

    async def _execute(self, fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return fn(*args, **kwargs)

    async def close(self) -> None:
        """Close the connection; again does nothing."""
        self.stop()

    def stop(self) -> None:
        """Close the connection at once."""
        self._running = False
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
