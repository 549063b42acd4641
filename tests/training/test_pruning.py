"""What is removed of ended runs, and what never is."""

from datetime import timedelta
from pathlib import Path

import pytest

from prefanno.db.models import Run, now
from prefanno.settings import Settings
from prefanno.training import pruning, run_folder
from tests.looping import put_adapter

pytestmark = pytest.mark.sqlite_only


@pytest.fixture(autouse=True)
def home(settings: Settings) -> None:
    """A home with its folders."""
    for folder in (settings.outputs, settings.runs):
        folder.mkdir(parents=True)


def _runs(settings: Settings, states: list[str]) -> list[Run]:
    """Ended runs, the newest first, each with a folder and a checkpoint."""
    made = []
    for number, state in enumerate(states, 1):
        run = Run(id=number, state=state, base_model="base", started_at=now() - timedelta(hours=number))
        folder = settings.runs / str(number)
        saved = folder / "checkpoints" / "1" / "checkpoint-5"
        saved.mkdir(parents=True)
        (saved / "complete").touch()
        (folder / run_folder.STARTED).write_text(run.started_at.isoformat())
        made.append(run)
    return made


def _left(settings: Settings) -> tuple[list[int], list[int]]:
    """The runs of which there are folders, and those with checkpoints."""
    folders = sorted(int(folder.name) for folder in settings.runs.iterdir() if folder.name.isdecimal())
    return folders, [one for one in folders if run_folder.has_checkpoint(settings.runs / str(one))]


def test_the_newest_that_can_go_on_keep_their_checkpoints(settings: Settings) -> None:
    """Three of them; one that succeeded needs none."""
    pruning.prune(settings, _runs(settings, ["succeeded", "failed", "stopped", "succeeded", "failed", "failed"]))
    assert _left(settings) == ([1, 2, 3, 4, 5, 6], [2, 3, 5])


def test_old_runs_go_but_those_of_adapters(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the newest, a run without an adapter goes; adapters and whatever else lies there stay."""
    monkeypatch.setattr(pruning, "KEPT", 2)
    runs = _runs(settings, ["failed", "succeeded", "failed", "failed", "succeeded"])
    kept = put_adapter(settings, "li-simpo-1", "base", run=5)
    (settings.runs / "1-before-7").mkdir()
    pruning.prune(settings, runs)
    assert _left(settings)[0] == [1, 2, 5]
    assert Path(kept).is_dir() and (settings.runs / "1-before-7").is_dir()


def test_another_databases_runs_are_left_alone(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder whose mark says another time is of another run of that number."""
    monkeypatch.setattr(pruning, "KEPT", 0)
    runs = _runs(settings, ["failed", "failed"])
    runs[0].started_at = now()
    pruning.prune(settings, runs)
    assert _left(settings) == ([1], [1])


def test_what_a_killed_delete_left_is_removed(settings: Settings) -> None:
    """An adapter that was taken away, and whose files are still there, goes; others stay."""
    left = settings.outputs / ".deleted-li-simpo-1-abcd"
    left.mkdir()
    other = put_adapter(settings, "li-simpo-2", "base")
    pruning.prune(settings, [])
    assert not left.exists() and Path(other).is_dir()
