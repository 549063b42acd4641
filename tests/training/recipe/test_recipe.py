"""The recipe on the tiny model: one real training by train.sh, and the choice of its rows."""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from prefanno import snapshot
from prefanno.prompting import ChatTemplate, conversation
from prefanno.rows import Mode, Row, writer
from prefanno.snapshot import Manifest
from prefanno.training import recipe
from prefanno.training.config import RunConfig, stages

ROOT = Path(__file__).parent.parent.parent
WAIT_S = 300.0
PERSONA = "You are Li."


def _row(
    chosen: str, rejected: str | None, thoughts: tuple[str | None, str | None] = (None, None), mode: Mode = "single"
) -> Row:
    return Row(
        mode=mode,
        system_prompt=PERSONA,
        context=[],
        human_input="Who are you?",
        chosen=chosen,
        chosen_thinking=thoughts[0],
        rejected=rejected,
        rejected_thinking=thoughts[1],
        created_at=datetime.fromisoformat("2026-01-27T12:00:00"),
    )


ROWS = [
    _row("I am Li.", "I am an AI."),
    _row("Li, of the bookshop.", "An assistant.", ("A guest!", "A user.")),
    _row("Guess!", "No.", ("A riddle.", None)),
    _row("The same.", "The same."),
    _row("Good day.", None, mode="multi"),
    _row("Riddle me this.", "As an AI, no.", ("Fun.", "Duty."), mode="multi"),
]


def _prepared(folder: Path, model: Path, rows: list[Row], **changes: Any) -> RunConfig:
    """A run's folder, with its data and its configuration, as the supervisor makes it; small enough for a test."""
    (folder / "data").mkdir(parents=True)
    with writer("sharegpt").writing(folder / "data", "li") as writing:
        writing.write(rows)
    files = snapshot.described(folder / "data", writing.counts)
    manifest = Manifest("sharegpt", "li", "unused", None, files, writing.losses)
    planned = [stage | {"epochs": 1, "batch_size": 2} for stage in stages(manifest)]
    lora = {"r": 4, "alpha": 8, "dropout": 0.0}
    config = RunConfig("li", str(model), str(model), "li-simpo-1", planned, lora, **{"max_length": 512, **changes})
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    return config


