"""What a run needs to go on: checkpoints of the stage under way, and what the stages before it made.

    checkpoints/<stage>/checkpoint-<step>/    as transformers saves it: adapter, optimizer, schedule, dice; and
        progress.json, best.safetensors       what was measured, and the weights of the best step
        complete                              written last, when all else is on the disk
    checkpoints/<stage>/finished/             of a stage that has ended: adapter, summary.json, complete

What has no `complete` was cut off while it was written, and is removed at the next start. transformers keeps two of a
stage's checkpoints, so there is always one that is complete.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from prefanno import files
from prefanno.training.config import SAVE, SAVED
from prefanno.training.recipe.progress import METRICS, Progress, say

FOLDER = Path("checkpoints")
COMPLETE, FINISHED = "complete", "finished"
STATE, BEST, SUMMARY, WEIGHTS = "progress.json", "best.safetensors", "summary.json", "adapter_model.safetensors"


class Checkpoints(TrainerCallback):
    """Saves a stage every `interval_s` seconds, and when the run is asked to, which then ends it. After `Progress`."""

    def __init__(self, stage: int, progress: Progress, interval_s: float) -> None:
        self._stage, self._progress, self._interval_s = stage, progress, interval_s
        self._last = self._began = time.monotonic()
        self.saved = False  # as it was asked to: the run is to end

    def on_train_begin(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        """Count the time from here."""
        del args, state, control
        self._last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        """Save where it is time to, but not at the stage's last step."""
        del args
        if state.global_step == state.max_steps or control.should_training_stop:
            return
        self._began = time.monotonic()
        if Path(SAVE).exists():
            self.saved = control.should_training_stop = True
        control.should_save = self.saved or self._began - self._last >= self._interval_s

    def on_save(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        """Put our own state beside what transformers saved, and all of it on the disk."""
        del control
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (folder / STATE).write_text(json.dumps({"metrics": _metrics(), **self._progress.state()}))
        save_file(self._progress.best, folder / BEST)
        _complete(folder)
        self._last = time.monotonic()
        self._progress.pause(self._last - self._began)
        say(f"checkpoint: step {state.global_step} of stage {self._stage}")


def clear() -> None:
    """Remove what is not complete, and of the metrics what was measured after the last checkpoint: it will be again."""
    for folder in FOLDER.glob("*/*/"):
        if not (folder / COMPLETE).exists():
            shutil.rmtree(folder)
    states = [*FOLDER.glob(f"*/*/{STATE}"), *FOLDER.glob(f"*/*/{SUMMARY}")]
    sizes = [json.loads(file.read_text())["metrics"] for file in states]
    if sizes and max(sizes) < _metrics():
        os.truncate(METRICS, max(sizes))


def latest(stage: int) -> Path | None:
    """The stage's newest checkpoint."""
    found = (FOLDER / str(stage)).glob("checkpoint-*")
    return max(found, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def finish(stage: int, model: Any, summary: Mapping[str, Any]) -> None:
    """Write down what a stage made; its checkpoints are needed no more."""
    folder = FOLDER / str(stage) / FINISHED
    model.save_pretrained(folder, selected_adapters=["default"])
    (folder / SUMMARY).write_text(json.dumps({"metrics": _metrics(), "summary": summary}, ensure_ascii=False))
    _complete(folder)
    for old in folder.parent.glob("checkpoint-*"):
        shutil.rmtree(old)


def finished(model: Any) -> dict[int, dict[str, Any]]:
    """The summaries of the stages that have ended, by their numbers; the model becomes what the last of them made."""
    folders = sorted(FOLDER.glob(f"*/{FINISHED}"), key=lambda folder: int(folder.parent.name))
    found = {int(folder.parent.name): json.loads((folder / SUMMARY).read_text()) for folder in folders}
    if folders:
        set_peft_model_state_dict(model, load_file(folders[-1] / WEIGHTS))
    return {stage: said["summary"] for stage, said in found.items()}


def go_on(folder: Path, progress: Progress) -> None:
    """Take up what was measured until this checkpoint."""
    progress.take_up(json.loads((folder / STATE).read_text()), load_file(folder / BEST))


def end_if_asked(stage: int) -> None:
    """End the program where the run was asked to save; this is called where it has."""
    if Path(SAVE).exists():
        say(f"saved in stage {stage}, as asked; the run can go on from there")
        sys.exit(SAVED)


def _complete(folder: Path) -> None:
    for file in folder.rglob("*"):
        files.sync(file)
    files.sync(folder)
    (folder / COMPLETE).touch()
    files.sync(folder)
    files.sync(folder.parent)


def _metrics() -> int:
    return METRICS.stat().st_size if METRICS.exists() else 0
