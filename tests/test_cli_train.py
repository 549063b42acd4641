"""`prefanno train`, as a real process, with scripts of a few lines in the place of train.sh."""

import json
import signal
import subprocess
from dataclasses import replace
from typing import Any

import psutil
import pytest

from prefanno.settings import Settings
from tests.test_cli import PAIR, PROGRAM, WAIT_S, _environment, _given, _refusal, _run
from tests.training.running import RESUMABLE

GOOD = """
echo training
mkdir adapter
echo '{}' > adapter/adapter_config.json
echo weights > adapter/adapter_model.safetensors
"""
BAD = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "No"}], "kto_tag": False}


@pytest.fixture
def model(settings: Settings) -> Settings:
    """A fresh home and a base model that no test here loads."""
    return replace(settings, model="base")


def _script(settings: Settings, content: str) -> str:
    settings.home.mkdir(exist_ok=True)
    file = settings.home / "stub.sh"
    file.write_text(content)
    return str(file)


def test_training_on_nothing_is_one_line(model: Settings) -> None:
    """Without annotations `train` says so; nothing is run."""
    line = _refusal(_run(model, "train"))
    assert line.startswith("prefanno: there is nothing to train on")
    assert list(model.runs.iterdir()) == []


def test_train_shows_the_log_and_names_the_adapter(model: Settings) -> None:
    """`train` prints what the run prints, with its times, and at the end where the adapter is."""
    _given(model, PAIR)
    done = _run(model, "train", PREFANNO_TRAIN_SCRIPT=_script(model, GOOD))
    assert done.returncode == 0, done
    *lines, last = done.stdout.splitlines()
    assert [line[21:] for line in lines] == ["training"]
    assert last == f"adapter: {model.outputs / 'li-simpo-1'}"
    assert (model.outputs / "li-simpo-1" / "adapter_config.json").is_file()


def test_train_that_fails_says_why(model: Settings) -> None:
    """A run that fails ends the command with 1, and its last line is the reason."""
    _given(model, PAIR)
    done = _run(model, "train", PREFANNO_TRAIN_SCRIPT=_script(model, "echo no memory; exit 3"))
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1] == "failed: train.sh ended with exit code 3: no memory"
    assert list(model.outputs.iterdir()) == []


def test_ctrl_c_stops_the_run(model: Settings) -> None:
    """Ctrl-C lets a run save, and a second one ends its processes; the command says how it was stopped."""
    _given(model, PAIR)
    script = _script(model, "echo $$; exec sleep 1000")
    with subprocess.Popen(
        [*PROGRAM, "train"],
        env=_environment(model, PREFANNO_TRAIN_SCRIPT=script),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as training:
        assert training.stdout is not None
        trainer = psutil.Process(int(training.stdout.readline().split()[-1]))
        assert trainer.is_running()
        training.send_signal(signal.SIGINT)
        assert training.stdout.readline() == "stopping the run when it has saved; Ctrl-C again: at once\n"
        training.send_signal(signal.SIGINT)
        shown = training.stdout.read().splitlines()
        assert training.wait(WAIT_S) == 1
    assert shown == ["stopping the run", "stopped: stopped on request, before it had saved"]
    assert not trainer.is_running()


def test_ctrl_c_saves_and_resume_goes_on(model: Settings) -> None:
    """A run that saved when Ctrl-C was pressed is stopped; --resume lets it go on to its adapter, under the same id."""
    _given(model, PAIR)
    script = _script(model, RESUMABLE)
    with subprocess.Popen(
        [*PROGRAM, "train"],
        env=_environment(model, PREFANNO_TRAIN_SCRIPT=script),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as training:
        assert training.stdout is not None
        training.stdout.readline()
        training.send_signal(signal.SIGINT)
        shown = training.stdout.read().splitlines()
        assert training.wait(WAIT_S) == 1
    assert shown[-1] == "stopped: stopped on request, after saving"
    done = _run(model, "train", "--resume", "1", PREFANNO_TRAIN_SCRIPT=script)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"adapter: {model.outputs / 'li-simpo-1'}")
    again = _run(model, "train", "--resume", "1", PREFANNO_TRAIN_SCRIPT=script)
    assert (again.returncode, again.stderr) == (1, "prefanno: run 1 has succeeded already\n")


def _config(settings: Settings, run: int) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((settings.runs / str(run) / "config.json").read_text())
    return config


def test_options_reach_the_run(model: Settings) -> None:
    """Methods are stages in their order, --set goes to each of them, the rest to the run as a whole."""
    _given(model, PAIR)
    stages = ("--method", "dpo", "--method", "orpo", "--set", "beta=0.5", "--set", "epochs=2")
    options = (*stages, "--seed", "7", "--no-guard", "--checkpointing")
    done = _run(model, "train", *options, PREFANNO_TRAIN_SCRIPT=_script(model, GOOD))
    assert done.returncode == 0, done
    config = _config(model, 1)
    assert [(one["method"], one["beta"], one["epochs"]) for one in config["stages"]] == [
        ("dpo", 0.5, 2),
        ("orpo", 0.5, 2),
    ]
    assert (config["seed"], config["guard"], config["activation_checkpointing"]) == (7, False, True)


@pytest.mark.sqlite_only  # decided by the options
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--method", "ppo"), "--method must be one of: sft, simpo, dpo, orpo, kto"),
        (("--set", "beta=1"), "--set needs --method"),
        (("--method", "dpo", "--set", "beta=99"), "beta must be from 0.001 to 10"),
        (("--method", "dpo", "--set", "beta"), "--set takes NAME=VALUE, not beta"),
        (("--method", "dpo", "--set", "batch_size=1.5"), "batch_size must be a whole number"),
        (("--method", "dpo", "--set", "loss=nonsense"), "loss must be one of: sigmoid"),
        (("--method", "sft", "--set", "beta=1"), "sft has no hyperparameter beta; it has: learning_rate"),
        (("--method", "kto", "--set", "batch_size=1"), "batch_size must be above 1 with loss=kto"),
        (("--method", "simpo"), "stage 1, simpo: the dataset preference has no rows"),
        (("--adapter", "li-simpo-9"), "li has no adapter li-simpo-9 of this base model"),
        (("--rebuild", "9"), "there is no run 9"),
    ],
)
def test_a_bad_option_is_one_line(model: Settings, options: tuple[str, ...], said: str) -> None:
    """What cannot be trained is refused in one line that names the option and what it may be; no run begins."""
    _given(model, BAD if options == ("--method", "simpo") else PAIR)
    line = _refusal(_run(model, "train", *options))
    assert said in line
    assert list(model.runs.glob("*")) == []