@dataclass(frozen=True)
class Trained:
    """A training that is over."""

    folder: Path
    model: Path
    log: str


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Trained:
    """SFT, then SimPO, of the tiny model, by train.sh in a process of its own."""
    folder = tmp_path_factory.mktemp("runs") / "1"
    _prepared(folder, tiny_model, ROWS)
    done = subprocess.run(
        ["bash", str(ROOT / "train.sh")],
        cwd=folder,
        env={**os.environ, "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return Trained(folder, tiny_model, done.stdout)


@pytest.fixture
def template(tiny_model: Path) -> ChatTemplate:
    """The tiny model's template."""
    from transformers import AutoTokenizer

    return ChatTemplate.of(AutoTokenizer.from_pretrained(tiny_model))


def _metrics(trained: Trained) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (trained.folder / "metrics.jsonl").read_text().splitlines()]


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
    from safetensors.torch import load_file

    saved = json.loads((trained.folder / "adapter" / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["base_model_name_or_path"]) == (4, 8, str(trained.model))
    weights = load_file(trained.folder / "adapter" / "adapter_model.safetensors")
    moved = {name: bool(tensor.abs().sum() > 0) for name, tensor in weights.items() if "lora_B" in name}
    assert len(moved) == 2 * 7  # layers × linear maps of a Llama layer
    assert all(moved.values())


def test_each_step_is_one_line_of_log_and_one_object_of_metrics(trained: Trained) -> None:
    """Steps count from 1 to the last in each stage, SFT first; every number is finite, and the log shows it."""
    metrics = _metrics(trained)
    assert [(entry["method"], entry["step"], entry["steps"]) for entry in metrics] == [
        ("sft", 1, 1),
        ("simpo", 1, 2),
        ("simpo", 2, 2),
    ]
    assert all(math.isfinite(value) for entry in metrics for value in entry.values() if isinstance(value, int | float))
    assert {"loss", "learning_rate"} <= set(metrics[0])
    assert {"loss", "margin", "accuracy", "chosen_logp", "rejected_logp", "nll"} <= set(metrics[-1])
    shown = [line for line in trained.log.splitlines() if " step " in line]
    assert [line.partition(" · ")[0] for line in shown] == ["sft step 1/1", "simpo step 1/2", "simpo step 2/2"]


def test_the_log_says_what_was_trained_on(trained: Trained) -> None:
    """The log counts each stage's rows and names what was left out or changed; nothing else clutters it."""
    lines = trained.log.splitlines()
    assert "sft: 2 rows" in lines
    assert (
        "simpo: 4 rows; 1 trained without thoughts, since one side has none; 1 left out: chosen equals rejected"
    ) in lines
    assert lines[0].startswith("loading ") and lines[-1] == "adapter complete: li-simpo-1"
    assert len(lines) == 7, trained.log


def test_nothing_but_the_run_is_written(trained: Trained) -> None:
    """A training leaves its adapter and its metrics, and no checkpoints."""
    names = {path.name for path in trained.folder.iterdir()}
    assert names - {"checkpoints"} == {"adapter", "config.json", "data", "metrics.jsonl"}
    assert list(trained.folder.glob("checkpoints/*")) == []


def test_nothing_left_to_train_on_is_said_plainly(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When every row is left out, the recipe ends with one sentence, not with an adapter that learnt nothing."""
    _prepared(tmp_path, tiny_model, [_row("Same.", "Same."), _row("Hm.", "Hm.")])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        recipe.main("config.json")
    assert ended.value.code == "no row is left to train on: every row was left out, see the counts above"
    assert "simpo: 0 rows; 2 left out: chosen equals rejected" in capsys.readouterr().out
    assert not (tmp_path / "adapter").exists()


def _usable(folder: Path, model: Path, template: ChatTemplate, rows: list[Row], **changes: Any) -> list[dict[str, str]]:
    """The rows that the last stage trains on."""
    config = _prepared(folder, model, rows, **changes)
    stage = config.stages[-1] | {"file": str(folder / config.stages[-1]["file"])}
    return recipe._usable(stage, template, config.max_length)


@pytest.mark.parametrize("thoughts", [("A guest!", "A user."), (None, None)])
def test_a_pair_is_rendered_as_the_model_is_asked(
    tmp_path: Path, tiny_model: Path, template: ChatTemplate, thoughts: tuple[str | None, str | None]
) -> None:
    """Training sees the very prompt that generating makes, and after it thought, closing tag, reply and end."""
    (rendered,) = _usable(tmp_path, tiny_model, template, [_row("I am Li.", "I am an AI.", thoughts)])
    asked = template.prompt(conversation(PERSONA, [], "Who are you?"), thinking=thoughts[0] is not None)
    assert rendered["prompt"] == asked
    before = [f"{thought}\n</think>\n\n" if thought else "" for thought in thoughts]
    assert rendered["chosen"] == f"{before[0]}I am Li.<|im_end|>"
    assert rendered["rejected"] == f"{before[1]}I am an AI.<|im_end|>"


@pytest.mark.parametrize("thoughts", [("A riddle.", None), (None, "Duty.")])
def test_a_thought_on_one_side_only_is_not_trained(
    tmp_path: Path,
    tiny_model: Path,
    template: ChatTemplate,
    thoughts: tuple[str | None, str | None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A pair with one thought is trained without it, else thinking itself would be preferred; the log counts it."""
    (rendered,) = _usable(tmp_path, tiny_model, template, [_row("I am Li.", "I am an AI.", thoughts)])
    assert "think" not in "".join(rendered.values())
    assert rendered["chosen"] == "I am Li.<|im_end|>" and rendered["rejected"] == "I am an AI.<|im_end|>"
    assert "simpo: 1 rows; 1 trained without thoughts, since one side has none" in capsys.readouterr().out


def test_a_conversation_is_taught_with_its_thought(tmp_path: Path, tiny_model: Path, template: ChatTemplate) -> None:
    """A row of the roleplay set is asked for with a thought where it has one, and without where it has none."""
    rows = [_row("Hello.", None, ("A guest!", None), mode="multi"), _row("Hello.", None, mode="multi")]
    thinking, plain = _usable(tmp_path, tiny_model, template, rows)
    assert thinking["prompt"].endswith("<think>\n") and not plain["prompt"].endswith("<think>\n")
    assert thinking["completion"] == "A guest!\n</think>\n\nHello.<|im_end|>"
    assert plain["completion"] == "Hello.<|im_end|>"


def test_a_row_that_does_not_fit_is_left_out_whole(
    tmp_path: Path, tiny_model: Path, template: ChatTemplate, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row of exactly max_length tokens is used; one token more on either side, and it is left out and counted."""
    (rendered,) = _usable(tmp_path / "all", tiny_model, template, [_row("Li" * 20, "AI" * 20)])
    length = len(template.tokenizer(rendered["prompt"] + rendered["chosen"], add_special_tokens=False).input_ids)
    rows = [_row("Li" * 20, "AI" * 20), _row("Li" * 20, "AI" * 20 + "!"), _row("Li" * 20 + "!", "AI" * 20)]
    capsys.readouterr()
    assert _usable(tmp_path / "exact", tiny_model, template, rows, max_length=length) == [rendered]
    assert capsys.readouterr().out == f"simpo: 1 rows; 2 left out: longer than {length} tokens\n"
