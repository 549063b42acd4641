"""TRL's own trainers take each TRL file unchanged: as load_dataset gives it, with all its columns, for one step."""

from pathlib import Path
from typing import Any

import pytest

from tests.exporters.written import row, talk, write

WRITTEN = [
    *(row(f"I am Li, {at}.", f"An AI, {at}.", weight=0.5) for at in range(2)),
    row("Guess!", "No.", chosen_thinking="A riddle.\n", context=talk("Hi", "Ho")),
    row("Hello.", None),
    row(None, "Bye."),
    row("Good.", None, context=talk("Welcome!")),
    row(None, "Bad.", rejected_thinking="hm"),
    row("Good day.", None, mode="multi", context=talk("Hi", "Ho")),
    row("Riddle me this.", "As an AI, no.", mode="multi", chosen_thinking="Fun.", rejected_thinking="Duty."),
]
TRAINERS = {"DPO": "preference", "SimPO": "preference", "KTO": "unpaired", "SFT": "roleplay"}


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("form", ["trl", "trl-parquet"])
def test_a_trainer_takes_the_file(tmp_path: Path, tiny_model: Path, form: str, trainer: str) -> None:
    """It trains one step on the rows, and its loss is a number."""
    dataset = _loaded(tmp_path, form, TRAINERS[trainer])
    assert {"created_at", "weight", "mode"} <= set(dataset.column_names)
    result = _trainer(trainer, str(tiny_model), tmp_path / "out", dataset).train()
    assert result.global_step == 1
    assert result.training_loss > 0


def _loaded(folder: Path, form: str, name: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    write(form, folder, WRITTEN)
    kind = "parquet" if form == "trl-parquet" else "json"
    file = next(folder.glob(f"li_{name}.*"))
    return datasets.load_dataset(kind, data_files=str(file), cache_dir=str(folder / "cache"), split="train")


def _trainer(name: str, model: str, folder: Path, dataset: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    config, trainer = {
        "DPO": (DPOConfig, DPOTrainer),
        "SimPO": (CPOConfig, CPOTrainer),
        "KTO": (KTOConfig, KTOTrainer),
        "SFT": (SFTConfig, SFTTrainer),
    }[name]
    arguments: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True, "bf16": False}
    arguments |= {"report_to": "none", "disable_tqdm": True, "max_length": 256, "save_strategy": "no"}
    arguments |= {"activation_checkpointing": False}
    if name == "SimPO":
        arguments |= {"loss_type": "simpo", "cpo_alpha": 0.0}
    return trainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=config(output_dir=str(folder), **arguments),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(model),
    )
