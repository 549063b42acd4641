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

from prefanno import files, snapshot
from prefanno.db.engine import Database
from prefanno.db.models import Run
from prefanno.errors import NotFound
from prefanno.settings import Settings
from prefanno.snapshot import Manifest
from prefanno.training import process
from prefanno.training.config import SAVE, SAVED, RunConfig
from prefanno.training.log import RunLog

STARTED = "started"  # the file that says when: another database has other runs of the same numbers
CONFIG, KEEPER, EXIT = "config.json", "run.json", "exit.json"
CHECKPOINTS = "checkpoints"


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


def prepare(folder: Path, config: RunConfig, exported: Path, manifest: Manifest, started_at: datetime) -> None:
    """Make it, with a copy of the snapshot that was exported. Raises OSError or SnapshotDamaged."""
    if folder.exists():  # of another database: its runs had the same numbers
        folder.rename(folder.with_name(f"{folder.name}-before-{int(time.time())}"))
    (folder / "data").mkdir(parents=True)
    snapshot.copy(exported, folder / "data", manifest)
    (folder / CONFIG).write_text(_written(config))
    (folder / STARTED).write_text(started_at.isoformat())


def reopen(folder: Path, config: RunConfig) -> None:
    """Make it ready to go on from its last checkpoint. Raises OSError.

    Killed in between, the run ends as it had, or as one whose keeper was killed; either can be resumed.
    """
    files.replace(folder / CONFIG, _written(config).encode())
    for name in (SAVE, EXIT, KEEPER, "keeper.log"):
        (folder / name).unlink(missing_ok=True)


def resumable(runs: Path, run: Run) -> bool:
    """Whether the run can go on from a checkpoint. Blocks."""
    folder = runs / str(run.id)
    has_ended = run.state in ("failed", "stopped")
    return has_ended and has_checkpoint(folder) and _began(folder / STARTED) == run.started_at


def has_checkpoint(folder: Path) -> bool:
    """Whether the recipe can go on from where it was."""
    return any(folder.glob(f"{CHECKPOINTS}/*/*/complete"))


def keeper(folder: Path) -> process.Identity | None:
    """Who keeps the run; None where run.json is not there, or names nobody. Raises OSError."""
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        said = json.loads((folder / KEEPER).read_text())
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
        ended = json.loads((folder / EXIT).read_text())
    except FileNotFoundError:
        last_words = (
            (folder / "keeper.log").read_text(errors="replace").strip() if (folder / "keeper.log").exists() else ""
        )
        killed = "the run's keeper was killed or could not start" + (f": {last_words[-500:]}" if last_words else "")
        return {"state": "failed", "exit_code": None, "reason": killed}
    state, reason = _ended(folder, ended, run_log)
    if held := ended.get("held_mib"):
        reason = "; ".join([*filter(None, [reason]), f"{held} MiB of GPU memory were not free after its end"])
    return {"state": state, "exit_code": ended["exit_code"], "reason": reason}


def _ended(folder: Path, ended: dict[str, Any], run_log: RunLog) -> tuple[str, str | None]:
    code, asked_to_save = ended["exit_code"], (folder / SAVE).exists()
    if ended["stopped"]:
        return "stopped", "stopped on request" + (", before it had saved" if asked_to_save else "")
    if asked_to_save and code == SAVED:
        return "stopped", "stopped on request, after saving"
    if code == 0 and not ended["error"]:
        return "succeeded", _guarded(folder)
    said = next((line.message for line in reversed(run_log.lines) if line.message.strip()), "it printed nothing")
    return "failed", (ended["error"] or f"train.sh ended with exit code {code}: {said}")[:2000]


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


def _written(config: RunConfig) -> str:
    return json.dumps(asdict(config), ensure_ascii=False, indent=2) + "\n"


def _began(mark: Path) -> datetime | None:
    """What the mark says; None where there is none, or one that a killed server left empty."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return datetime.fromisoformat(mark.read_text())
    return None
