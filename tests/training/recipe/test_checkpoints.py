"""Trainings that are saved, killed and resumed make what an uninterrupted one makes, to the last bit."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prefanno.training.config import SAVE, SAVED
from prefanno.training.recipe import __main__ as recipe
from prefanno.training.recipe import checkpoints, guard, progress
from tests.reliability.conftest import Disk, disk  # noqa: F401 - a fixture
from tests.training.recipe.rows import prepared, row

WAIT_S = 300.0
ROWS = [row(f"I am Li, {number}.", f"I am an AI, {number}.", said=f"Who? {number}") for number in range(10)]
BOTH = [*ROWS, *(row(f"Good day, {number}.", None, mode="multi", said=f"Hello {number}") for number in range(8))]
MANY = [row(f"I am Li, {number}.", f"I am an AI, {number}.", said=f"Who? {number}") for number in range(40)]
SIMPO = {"method": "simpo", "dataset": "preference", "hyperparameters": {"epochs": 4.0}}
SFT = {"method": "sft", "dataset": "roleplay", "hyperparameters": {"epochs": 2.0}}
VARYING = {"seconds", "tokens_per_second", "seconds_left", "memory_mb"}
Train = Callable[..., None]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Train:
    """The recipe in this process, from where it is to its end, or until it has saved after one of these lines."""

    def run(folder: Path, *asked_at: str, code: int | None = None) -> None:
        monkeypatch.chdir(folder)

        def say(text: str) -> None:
            if any(text.startswith(line) for line in asked_at):
                Path(SAVE).touch()

        for module in (progress, checkpoints):
            monkeypatch.setattr(module, "say", say)
        ended = None
        try:
            recipe.main(["config.json"])
        except SystemExit as error:
            ended = error.code
        assert ended == (SAVED if asked_at else code)
        Path(SAVE).unlink(missing_ok=True)

    return run


def _both(tmp_path: Path, model: Path, rows: Sequence[Any], *planned: dict[str, Any], **changes: Any) -> list[Path]:
    """Two folders of the same run."""
    folders = [tmp_path / "whole", tmp_path / "resumed"]
    for folder in folders:
        prepared(folder, model, rows, planned or None, **changes)
    return folders


def _weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def _metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in VARYING} for line in lines]


def _equal(folder: Path, other: Path) -> bool:
    weights, others = _weights(folder), _weights(other)
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def _same(whole: Path, resumed: Path) -> None:
    """Weights, metrics and summary are the same, and nothing is left of the checkpoints."""
    assert _equal(whole, resumed)
    assert _metrics(resumed) == _metrics(whole)
    assert (resumed / "summary.json").read_text() == (whole / "summary.json").read_text()
    assert not (resumed / "checkpoints").exists()


@pytest.mark.parametrize("method", ["sft", "simpo", "dpo", "orpo", "kto"])
def test_a_resumed_run_makes_the_same_adapter(method: str, tmp_path: Path, tiny_model: Path, train: Train) -> None:
    """Stopped after saving and resumed twice, every method has the weights and metrics of a run that was not."""
    stage = {"method": method, "dataset": "preference", "hyperparameters": {"epochs": 4.0, "accumulation": 2}}
    whole, resumed = _both(tmp_path, tiny_model, ROWS, stage)
    train(whole)
    for step in (2, 5):
        train(resumed, f"{method} step {step}/")
        assert list(resumed.glob("checkpoints/*/*/complete"))
    train(resumed)
    _same(whole, resumed)


@pytest.mark.parametrize("asked_at", ["sft step 3/", "sft step 8/", "simpo step 4/"])
def test_a_run_of_two_stages_goes_on_in_the_right_one(
    asked_at: str, tmp_path: Path, tiny_model: Path, train: Train
) -> None:
    """In its first stage, between both, and in its second one, where the first is not trained again."""
    whole, resumed = _both(tmp_path, tiny_model, BOTH, SFT, SIMPO)
    train(whole)
    train(resumed, asked_at)
    train(resumed)
    _same(whole, resumed)


def test_a_run_that_went_on_from_an_adapter_is_resumed(tmp_path: Path, tiny_model: Path, train: Train) -> None:
    """Its reference is still the adapter that it went on from, not what it had made of it."""
    first = tmp_path / "first"
    prepared(first, tiny_model, ROWS, [SIMPO])
    train(first)
    dpo = {"method": "dpo", "hyperparameters": {"epochs": 4.0}}
    whole, resumed = _both(tmp_path, tiny_model, ROWS, dpo, start=str(first / "adapter"))
    train(whole)
    train(resumed, "dpo step 6/")
    train(resumed)
    _same(whole, resumed)


def test_the_best_step_survives(
    tmp_path: Path, tiny_model: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guard that stops the run after the resume goes back to a step from before it."""
    broken = guard.Alarm("chosen_falls", stops=True, text="less likely")
    monkeypatch.setattr(guard, "alarms", lambda evaluations, _usual: [broken] if evaluations[-1].step > 9 else [])
    whole, resumed = _both(tmp_path, tiny_model, MANY, {"method": "simpo", "hyperparameters": {"epochs": 3.0}})
    train(whole)
    train(resumed, "simpo step 12/")
    train(resumed)
    _same(whole, resumed)
    (stage,) = json.loads((resumed / "summary.json").read_text())["stages"]
    assert stage["guard"] == "less likely" and 0 < stage["kept_step"] <= 9


