"""What a run is told: the `config.json` in its folder, which is all that train.sh and the recipe read.

LoRA: rank 16 on all linear layers, alpha twice the rank: QLoRA (arXiv:2305.14314) finds that adapting all linear layers
matters more than the rank. The methods' hyperparameters stand in `methods.py`.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefanno.errors import InvalidInput
from prefanno.snapshot import Manifest
from prefanno.training.methods import DATASETS, METHODS, conflict, fault

FORMAT = "sharegpt"  # of the data that the recipe reads
LORA = {"r": 16, "alpha": 32}
MAX_LENGTH = 2048  # tokens of prompt and reply; longer rows are left out and counted, never cut
HELD_OUT = 0.1  # of the rows, where there are enough of them
SAVE = "save"  # a file of this name in the run's folder asks the recipe to save, and then to end
SAVED = 75  # the exit code of a recipe that did; sysexits.h: EX_TEMPFAIL


@dataclass(frozen=True)
class Plan:
    """What a person asks of a run; stages of None are those that the data call for.

    A stage is `{"method": …, "dataset": …, "hyperparameters": {…}}`, of which only the method is needed. `adapter` is
    one to go on from. `guard` stops a run that breaks the model. `activation_checkpointing`
    computes again in the backward pass what it would have kept: less memory, more time.
    """

    stages: Sequence[Mapping[str, Any]] | None = None
    adapter: str | None = None
    lora: Mapping[str, Any] = field(default_factory=dict)
    max_length: int = MAX_LENGTH
    seed: int = 0
    held_out: float = HELD_OUT
    guard: bool = True
    activation_checkpointing: bool = False


@dataclass(frozen=True)
class RunConfig:
    """`base_model` is the setting, `base_model_path` what can be loaded; `stages` run in order on one adapter.

    `start` is the folder of the adapter that the run goes on from; None: it starts fresh from the base model.
    `checkpoint_s` are the seconds between two checkpoints, at the end of a step.
    """

    character: str
    base_model: str
    base_model_path: str
    adapter: str
    stages: list[dict[str, Any]]
    lora: dict[str, Any]
    max_length: int = MAX_LENGTH
    seed: int = 0
    start: str | None = None
    held_out: float = HELD_OUT
    guard: bool = True
    activation_checkpointing: bool = False
    checkpoint_s: float = 60.0


def asked(methods: Sequence[str], values: Sequence[str]) -> list[dict[str, Any]] | None:
    """The stages that a command names by methods and `name=value`; None where it names none. Raises InvalidInput."""
    if not methods:
        if values:
            raise InvalidInput({"set": ["需要 --method"]}, english="--set needs --method")
        return None
    for method in methods:
        if method not in METHODS:
            known = ", ".join(METHODS)
            raise InvalidInput({"method": [f"必须是以下之一：{known}"]}, english=f"--method must be one of: {known}")
    given = dict(map(_value, values))
    for method in methods:
        odd = conflict(method, given)
        faults = [(name, *found) for name, value in given.items() if (found := fault(method, name, value))]
        for name, english, chinese in faults or ([odd] if odd else []):
            raise InvalidInput({name: [chinese]}, english=english)
    return [{"method": method, "hyperparameters": given} for method in methods]


def _value(text: str) -> tuple[str, Any]:
    name, given, value = text.partition("=")
    if not given:
        raise InvalidInput({"set": ["必须是 NAME=VALUE"]}, english=f"--set takes NAME=VALUE, not {text}")
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return name, kind(value)
    return name, value


def stages(manifest: Manifest, asked: Sequence[Mapping[str, Any]] | None = None) -> list[dict[str, Any]]:
    """The stages as the recipe reads them, each with its file and all of its hyperparameters.

    Of none asked: SFT on the roleplay set if it has rows, then SimPO on the preference set if it has rows; where there
    is only the unpaired set, KTO on that. Raises InvalidInput where a stage asked for has no rows.
    """
    has = {name for name in DATASETS if manifest.files[_file(manifest, name)].rows}
    if asked is None:
        usual = [("sft", "roleplay"), ("simpo", "preference")] if has != {"unpaired"} else [("kto", "unpaired")]
        asked = [{"method": method, "dataset": dataset} for method, dataset in usual if dataset in has]
    return [_stage(manifest, stage, has, number) for number, stage in enumerate(asked)]


def _stage(manifest: Manifest, asked: Mapping[str, Any], has: set[str], number: int) -> dict[str, Any]:
    method = METHODS[asked["method"]]
    fitting = [dataset for dataset in method.datasets if dataset in has]
    dataset = asked.get("dataset") or next(iter(fitting), method.datasets[0])
    if dataset not in has:
        raise InvalidInput(
            {
                f"stages.{number}.dataset": [
                    f"数据集 {dataset} 中没有数据，{asked['method']} 可用：{'、'.join(fitting) or '无'}"
                ]
            },
            english=f"stage {number + 1}, {asked['method']}: the dataset {dataset} has no rows",
        )
    return {
        "method": asked["method"],
        "dataset": dataset,
        "file": f"data/{_file(manifest, dataset)}",
        **method.defaults,
        **asked.get("hyperparameters", {}),
    }


def _file(manifest: Manifest, dataset: str) -> str:
    return f"{manifest.character}_{dataset}.json"
