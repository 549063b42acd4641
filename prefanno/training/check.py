"""The recipe's own look at the rows of a run, in a process that ends with the memory that torch takes."""

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from prefanno.errors import CheckFailed
from prefanno.training.keepers import SECRETS

CHECK_S = 600.0
CHECK = ("-P", "-m", "prefanno.training.recipe", "--check", "config.json")


async def report(folder: Path) -> dict[str, Any]:
    """Run it in a folder that is prepared as a run's. Raises CheckFailed."""
    printed, complained = folder / "printed", folder / "complained"
    with printed.open("wb") as output, complained.open("wb") as errors:  # a pipe may be held open when it has ended
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *CHECK,
            cwd=folder,
            env={name: value for name, value in os.environ.items() if name not in SECRETS},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
        )
    await _ended(process)
    said = printed.read_bytes().strip().splitlines()
    if process.returncode or not said:
        lines = complained.read_text(errors="replace").strip().splitlines()
        raise _failed(lines[-1] if lines and (process.returncode or 0) > 0 else f"it ended with {process.returncode}")
    report: dict[str, Any] = json.loads(said[-1])  # a library may have said something before
    return report


async def _ended(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(CHECK_S):
            await process.wait()
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise _failed(f"it took longer than {CHECK_S:.0f} s") from error
        raise


def _failed(reason: str) -> CheckFailed:
    return CheckFailed(f"the rows could not be looked at: {reason}", f"无法检查训练数据：{reason}")