def test_a_checkpoint_comes_after_its_seconds(tmp_path: Path, tiny_model: Path, train: Train) -> None:
    """Also after each step, where there are none in between, a run makes what it makes without any."""
    whole, often = _both(tmp_path, tiny_model, ROWS, SIMPO)
    config = json.loads((often / "config.json").read_text())
    (often / "config.json").write_text(json.dumps(config | {"checkpoint_s": 0.0}))
    train(whole)
    train(often)
    _same(whole, often)


def test_what_is_not_complete_is_removed(tmp_path: Path, tiny_model: Path, train: Train) -> None:
    """A checkpoint that was cut off while it was written is not gone on from, but from the one before."""
    whole, resumed = _both(tmp_path, tiny_model, ROWS, SIMPO)
    train(whole)
    train(resumed, "simpo step 5/")
    torn = resumed / "checkpoints" / "1" / "checkpoint-19"
    torn.mkdir()
    (torn / "trainer_state.json").write_text("{")
    train(resumed)
    _same(whole, resumed)


def test_without_its_optimizer_a_run_would_be_another(tmp_path: Path, tiny_model: Path, train: Train) -> None:
    """The control: a resume that has lost its moments makes other weights, and the comparison sees it."""
    whole, resumed = _both(tmp_path, tiny_model, ROWS, SIMPO)
    train(whole)
    train(resumed, "simpo step 5/")
    for file in resumed.glob("checkpoints/1/*/optimizer.pt"):
        file.unlink()
    train(resumed)
    assert not _equal(whole, resumed)


@pytest.mark.needs("mount")
def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path,
    tiny_model: Path,
    train: Train,
    disk: Disk,  # noqa: F811 - the fixture
) -> None:
    """A run that cannot be written ends with the reason; with room it goes on to what it would have made."""
    whole, resumed = tmp_path / "whole", disk.path / "resumed"
    for folder in (whole, resumed):
        prepared(folder, tiny_model, ROWS, [SIMPO], checkpoint_s=0.0)
    train(whole)
    train(resumed, "simpo step 5/")
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        train(resumed)
    disk.free()
    train(resumed)
    _same(whole, resumed)


def _start(folder: Path) -> "subprocess.Popen[bytes]":
    command = (sys.executable, "-P", "-m", "prefanno.training.recipe", "config.json")
    with (folder / "train.log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=os.environ, stdout=log, stderr=log)


def _killed(folder: Path, at: Iterable[float]) -> int:
    """Kill it so many seconds after it has begun to train, each time; how often that was before its end."""
    kills = 0
    for pause in at:
        process = _start(folder)
        size = (folder / "metrics.jsonl").stat().st_size if (folder / "metrics.jsonl").exists() else 0
        while process.poll() is None and (
            not (folder / "metrics.jsonl").exists() or (folder / "metrics.jsonl").stat().st_size == size
        ):
            pass
        try:
            process.wait(pause)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait(WAIT_S)
            kills += 1
    return kills


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
def test_a_killed_run_makes_the_same_adapter(kills: int, tmp_path: Path, tiny_model: Path, train: Train) -> None:
    """The recipe as a process, killed at random moments, also while it saves, and started again each time."""
    plan = SIMPO | {"hyperparameters": {"epochs": 12.0 * kills}}
    whole, resumed = _both(tmp_path, tiny_model, ROWS[:4], plan, checkpoint_s=0.0)
    train(whole)
    assert _killed(resumed, [random.uniform(0.05, 0.8) for _ in range(kills)]) > kills / 2
    assert _start(resumed).wait(WAIT_S) == 0
    _same(whole, resumed)
