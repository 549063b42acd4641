"""A run's folder: what it is begun with, whose it is, and how the run ended.

config.json, data/ ─▶ the keeper: run.json, train.log ─▶ the recipe: adapter/, summary.json ─▶ exit.json
"""

import contextlib
import json
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from prefanno import snapshot
from prefanno.db.engine import Database
from prefanno.db.models import Run
from prefanno.errors import NotFound
from prefanno.settings import Settings
from prefanno.snapshot import Manifest
from prefanno.training import process
from prefanno.training.config import RunConfig
from prefanno.training.log import RunLog

STARTED = "started"  # the file that says when: another database has other runs of the same numbers


async def folder_of(settings: Settings, database: Database, number: int) -> Path:
    """The folder of this run of the database. Raises NotFound, also where it is of another database's run."""
    folder = settings.runs / str(number)
    async with database.read() as session:
        run = await session.get(Run, number)
    if run is None:
        raise NotFound(f"there is no run {number} in {settings.database}", f"未找到训练 {number}")
    if _began(folder / STARTED) != run.started_at:
        raise NotFound(
            f"{folder} is missing, or of another database's run {number}",
            f"未找到训练 {number} 的文件：目录不存在，或属于另一个数据库",
        )
    return folder


def prepare(folder: Path, config: RunConfig, exported: Path, manifest: Manifest) -> None:
    """Make it, with a copy of the snapshot that was exported. Raises OSError or SnapshotDamaged."""
    if folder.exists():  # of another database: its runs had the same numbers
        folder.rename(folder.with_name(f"{folder.name}-before-{int(time.time())}"))
    (folder / "data").mkdir(parents=True)
    snapshot.copy(exported, folder / "data", manifest)
    (folder / "config.json").write_text(json.dumps(asdict(config), ensure_ascii=False, indent=2) + "\n")


def keeper(folder: Path) -> process.Identity | None:
    """Who keeps the run; None where run.json is not there, or names nobody. Raises OSError."""
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        said = json.loads((folder / "run.json").read_text())
        return {"pid": int(said["pid"]), "start_time": float(said["start_time"]), "boot_id": str(said["boot_id"])}
    return None


def may_go_on(folder: Path) -> bool:
    """Whether its keeper is alive; also where nobody can tell for the moment, as with too many open files."""
    try:
        found = keeper(folder)
        return found is not None and process.alive(found, folder)
    except Exception:  # noqa: BLE001 - whatever keeps us from looking, the run may be there
        return True


def started(runs: Path) -> dict[int, datetime]:
    """When each run began of which there is a folder."""
    marks = [mark for mark in runs.glob(f"*/{STARTED}") if mark.parent.name.isdecimal()]
    return {int(mark.parent.name): began for mark in marks if (began := _began(mark))}


def outcome(folder: Path, run_log: RunLog) -> dict[str, Any]:
    """State, exit code and reason, from exit.json and the log's last words."""
    try:
        ended = json.loads((folder / "exit.json").read_text())
    except FileNotFoundError:
        last_words = (
            (folder / "keeper.log").read_text(errors="replace").strip() if (folder / "keeper.log").exists() else ""
        )
        reason = "the run's keeper was killed or could not start" + (f": {last_words[-500:]}" if last_words else "")
        return {"state": "failed", "exit_code": None, "reason": reason}
    if ended["stopped"]:
        return {"state": "stopped", "exit_code": ended["exit_code"], "reason": "stopped on request"}
    if ended["exit_code"] == 0 and not ended["error"]:
        return {"state": "succeeded", "exit_code": 0, "reason": _guarded(folder)}
    last_line = next((line.message for line in reversed(run_log.lines) if line.message.strip()), "it printed nothing")
    reason = ended["error"] or f"train.sh ended with exit code {ended['exit_code']}: {last_line}"
    return {"state": "failed", "exit_code": ended["exit_code"], "reason": reason[:2000]}


def _guarded(folder: Path) -> str | None:
    """Why the guard ended stages early, if it did; train.sh is the user's to change, so it may say nothing."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stages = json.loads((folder / "summary.json").read_text())["stages"]
        ended = [
            f"guard: {stage['guard']}; step {stage['kept_step']} of {stage['method']} was kept"
            for stage in stages
            if stage["guard"]
        ]
        return "; ".join(ended) or None
    return None


def _began(mark: Path) -> datetime | None:
    """What the mark says; None where there is none, or one that a killed server left empty."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return datetime.fromisoformat(mark.read_text())
    return None
