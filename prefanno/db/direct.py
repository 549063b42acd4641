"""SQLite for a thread of its own: SQLAlchemy's async session over plain sqlite3, each call made where it stands.

aiosqlite hands every call to a second thread, about four for each statement, which is right for an event loop that must
not block. The writer has a thread and an event loop to itself, and may block; there the handing over was most of the
cost of a write (43 of them in one add). Nothing here can stream.
"""

import sqlite3
from typing import Any

from sqlalchemy import URL
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.pool import Pool, StaticPool

DRIVER = "sqlite+direct"


class DirectCursor(sqlite3.Cursor):
    """A cursor as SQLAlchemy 2.1 expects one of an async driver."""

    async def _async_soft_close(self) -> None:
        """Its rows can still be read: nothing has to be fetched ahead where no call waits."""


class DirectConnection(sqlite3.Connection):
    """A connection with such cursors."""

    def cursor(self, factory: Any = DirectCursor) -> Any:
        """A cursor."""
        return super().cursor(factory)


class DirectDialect(SQLiteDialect_pysqlite):
    """pysqlite's dialect, which an async engine accepts."""

    is_async = True
    driver = "direct"
    supports_statement_cache = True

    @classmethod
    def get_pool_class(cls, url: URL) -> type[Pool]:  # noqa: ARG003 - the base's signature
        """One connection, which the thread keeps."""
        return StaticPool

    def connect(self, *arguments: Any, **options: Any) -> Any:
        """A connection to the file."""
        return super().connect(*arguments, factory=DirectConnection, **options)


registry.register(DRIVER.replace("+", "."), __name__, DirectDialect.__name__)
