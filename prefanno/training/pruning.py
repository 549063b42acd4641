"""What is removed of ended runs, so that they do not fill the disk. Blocks.

- Checkpoints stay with the newest `RESUMABLE` runs that have some and can go on; a run that succeeded needs none.
- The folder of a run stays as long as its adapter is there: it holds the data it was made from. Of the others the
  newest `KEPT` stay.
- An adapter is never touched, nor what is not the folder of one of these runs.
"""

import shutil
from collections.abc import Sequence

from prefanno.db.models import Run
from prefanno.settings import Settings
from prefanno.training import adapters, run_folder
from prefanno.training.registry import DELETED

KEPT = 50
RESUMABLE = 3


def prune(settings: Settings, ended: Sequence[Run]) -> None:
    """Remove what need not stay of these runs, the newest first. Raises OSError."""
    for gone in settings.outputs.glob(f"{DELETED}*"):  # of adapters: whoever deleted them was killed
        shutil.rmtree(gone)
    here = run_folder.started(settings.runs)
    if not (ours := [run for run in ended if here.get(run.id) == run.started_at]):
        return
    made = {adapter.run for adapter in adapters.every(settings.outputs)}
    saved = [run for run in ours if run.state != "succeeded" and run_folder.has_checkpoint(settings.runs / str(run.id))]
    resumable = {run.id for run in saved[:RESUMABLE]}
    for run in [run for run in ours if run.id not in made][KEPT:]:
        shutil.rmtree(settings.runs / str(run.id))
    for run in ours:
        if run.id not in resumable:
            shutil.rmtree(settings.runs / str(run.id) / run_folder.CHECKPOINTS, ignore_errors=True)
