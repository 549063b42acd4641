"""One real server for a module of end-to-end tests."""

from collections.abc import Iterator

import pytest

from benchmarks.serving import Server, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, own_database: str) -> Iterator[Server]:
    """A server process with a fresh home and the demo model."""
    with running(tmp_path_factory.mktemp("e2e") / "home", DATABASE_URL=own_database) as started:
        yield started
