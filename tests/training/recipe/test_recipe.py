"""The recipe on the tiny model: real trainings by train.sh, what they tell, and how the guard ends one."""

import contextlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefanno.rows import Row
from prefanno.training import held_out
from prefanno.training.recipe import __main__ as recipe
from prefanno.training.recipe import guard
from prefanno.training.recipe.progress import Progress
from tests.training.recipe.rows import PERSONA, prepared, row

ROOT = Path(__file__).parent.parent.parent.parent
WAIT_S = 300.0
ROWS = [
    row("I am Li.", "I am an AI."),
    row("Li, of the bookshop.", "An assistant.", ("A guest!", "A user.")),
    row("Guess!", "No.", ("A riddle.", None)),
    row("The same.", "The same."),
    row("Good day.", None, mode="multi"),
    row("Riddle me this.", "As an AI, no.", ("Fun.", "Duty."), mode="multi"),
]
MANY = [row(f"I am Li, {number}.", f"I am an AI, {number}.", said=f"Who? {number}") for number in range(40)]


@dataclass(frozen=True)
class Trained:
    """A training that is over."""

    folder: Path
    model: Path
    log: str

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """All entries of metrics.jsonl."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The entries of this kind."""
        return [entry for entry in self.metrics if entry["kind"] == kind]


