"""SimPO by LLaMA-Factory: what `benchmarks/training.py` compares with. Run by the Python of its own environment.

python -m benchmarks.llama_factory bare.json [--checkpointing]

Its template is replaced by one that leaves the texts as they are, so that it learns from the same tokens.
"""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.bare_trl import stopwatch


def main(path: str, *, checkpointing: bool) -> None:
    """Train on the rows of the file, in their order; write bare_metrics.json."""
    import transformers  # noqa: F401 - it looks for torchaudio, too, so it comes before the stub

    sys.modules["torchaudio"] = ModuleType("torchaudio")  # imported in any case, and not built for every torch
    from llamafactory.data.formatter import StringFormatter
    from llamafactory.data.template import register_template
    from llamafactory.train.tuner import run_exp

    told = json.loads(Path(path).read_text())
    as_it_is = StringFormatter(slots=["{{content}}"])
    register_template("as it is", format_user=as_it_is, format_assistant=as_it_is)
    Path("rows.json").write_text(json.dumps(told["rows"]))
    columns = {side: side for side in ("prompt", "chosen", "rejected")}
    described = {"rows": {"file_name": "rows.json", "ranking": True, "columns": columns}}
    Path("dataset_info.json").write_text(json.dumps(described))
    watch = stopwatch()
    run_exp(_arguments(told, checkpointing=checkpointing), callbacks=[watch])
    watch.write()


def _arguments(told: Any, *, checkpointing: bool) -> dict[str, Any]:
    import torch

    stage = told["stage"]
    return {
        "stage": "dpo",
        "pref_loss": "simpo",
        "pref_beta": stage["beta"],
        "simpo_gamma": stage["gamma"],
        "pref_ftx": stage["nll_weight"],
        "do_train": True,
        "model_name_or_path": told["model"],
        "finetuning_type": "lora",
        "lora_rank": told["lora"]["r"],
        "lora_alpha": told["lora"]["alpha"],
        "lora_target": "all",
        "dataset_dir": ".",
        "dataset": "rows",
        "template": "as it is",
        "cutoff_len": told["max_length"],
        "disable_shuffling": True,
        "output_dir": "adapter",
        "learning_rate": stage["learning_rate"],
        "num_train_epochs": 1,
        "per_device_train_batch_size": stage["batch_size"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "disable_gradient_checkpointing": not checkpointing,
    }


if __name__ == "__main__":
    main(sys.argv[1], checkpointing="--checkpointing" in sys.argv)