def test_a_run_is_rebuilt(model: Settings) -> None:
    """--rebuild trains again what a run trained, to another adapter, and goes with no other option."""
    _given(model, PAIR)
    script = _script(model, GOOD)
    _run(model, "train", "--seed", "5", PREFANNO_TRAIN_SCRIPT=script)
    done = _run(model, "train", "--rebuild", "1", PREFANNO_TRAIN_SCRIPT=script)
    assert done.stdout.splitlines()[-1] == f"adapter: {model.outputs / 'li-simpo-2'}"
    assert _config(model, 2) == _config(model, 1) | {"adapter": "li-simpo-2"}
    assert _run(model, "train", "--rebuild", "1", "--seed", "5").returncode == 2


def test_why_the_guard_stopped_is_told(model: Settings) -> None:
    """A run that the guard ended early has an adapter, and the command says why."""
    _given(model, PAIR)
    summary = '{"stages": [{"method": "simpo", "guard": "the replies repeat themselves", "kept_step": 8}]}'
    script = _script(model, f"{GOOD}\necho '{summary}' > summary.json\n")
    done = _run(model, "train", PREFANNO_TRAIN_SCRIPT=script)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-2:] == [
        "guard: the replies repeat themselves; step 8 of simpo was kept",
        f"adapter: {model.outputs / 'li-simpo-1'}",
    ]


@pytest.mark.sqlite_only  # the rows are looked at in their files
def test_check_says_what_would_be_trained_on(settings: Settings) -> None:
    """Examples, steps, findings with their lines, the first rows as the model sees them, and what it takes; no run."""
    same = PAIR | {"rejected": PAIR["chosen"]}
    _given(settings, PAIR, same)
    done = _run(settings, "train", "--check")
    assert (done.returncode, done.stderr) == (0, "")
    first, found, where, *shown, needs = done.stdout.splitlines()
    assert first.startswith("simpo on preference: 1 examples of 2 rows, 6 steps; ")
    assert found == "  left out: 1 × chosen equals rejected" and where.endswith(", 'Hi'")
    assert any("chosen: 'Ho<|im_end|>'" in line for line in shown)
    assert needs.startswith("needs about ")
    assert list(settings.runs.iterdir()) == []


@pytest.mark.sqlite_only  # likewise
def test_a_check_with_nothing_left_ends_with_1(settings: Settings) -> None:
    """Where every row is left out a run would fail, and the exit code says so."""
    _given(settings, PAIR | {"rejected": PAIR["chosen"]})
    assert _run(settings, "train", "--check").returncode == 1