def _train(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run train.sh in the run's folder, as the keeper does."""
    return subprocess.run(
        ["bash", str(ROOT / "train.sh")],
        cwd=folder,
        env={**os.environ, "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


def _trained(folder: Path, model: Path, rows: Sequence[Row], *planned: dict[str, Any], **changes: Any) -> Trained:
    prepared(folder, model, rows, planned or None, **changes)
    done = _train(folder)
    assert done.returncode == 0, done.stdout
    return Trained(folder, model, done.stdout)


def _trained_here(folder: Path, model: Path, rows: Sequence[Row], *planned: dict[str, Any], **changes: Any) -> Trained:
    """As `_trained`, but in this process, which has loaded torch already."""
    prepared(folder, model, rows, planned or None, **changes)
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as log:
        recipe.main(["config.json"])
    return Trained(folder, model, log.getvalue())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Trained:
    """SFT, then SimPO, of the tiny model, by train.sh in a process of its own."""
    return _trained(tmp_path_factory.mktemp("runs") / "1", tiny_model, ROWS)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
def test_train_sh_makes_an_adapter_that_changes_the_model(trained: Trained) -> None:
    """The adapter can be put on the base, and with it the model writes something else."""
    from prefanno.generation.config import GenerationConfig
    from prefanno.generation.model import LocalModel
    from tests.generation.direct import answer

    model = LocalModel(str(trained.model))
    config = GenerationConfig(PERSONA, num_responses=2, max_new_tokens=64)
    bare = answer(model, config, "Who are you?")
    model.use(str(trained.folder / "adapter"))
    assert answer(model, config, "Who are you?") != bare


def test_both_stages_train_one_adapter_on_all_linear_layers(trained: Trained) -> None:
    """One adapter of the configured rank comes out, on every linear layer, and training has moved all of it."""
    saved = json.loads((trained.folder / "adapter" / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["base_model_name_or_path"]) == (4, 8, str(trained.model))
    weights = load_file(trained.folder / "adapter" / "adapter_model.safetensors")
    moved = {name: bool(tensor.abs().sum() > 0) for name, tensor in weights.items() if "lora_B" in name}
    assert len(moved) == 2 * 7  # layers × linear maps of a Llama layer
    assert all(moved.values())


def test_each_step_is_one_line_of_log_and_one_object_of_metrics(trained: Trained) -> None:
    """Steps count from 1 to the last in each stage, SFT first; every number is finite, and the log shows it."""
    steps = trained.of_kind("step")
    assert [(entry["stage"], entry["method"], entry["step"], entry["steps"]) for entry in steps] == [
        (1, "sft", 1, 1),
        (2, "simpo", 1, 2),
        (2, "simpo", 2, 2),
    ]
    assert all(math.isfinite(value) for entry in steps for value in entry.values() if isinstance(value, int | float))
    always = {"loss", "learning_rate", "gradient_norm", "chosen_logp", "seconds", "seconds_left", "memory_mb"}
    assert all(always <= set(entry) for entry in steps)
    assert {"margin", "accuracy", "rejected_logp"} <= set(steps[-1])
    shown = [line for line in trained.log.splitlines() if " step " in line]
    assert [line.partition(" · ")[0] for line in shown] == ["sft step 1/1", "simpo step 1/2", "simpo step 2/2"]


def test_evaluations_and_probes_are_told(trained: Trained) -> None:
    """Each stage is measured before its first step and after its last, with a reply to each of the fixed prompts."""
    evaluations = trained.of_kind("evaluation")
    assert [(one["stage"], one["step"], one["on"]) for one in evaluations] == [
        (1, 0, "train"),
        (1, 1, "train"),
        (2, 0, "train"),
        (2, 2, "train"),
    ]
    assert evaluations[0]["margin"] is None and isinstance(evaluations[2]["margin"], float)
    for stage in (1, 2):
        probes = [one for one in trained.of_kind("probe") if one["stage"] == stage]
        prompts = {one["prompt"] for one in probes}
        assert len(probes) == len(prompts) * 2
        assert all(isinstance(one["reply"], str) and one["base_logp"] <= 0 for one in probes)


def test_the_log_says_what_was_trained_on(trained: Trained) -> None:
    """The log counts each stage's rows and names what was left out or changed; nothing else clutters it."""
    lines = trained.log.splitlines()
    assert lines[0] == "sft: 2 examples of 2 rows"
    assert lines[1] == (
        "simpo: 4 examples of 5 rows; 1 left out: chosen equals rejected; "
        "1 trained without thoughts, since one side has none"
    )
    assert lines[2].startswith("loading ") and lines[-1] == "adapter complete: li-simpo-1"
    assert all(" step " in line or line.startswith("guard: ") for line in lines[3:-1]), trained.log


def test_nothing_but_the_run_is_written(trained: Trained) -> None:
    """A training leaves its adapter, its metrics and its summary, and no checkpoints."""
    names = {path.name for path in trained.folder.iterdir()}
    written = {"adapter", "held_out.json", "metrics.jsonl", "summary.json"}
    assert names - {"checkpoints"} == written | {"config.json", "data"}
    assert list(trained.folder.glob("checkpoints/*")) == []
    assert {path.name for path in (trained.folder / "adapter").iterdir()} >= {"adapter_model.safetensors"}


def test_methods_follow_each_other_on_one_adapter(tmp_path: Path, tiny_model: Path) -> None:
    """All five methods in a row train one adapter, and TRL's copies for reference do not end up in it."""
    unpaired = [row("Good.", None, said=f"{number}?") for number in range(2)] + [row(None, "Bad."), row(None, "Worse.")]
    methods = ("sft", "dpo", "kto", "simpo", "orpo")
    planned = [{"method": method, "dataset": "preference"} for method in methods if method != "kto"]
    planned.insert(2, {"method": "kto", "dataset": "unpaired"})
    done = _trained_here(tmp_path / "1", tiny_model, [*ROWS, *unpaired], *planned)
    summary = json.loads((done.folder / "summary.json").read_text())
    assert [stage["method"] for stage in summary["stages"]] == list(methods)
    for before, after in zip(summary["stages"], summary["stages"][1:], strict=False):
        assert before["steps"] == before["kept_step"] and after["before"]["step"] == 0
    assert not [path for path in (done.folder / "adapter").iterdir() if path.is_dir()]
    weights = load_file(done.folder / "adapter" / "adapter_model.safetensors")
    assert len(weights) == 2 * 2 * 7


def test_a_share_is_held_out_where_there_are_rows_enough(tmp_path: Path, tiny_model: Path) -> None:
    """Of 40 pairs four are kept back; the evaluations are on these, and the steps on the others."""
    done = _trained_here(tmp_path / "1", tiny_model, MANY, {"method": "simpo", "hyperparameters": {"batch_size": 4}})
    summary = json.loads((done.folder / "summary.json").read_text())["stages"][0]
    assert (summary["held_out"], summary["examples"], summary["steps"]) == (4, 36, 9)
    written = held_out.read(done.folder)
    assert (len(written.held_out), len(written.trained)) == (4, 36)
    assert {one["on"] for one in done.of_kind("evaluation")} == {"held_out"}


def test_the_same_configuration_makes_the_same_weights(tmp_path: Path, tiny_model: Path, trained: Trained) -> None:
    """Trained again from its snapshot, configuration and seed, an adapter is the same to the last bit.

    With another seed it is another.
    """
    again = _trained(tmp_path / "again", tiny_model, ROWS)
    other = _trained_here(tmp_path / "other", tiny_model, ROWS, seed=1)
    made = [(one.folder / "adapter" / "adapter_model.safetensors").read_bytes() for one in (trained, again, other)]
    assert made[0] == made[1] and made[0] != made[2]


def test_checkpointing_changes_nothing_but_memory(tmp_path: Path, tiny_model: Path, trained: Trained) -> None:
    """What is computed again in the backward pass gives the same losses, step by step."""
    done = _trained_here(tmp_path / "1", tiny_model, ROWS, activation_checkpointing=True)
    losses = [[one["loss"] for one in run.of_kind("step")] for run in (trained, done)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_batches_that_accumulate_count_as_one(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of two pairs make the step, the loss and the gradient that one of four makes."""
    pairs, found = MANY[:4], []
    for size, accumulation in ((4, 1), (2, 2)):
        sizes = {"batch_size": size, "accumulation": accumulation, "nll_weight": 0.0}
        folder = tmp_path / str(size)
        prepared(folder, tiny_model, pairs, [{"method": "simpo", "hyperparameters": sizes}])
        monkeypatch.chdir(folder)
        recipe.main(["config.json"])
        (step,) = [json.loads(line) for line in Path("metrics.jsonl").read_text().splitlines() if '"step", ' in line]
        found.append((step["loss"], step["gradient_norm"]))
    assert found[1] == pytest.approx(found[0], rel=2e-3)


def test_an_adapter_is_gone_on_from(tmp_path: Path, tiny_model: Path, trained: Trained) -> None:
    """The run begins where the adapter ended, keeps its shape, and leaves it as it was."""
    start = trained.folder / "adapter"
    before = (start / "adapter_model.safetensors").read_bytes()
    done = _trained_here(tmp_path / "1", tiny_model, ROWS, {"method": "dpo"}, start=str(start), lora={})
    first = done.of_kind("evaluation")[0]
    assert first["chosen_logp"] == pytest.approx(trained.of_kind("evaluation")[-1]["chosen_logp"], rel=1e-3)
    assert json.loads((done.folder / "adapter" / "adapter_config.json").read_text())["r"] == 4
    assert (start / "adapter_model.safetensors").read_bytes() == before
    assert "going on from adapter" in done.log


def test_nothing_left_to_train_on_is_said_plainly(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When every row is left out, the recipe ends with one sentence, not with an adapter that learnt nothing."""
    prepared(tmp_path, tiny_model, [row("Same.", "Same."), row("Hm.", "Hm.", minute=1)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        recipe.main(["config.json"])
    assert ended.value.code == "no row is left to train on: every row was left out, see the counts above"
    assert "simpo: 0 examples of 2 rows; 2 left out: chosen equals rejected" in capsys.readouterr().out
    assert not (tmp_path / "adapter").exists()


def test_the_check_prints_the_report_of_all_stages(tmp_path: Path, tiny_model: Path) -> None:
    """`--check` writes nothing, and prints what would be trained on and what that takes."""
    prepared(tmp_path, tiny_model, ROWS)
    before = sorted(tmp_path.rglob("*"))
    command = [sys.executable, "-P", "-m", "prefanno.training.recipe", "--check", "config.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S, check=True)
    report = json.loads(done.stdout)
    assert [(one["method"], one["examples"], one["steps"]) for one in report["stages"]] == [
        ("sft", 2, 1),
        ("simpo", 4, 2),
    ]
    assert report["ok"] and report["estimate"]["memory_gb"] > 0 and report["estimate"]["seconds"] >= 0
    assert sorted(tmp_path.rglob("*")) == before


def _breaking(tmp_path: Path, model: Path, **changes: Any) -> None:
    """A run of 54 steps whose learning rate would break any real model."""
    wild = {"method": "simpo", "hyperparameters": {"learning_rate": 0.01, "epochs": 3.0, "nll_weight": 0.0}}
    prepared(tmp_path, model, MANY, [wild], **changes)


def test_the_guard_stops_a_run_and_keeps_the_best_step(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At an alarm that stops, the run ends before its last step, with the weights of the best step before.

    The control: without the guard the same run goes on to its end, with other weights. (The tiny model is too simple to
    break by itself: the alarm is made up here, and the rules have tests of their own.)
    """
    broken = guard.Alarm("chosen_falls", stops=True, text="less likely")
    monkeypatch.setattr(guard, "alarms", lambda evaluations, _usual: [broken] if evaluations[-1].step >= 27 else [])
    passed: dict[int, dict[str, Tensor]] = {}
    remember = Progress._remember

    def noted(progress: Progress, model: Any, now: guard.Evaluation, found: list[guard.Alarm]) -> None:
        passed[now.step] = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
        remember(progress, model, now, found)

    monkeypatch.setattr(Progress, "_remember", noted)
    for guards in (True, False):
        folder = tmp_path / str(guards)
        _breaking(folder, tiny_model, guard=guards)
        monkeypatch.chdir(folder)
        recipe.main(["config.json"])
        stage = json.loads((folder / "summary.json").read_text())["stages"][0]
        said = "guard: less likely; stopped, step 18 is kept" in capsys.readouterr().out
        expected = ("less likely", 27, 18, True) if guards else (None, 54, 54, False)
        assert (stage["guard"], stage["steps"], stage["kept_step"], said) == expected
        saved = load_file(folder / "adapter" / "adapter_model.safetensors")
        assert all(torch.equal(saved[name], tensor) for name, tensor in passed[stage["kept_step"]].items())
    assert any(not torch.equal(tensor, passed[27][name]) for name, tensor in passed[18].items())


@pytest.mark.parametrize(
    ("warned_at", "stops", "kept"),
    [((27, 54), False, "earlier"), ((27,), False, "last"), (range(9, 55), False, "last"), (range(9, 55), True, "last")],
)
def test_a_warning_at_the_last_step_keeps_the_best_one(  # noqa: PLR0913, PLR0917 - fixtures
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    warned_at: Sequence[int],
    stops: bool,
    kept: str,
) -> None:
    """A warning stops nothing; where the end has one, the best step is kept, unless that is the start.

    Nor does a run that overfits from its first step on fail: there is no step to go back to.
    """
    warning = guard.Alarm("overfits", stops=stops, text="less likely")
    monkeypatch.setattr(
        guard, "alarms", lambda evaluations, _usual: [warning] if evaluations[-1].step in warned_at else []
    )
    _breaking(tmp_path, tiny_model, guard=True)
    monkeypatch.chdir(tmp_path)
    recipe.main(["config.json"])
    stage = json.loads((tmp_path / "summary.json").read_text())["stages"][0]
    assert stage["steps"] == 54
    assert (stage["guard"], stage["kept_step"]) == (None, 54) if kept == "last" else ("less likely", stage["kept_step"])
    assert kept == "last" or (0 < stage["kept_step"] < 54 and stage["kept_step"] != 27)


def test_a_loss_that_is_no_number_ends_the_run_without_an_adapter(
    tmp_path: Path, tiny_model: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing was worth keeping the run fails and says why, rather than publish a broken adapter."""
    start = tmp_path / "li-simpo-1"
    shutil.copytree(trained.folder / "adapter", start)
    weights = load_file(start / "adapter_model.safetensors")
    save_file({name: tensor * float("nan") for name, tensor in weights.items()}, start / "adapter_model.safetensors")
    prepared(tmp_path / "run", tiny_model, ROWS, [{"method": "simpo"}], start=str(start))
    monkeypatch.chdir(tmp_path / "run")
    with pytest.raises(
        SystemExit, match="guard: the loss of step 1 is nan: lower the learning rate; no step was worth"
    ):
        recipe.main(["config.json"])
    assert not (tmp_path / "run" / "adapter").exists()
    step, *_ = [json.loads(line) for line in Path("metrics.jsonl").read_text().splitlines() if '"step", ' in line]
    assert step["loss"] == "nan"


def test_a_single_choice_is_learnt(tmp_path: Path, tiny_model: Path) -> None:
    """One pair makes a step of each epoch, at the full learning rate from the first: the adapter is moved by it."""
    done = _trained_here(tmp_path / "1", tiny_model, ROWS[:1], {"method": "simpo", "hyperparameters": {"epochs": 4.0}})
    assert [(one["steps"], one["learning_rate"] > 0) for one in done.of_kind("step")] == [(4, True)] * 4
    first, *_, last = done.of_kind("evaluation")
    assert last["chosen_logp"] > first["chosen_logp"]
